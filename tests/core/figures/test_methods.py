"""The figure of methods: where points and labels stand, and what is said of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import figures
from lora_lab.figures._labels import Box, line_boxes, place_labels, text_box
from tests.helpers import laboratory_fakes as fakes

WIDTHS = (360, 640, 900, 1200)


def traces(figure: go.Figure, axes: str) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.yaxis == f"y{axes}"}


def test_each_method_stands_over_the_log_of_its_parameters_with_its_spread():
    figure = figures.method_comparison(fakes.method_comparison())
    own = traces(figure, "")
    assert list(own) == [method for method, _, _ in fakes.method_rows()]
    for method, trainable, value in fakes.method_rows():
        trace = own[method]
        assert trace.x == pytest.approx([math.log10(trainable)])
        assert trace.y == pytest.approx([value + 0.02])
        assert trace.error_y.array == pytest.approx([0.02])
        assert trace.x.dtype == trace.y.dtype == np.float32
    single = figures.method_comparison(fakes.method_comparison(seeds=1))
    assert not traces(single, "")["FT"].error_y.visible


def test_the_published_points_are_those_of_tables_4_and_15():
    """Hu et al. (2022): WikiSQL and MNLI-m of GPT-3 175B."""
    figure = figures.method_comparison(fakes.method_comparison())
    sql, mnli = traces(figure, "2"), traces(figure, "3")
    for found in (sql, mnli):
        assert {name: len(trace.x) for name, trace in found.items()} == {
            "PreEmbed": 5,
            "PreLayer": 5,
            "Adapter^H": 5,
            "LoRA": 10,
            "LoRA+PE": 3,
            "LoRA+PL": 1,
            "FT": 1,
            "BitFit": 1,
        }
    assert sql["PreEmbed"].x == pytest.approx(np.log10([4e5, 9e5, 1.7e6, 3.2e6, 6.4e6]))
    assert sql["PreEmbed"].y == pytest.approx([55.9, 58.7, 60.6, 63.1, 55.9])
    assert mnli["Adapter^H"].y == pytest.approx([89.8, 91.0, 91.5, 91.5, 91.5])
    assert (sql["FT"].x[0], sql["FT"].y[0]) == pytest.approx((math.log10(175_255.8e6), 73.8))
    assert (sql["BitFit"].y[0], mnli["LoRA+PL"].y[0]) == pytest.approx((71.3, 90.2))
    assert "l_p = 256, l_i = 8" in sql["PreEmbed"].customdata[3]
    alone = figures.method_comparison(fakes.method_comparison(), published=False)
    assert not traces(alone, "2")


@pytest.mark.parametrize("width", WIDTHS)
def test_published_points_stand_beside_where_there_is_room(width):
    layout = figures.method_comparison(fakes.method_comparison(), width=width).layout
    own, other = layout.xaxis.domain, layout.xaxis2.domain
    assert (own[1] < other[0]) is (width >= 820)
    assert layout.yaxis3.domain[1] < layout.yaxis2.domain[0]
    assert layout.width == width


@pytest.mark.parametrize("width", WIDTHS)
def test_every_method_is_named_once_a_plot_and_no_two_names_overlap(width):
    figure = figures.method_comparison(fakes.method_comparison(), width=width)
    layout = figure.layout
    for axes in ("", "2", "3"):
        x_axis, y_axis = layout[f"xaxis{axes}"], layout[f"yaxis{axes}"]
        across = width * (x_axis.domain[1] - x_axis.domain[0])
        up = layout.height * (y_axis.domain[1] - y_axis.domain[0])
        boxes = []
        names = [a for a in layout.annotations if a.xref == f"x{axes}"]
        for name in names:
            x = across * (name.x - x_axis.range[0]) / (x_axis.range[1] - x_axis.range[0])
            y = up * (y_axis.range[1] - name.y) / (y_axis.range[1] - y_axis.range[0])
            dx, dy = (name.ax, name.ay) if name.showarrow else (name.xshift, -name.yshift)
            text = name.text.replace("<sup>", "^").replace("</sup>", "")
            boxes.append(text_box(text, x + dx, y + dy))
            assert boxes[-1].left >= 0
            assert boxes[-1].right <= across
        texts = [name.text.replace("<sup>", "^").replace("</sup>", "") for name in names]
        assert sorted(texts) == sorted(traces(figure, axes))
        assert all(not a.overlap(b) for a, b in itertools.combinations(boxes, 2))


def test_rows_of_one_method_are_told_apart():
    rows = [("LoRA", 1000, 2.0), ("LoRA", 2000, 1.5), ("FT", 9000, 1.0)]
    figure = figures.method_comparison(fakes.method_comparison(rows), published=False)
    texts = [a.text for a in figure.layout.annotations if a.xref == "x"]
    assert texts == ["LoRA r = 8, q v", "LoRA r = 8, q v", "FT"]
    assert len(traces(figure, "")["LoRA"].x) == 2


def test_the_base_model_is_a_line_unless_it_lies_far_off():
    near = figures.method_comparison(fakes.method_comparison(base=2.2), published=False)
    (line,) = near.layout.shapes
    assert line.y0 == line.y1 == 2.2
    assert near.layout.yaxis.range[1] > 2.2
    far = figures.method_comparison(fakes.method_comparison(base=9.0), published=False)
    assert not far.layout.shapes
    assert far.layout.yaxis.range[1] < 3
    assert "base model 9.00 ↑" in [a.text for a in far.layout.annotations]
    none = figures.method_comparison(fakes.method_comparison(base=None), published=False)
    assert not any("base model" in a.text for a in none.layout.annotations)


def test_names_from_outside_are_no_markup():
    rows = [("<b>LoRA", 1000, 2.0)]
    figure = figures.method_comparison(fakes.method_comparison(rows), published=False)
    texts = [a.text for a in figure.layout.annotations]
    assert "&lt;b&gt;LoRA" in texts


# --- labels --------------------------------------------------------------------------------------

POINTS = st.lists(
    st.tuples(st.floats(20, 480), st.floats(20, 280)), min_size=1, max_size=12, unique=True
)


@given(POINTS)
def test_labels_find_places_that_do_not_overlap(points):
    labels = place_labels(points, ["LoRA+PE"] * len(points), (500, 300))
    for (x, y), label in zip(points, labels, strict=True):
        middle = (label.box.left + label.box.right) / 2, (label.box.top + label.box.bottom) / 2
        assert middle == pytest.approx((x + label.dx, y + label.dy))
        assert label.box.left >= 0
        assert label.box.right <= 500
    for a, b in itertools.combinations(labels, 2):
        assert not a.box.overlap(b.box)


def test_a_lone_label_stands_right_beside_its_point_and_off_what_is_there():
    (free,) = place_labels([(100, 100)], ["FT"], (500, 300))
    assert (free.dy, free.far) == (0, False)
    assert 6 < free.dx < 30
    wall = Box(104, 80, 200, 120)
    (moved,) = place_labels([(100, 100)], ["FT"], (500, 300), [wall])
    assert not moved.box.overlap(wall)
    assert moved.dx < 0


def test_a_line_is_covered_by_boxes_along_it():
    boxes = line_boxes((0, 0), (30, 40))
    assert len(boxes) == 6  # 50 pixels, a box every 7.1, none at the ends
    assert boxes[0].left == pytest.approx(30 / 7 - 2)


# --- in words ------------------------------------------------------------------------------------


def test_the_summary_says_the_span_the_best_and_its_share():
    text = figures.method_comparison_summary(fakes.method_comparison(seeds=1))
    assert text == (
        "Held-out loss of 13 methods after 60 steps of mini-e2e on smollm2-135m: 1.31 to 2.05 nats "
        "per token, the base model 2.70; best FT (134.5 M parameters) with 1.31."
    )
    rows = [("LoRA", 1000, 60.0), ("FT", 100_000, 50.0)]
    score = fakes.method_comparison(rows, 1, None, "bleu_after", "Why.")
    assert figures.method_comparison_summary(score) == (
        "BLEU (cased) of 2 methods after 60 steps of mini-e2e on smollm2-135m: 50.0 to 60.0; best "
        "LoRA (1,000 parameters) with 60.0, at 1.00 % of the parameters of FT (0.10 M parameters). "
        "Why."
    )
