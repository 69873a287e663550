"""What a method tells of itself: its own learning rate, which follows the model's width."""

from __future__ import annotations

import math

import pytest

from lora_lab.methods.descriptor import METHODS, Method
from lora_lab.methods.registry import offered

# Table 12 of the LoRA paper as ratios to LoRA's rate; LoRA's own is that of `TrainingConfig`.
PUBLISHED = {"LoRA": 2e-3, "FT": 5e-5, "BitFit": 1.6e-2, "PreEmbed": 5e-3, "Adapter^H": 1e-3}
# {rate: held-out loss of mini-llama on mini-e2e}, of one seed, in steps of four examples: 40 of
# LoRA (r = 8 in all matrices) and FT, 30 of the others.
SWEPT = {
    "LoRA": {2e-3: 4.132, 5e-3: 3.326, 1e-2: 2.968, 2e-2: 3.246},
    "FT": {5e-4: 3.141, 1e-3: 2.515, 2e-3: 2.154, 5e-3: 2.155},
    "BitFit": {5e-3: 5.281, 1e-2: 4.972, 3e-2: 4.358, 1e-1: 4.219, 3e-1: 5.792},
    "Adapter^H": {2e-3: 5.05, 5e-3: 4.186, 1e-2: 3.81, 2e-2: 3.515, 5e-2: 3.583},
    "PreEmbed": {5e-3: 5.803, 2e-2: 5.581, 5e-2: 5.581, 2e-1: 5.684, 5e-1: 5.701},
}


@pytest.mark.parametrize("width", [576, 768, 1024, 4096, 12288, None])
def test_models_of_the_literatures_size_have_its_rates(width: int | None) -> None:
    for name, rate in PUBLISHED.items():
        assert offered()[name].rate_for(width) == pytest.approx(rate), name
    for method in offered().values():
        assert method.rate_for(width) == method.learning_rate
        assert method.rate_reason(width) == method.rate_from


@pytest.mark.parametrize(("name", "losses"), SWEPT.items())
def test_at_mini_llamas_width_it_is_the_best_that_was_tried(
    name: str, losses: dict[float, float]
) -> None:
    best = min(losses.values())
    rate = METHODS[name].rate_for(192)
    assert losses[rate] - best < 0.03
    assert min(losses) < rate < max(losses)


@pytest.mark.parametrize("name", ["LoRA", "FT", "BitFit", "Adapter^P"])
def test_between_it_is_a_power_of_the_width(name: str) -> None:
    method = METHODS[name]
    narrow, wide = method.rate_for(192), method.rate_for(576)
    power = math.log(narrow / wide) / math.log(3)
    for width in (224, 256, 384, 512):
        wanted = wide * (576 / width) ** power
        assert method.rate_for(width) == pytest.approx(wanted, rel=0.05)  # two digits are kept
    assert method.rate_for(64) == narrow, "narrower ones nobody has tried"
    assert "a power of the width (256)" in method.rate_reason(256)


def test_a_method_that_nobody_tried_on_a_small_model_keeps_its_rate() -> None:
    full = METHODS["FT"]
    own = Method("Own", full.config, full.adapter, full.cost, learning_rate=3e-4)
    assert own.rate_for(16) == own.rate_for(4096) == 3e-4
    assert own.rate_reason(16) == ""
