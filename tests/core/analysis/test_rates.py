"""Curves over learning rates, of a comparison and of any runs at several rates."""

from __future__ import annotations

import math

from lora_lab.analysis import compare_methods
from lora_lab.analysis.rates import rate_curves
from lora_lab.captions import rate_curves_summary
from lora_lab.configs import BitFitConfig
from tests.core.analysis.test_choices import choices, row
from tests.helpers.ended_runs import LORA, record


def runs(config, *rates_and_losses):
    return [
        record([config], loss, training={"learning_rate": rate, "seed": seed})
        for rate, losses in rates_and_losses
        for seed, loss in enumerate(losses)
    ]


def test_runs_at_several_rates_are_curves():
    other = LORA.replace(lora_alpha=64)
    found = rate_curves(
        compare_methods(
            runs(LORA, (1e-2, (3.0, 3.2)), (1e-3, (2.0, 2.2)), (1e-4, (2.5, 2.6)))
            + runs(other, (1e-3, (1.0, 1.1)))
            + runs(BitFitConfig(), (1e-3, (4.0,)), (1e-2, (3.5, 3.6)))
        )
    )
    assert {curve.name: dict(curve.points) for curve in found} == {
        "LoRA (r = 2, q v; α = 8)": {1e-4: (2.5, 2.6), 1e-3: (2.0, 2.2), 1e-2: (3.0, 3.2)},
        "LoRA (r = 2, q v; α = 64)": {1e-3: (1.0, 1.1)},
        "BitFit": {1e-3: (4.0,), 1e-2: (3.5, 3.6)},
    }
    assert {curve.name: (curve.best, curve.at_edge) for curve in found} == {
        "LoRA (r = 2, q v; α = 8)": (1e-3, False),
        "LoRA (r = 2, q v; α = 64)": (1e-3, False),
        "BitFit": (1e-2, True),
    }
    assert all(list(curve.points) == sorted(curve.points) for curve in found)


def test_a_comparison_has_the_curve_of_the_half_that_chooses():
    curve = {1e-4: (0.2, 0.3), 1e-3: (0.9, 0.8), 1e-2: (math.nan,)}
    found = choices(row("LoRA", curve=curve), row("FT", curve={1e-5: (0.1,)}, rate=1e-5))
    first, second = rate_curves(found)
    assert first.points == {1e-4: (0.2, 0.3), 1e-3: (0.9, 0.8), 1e-2: ()}
    assert (first.best, first.train_examples, second.best) == (1e-3, 100, 1e-5)
    assert rate_curves_summary(found) == (
        "Accuracy in % on the half of the held-out data that chooses, best: LoRA at 1e-3 (0.850); "
        "FT at 1e-5 (0.100). At 1 rate no run has ended."
    )
