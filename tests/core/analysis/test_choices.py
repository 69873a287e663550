"""Methods at their own rates: the intervals against scipy's, the sentence against the intervals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from lora_lab.analysis.choices import Choices, MethodChoice, best_rate, difference, remarks


def row(method="LoRA", values=(0.9, 0.91, 0.92), rate=1e-3, examples=100, curve=None, **more):
    curve = curve or dict.fromkeys((0.0001, 0.0003, 0.001, 0.003, 0.01), values)
    told = {"setting": "", "trainable": 10} | more
    return MethodChoice(method, told["setting"], examples, told["trainable"], curve, rate, values)


def choices(*rows, metric="accuracy"):
    return Choices(metric, "m", "t", 50, 50, rows, 0.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.9, 0.91, 0.92), (0.8, 0.85, 0.9)),
        ((1.0, 2.0), (5.0, 5.5, 9.0, 1.0)),
        (tuple(np.linspace(0, 1, 40)), tuple(np.linspace(0.2, 3, 50))),
    ],
)
def test_the_interval_is_welchs(first, second):
    """scipy's takes fractions of degrees of freedom; ours, rounded down, is a little wider."""
    theirs = stats.ttest_ind(first, second, equal_var=False)
    freedom = math.floor(theirs.df)
    t = stats.t.ppf(0.975, freedom) if freedom <= 30 else stats.norm.ppf(0.975)
    error = np.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second))
    middle = np.mean(first) - np.mean(second)
    np.testing.assert_allclose(
        difference(first, second), (middle - t * error, middle + t * error), rtol=1e-3
    )
    if freedom <= 30:
        exact = theirs.confidence_interval(0.95)
        low, high = difference(first, second)
        assert low <= exact.low + 1e-3 * error
        assert high >= exact.high - 1e-3 * error


def test_whole_degrees_of_freedom_are_not_rounded_down():
    first, second = (0.7, 0.71, 0.81), (0.8, 0.81, 0.91)  # of one variance: 2 + 2 of them
    low, high = difference(first, second)
    error = np.sqrt(2 * np.var(first, ddof=1) / 3)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * error, rel=1e-3)


def test_of_one_seed_there_is_no_interval_and_no_claim():
    assert difference((1.0,), (2.0, 3.0)) is None
    said = choices(row(values=(0.9,)), row("FT", values=(0.1,))).summary()
    assert said.endswith("of one seed there is no spread, so no difference is shown.")
    assert difference((1.0, 1.0), (0.5, 0.5)) == (0.5, 0.5)


def test_the_sentence_says_which_differences_the_spread_carries():
    found = choices(
        row("LoRA", (0.90, 0.91, 0.92), setting="r = 8, q v"),
        row("BitFit", (0.70, 0.71, 0.72)),
        row("FT", (0.88, 0.93, 0.89)),
    )
    said = found.summary()
    assert said.startswith("LoRA (r = 8, q v) has the best accuracy, 0.910 ± 0.01; ")
    carried, _, rest = said.partition("it carries no difference from")
    assert "BitFit" in carried
    assert "FT" in rest
    assert "LoRA" in choices(*found.rows).best(100).method
    low = choices(row("A", (1.0, 1.1)), row("B", (3.0, 3.1)), metric="loss")
    assert low.best(100).method == "A"


def test_numbers_of_examples_are_told_apart():
    said = choices(row(examples=100), row(examples=1000, values=(0.95, 0.96, 0.97))).summary()
    assert said.startswith("From 100 examples: LoRA has the best")
    assert "From 1,000 examples: " in said


def test_a_rate_is_chosen_by_the_mean_of_all_seeds():
    curve = {1e-4: (0.5, 0.5), 1e-3: (0.9, 0.4), 1e-2: (0.99,)}
    assert best_rate(curve, 2, "accuracy") == 1e-3
    assert best_rate(curve, 2, "loss") == 1e-4
    assert best_rate({1e-2: (0.99,)}, 2, "loss") is None


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_rate_at_which_a_score_is_no_number_is_not_chosen(odd, metric):
    curve = {1e-4: (odd, 0.5), 1e-3: (0.9, 0.4), 1e-2: (0.7, odd)}
    assert best_rate(curve, 2, metric) == 1e-3
    assert best_rate({1e-4: (odd, 0.5)}, 2, metric) is None


def test_what_makes_it_less_than_it_looks_is_said():
    assert remarks([row()]) == []
    few = row(values=(1.0, 2.0), curve={1e-3: (1.0, 2.0), 1e-2: (2.0, 3.0)})
    assert remarks([few]) == [
        "2 learning rates a method; five or more make a curve",
        "2 seeds a method; three or more make a spread",
        "best at the edge of what was tried, try beyond it: LoRA at 0.001",
    ]


def test_text_html_and_json():
    found = choices(row(), row("FT", (0.5, 0.6, 0.7), trainable=12_345))
    assert "12,345" in str(found)
    assert found._repr_html_().count("<tr>") == 3
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["rows"][0]["curve"][0] == [1e-4, [0.9, 0.91, 0.92]]
    assert plain["rows"][1]["mean"] == pytest.approx(0.6)
    assert plain["summary"] == found.summary()


def test_a_comparison_tells_on_how_many_examples_it_rests():
    told = "rates chosen on 50 held-out examples, scores on 50 others"
    found = choices(row("<i>LoRA"), row("FT"))
    assert str(found).splitlines()[-1] == told
    assert told in found._repr_html_()
    assert "<i>" not in found._repr_html_()


def test_a_score_has_its_n_and_its_interval_in_the_table():
    ends = {"accuracy": ((80.0, 96.0), (84.0, 98.0), (82.0, 97.0))}
    sure = dataclasses.replace(row(), intervals=ends)
    assert sure.interval("accuracy") == pytest.approx((82.0, 97.0))
    assert sure.interval("loss") is None
    table = choices(sure, row("FT")).to_table()
    column = table.header.index("95 % of samples, n = 50")
    assert [cells[column] for cells in table.rows] == ["82.0 to 97.0", ""]
    assert "samples" not in str(choices(row()).to_table())
    plain = json.loads(json.dumps(choices(sure).to_json()))
    assert plain["rows"][0]["intervals"] == {"accuracy": [[80, 96], [84, 98], [82, 97]]}
