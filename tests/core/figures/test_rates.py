"""Curves over learning rates and fronts: what is drawn, where, and with which words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lora_lab import figures
from lora_lab.paper import table
from tests.core.analysis.test_choices import choices, row
from tests.helpers.laboratory_fakes import method_comparison

CURVE = {1e-4: (0.2, 0.4), 1e-3: (0.9, 0.7), 1e-2: ()}


def drawn(figure, axes=""):
    return {trace.name: trace for trace in figure.data if trace.yaxis == f"y{axes}"}


def names(figure, axes=""):
    return [a.text for a in figure.layout.annotations if a.xref == f"x{axes}"]


def test_a_curve_is_the_mean_over_the_rates_with_its_spread_and_its_name_at_the_best():
    found = choices(row("LoRA", curve=CURVE), row("FT", curve={1e-5: (0.5,)}, rate=1e-5))
    figure = figures.rate_curves_figure(found)
    lora, full = drawn(figure)["LoRA"], drawn(figure)["FT"]
    assert lora.x == pytest.approx([-4, -3])
    assert lora.y == pytest.approx([0.3, 0.8])
    assert lora.error_y.array == pytest.approx(np.std(((0.2, 0.4), (0.9, 0.7)), axis=1, ddof=1))
    assert (lora.mode, full.mode) == ("lines+markers", "markers")
    assert names(figure) == ["LoRA", "FT"]
    axis = figure.layout.xaxis
    assert axis.tickvals == pytest.approx([-5, -4, -3, -2])
    assert list(axis.ticktext) == ["1e-5", "1e-4", "1e-3", "0.01"]


@pytest.mark.parametrize(("width", "beside"), [(400, False), (900, True)])
def test_each_number_of_training_examples_has_a_plot(width, beside):
    found = choices(row(curve=CURVE, examples=10), row(curve=CURVE, examples=1000))
    figure = figures.rate_curves_figure(found, width=width)
    first, second = figure.layout.xaxis.domain, figure.layout.xaxis2.domain
    assert (first[1] < second[0]) is beside
    assert figure.layout.height == (380 if beside else 760)
    texts = [a.text for a in figure.layout.annotations]
    assert {"m on t, 10 examples", "m on t, 1,000 examples"} <= set(texts)


def test_a_diverged_run_does_not_press_the_others_flat():
    curve = {1e-4: (1.2,), 3e-4: (1.1,), 1e-3: (1.0,), 1e-2: (90.0,)}
    figure = figures.rate_curves_figure(choices(row(curve=curve, rate=1e-3), metric="loss"))
    assert figure.layout.yaxis.range[1] < 2
    assert max(drawn(figure)["LoRA"].y) == pytest.approx(90)
    high = {rate: (100 - values[0],) for rate, values in curve.items()}
    figure = figures.rate_curves_figure(choices(row(curve=high, rate=1e-3)))
    assert figure.layout.yaxis.range[0] > 98


@pytest.mark.parametrize("against", ["parameters", "seconds", "memory"])
def test_a_front_is_joined_and_pefts_runs_stand_beside(against):
    data = method_comparison()
    figure = figures.pareto_figure(data, against)
    own, theirs = drawn(figure), drawn(figure, "2")
    costs = {
        "parameters": [math.log10(own.trainable) for own in data.rows],
        "seconds": [math.log10(own.seconds) for own in data.rows],
        "memory": [own.peak_memory / 2**30 for own in data.rows],
    }[against]
    for row_, cost in zip(data.rows, costs, strict=True):
        assert own[row_.method].x == pytest.approx([cost])
        assert own[row_.method].y == pytest.approx([row_.mean])
        assert own[row_.method].error_y.array == pytest.approx([row_.spread])
    points = [(cost, own_.mean) for cost, own_ in zip(costs, data.rows, strict=True)]
    front = [p for p in points if not any(q[0] <= p[0] and q[1] < p[1] for q in points)]
    assert list(zip(own["front"].x, own["front"].y, strict=True)) == sorted(front)
    assert sum(len(trace.x) for name, trace in theirs.items() if name != "front") == 63
    assert "front" in theirs
    alone = figures.pareto_figure(data, against, published=False)
    assert not drawn(alone, "2")


def test_pefts_points_are_those_of_its_files():
    found = table(1, "PEFT")
    figure = figures.pareto_figure(method_comparison())
    (full,) = [n for n, own in enumerate(found.rows) if own[0] == "full-finetuning"]
    trace = drawn(figure, "2")["FT"]
    assert trace.x == pytest.approx([math.log10(3_212_749_824)])
    assert trace.y == pytest.approx([47.16])
    assert found.rows[full][3:5] == ("0.0300", "3,212,749,824")
    assert len(drawn(figure, "2")["LoRA"].x) == 8


def test_two_settings_of_one_method_and_two_sizes_are_told_apart():
    own = dataclasses.replace
    first = own(row("LoRA", examples=10), setting="<r = 2>", trainable=10)
    second = own(row("LoRA", (0.3, 0.4, 0.5), examples=100), setting="r = 8", trainable=40)
    figure = figures.pareto_figure(choices(first, second), published=False)
    assert names(figure) == ["LoRA &lt;r = 2&gt;, 10", "LoRA r = 8, 100"]


def test_what_was_kept_has_bars_across_and_a_front_of_each_size():
    kept = {10: ((2.0, 2.2), (2.4, 2.6)), 100: ((2.1, 2.3), (2.5, 2.7))}
    rows = [
        dataclasses.replace(row(name, values, examples=size), kept=kept[size][number])
        for size in kept
        for number, (name, values) in enumerate((("LoRA", (0.5, 0.6)), ("FT", (0.8, 0.9))))
    ]
    figure = figures.pareto_figure(choices(*rows), "kept")
    lora = drawn(figure)["LoRA"]
    assert lora.x == pytest.approx([2.1, 2.2])
    assert lora.error_x.array == pytest.approx([0.1 * 2**0.5] * 2)
    fronts = [trace for trace in figure.data if trace.name == "front" and trace.yaxis == "y"]
    assert [list(trace.x) for trace in fronts] == [
        pytest.approx([2.1, 2.5]),
        pytest.approx([2.2, 2.6]),
    ]
    theirs = table(1, "PEFT").column("forgetting")
    trace = drawn(figure, "2")["FT"]
    assert trace.x == pytest.approx([0.03])
    assert min(theirs) > 0
