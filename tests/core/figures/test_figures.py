import ast
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import lora_lab
from lora_lab import figures
from lora_lab._util.format import format_number
from lora_lab.analysis import RankMap
from lora_lab.budget.reading import MemoryReading
from tests.helpers.figure_inputs import GIB, budget, contrast, losses, luminance, view


def rank_map():
    values = np.full((2, 30), np.nan, np.float32)
    values[0, 5:] = np.linspace(1, 7.5, 25)
    ranks = np.where(np.isfinite(values), 8, 0).astype(np.int32)
    return RankMap(("q", "down"), tuple(map(str, range(30))), values, ranks)


def every_figure(theme="light"):
    yield figures.spectrum_figure(view(), theme=theme)
    yield figures.spectrum_figure(view(r=900), theme=theme)
    yield figures.spectrum_figure(view(zero=True), theme=theme)
    yield figures.overlap_figure(view(), theme=theme)
    yield figures.overlap_figure(view(r=64), theme=theme)
    yield figures.overlap_figure(view(zero=True), theme=theme)
    yield figures.effective_rank_figure(rank_map(), theme=theme)
    yield figures.loss_figure(losses(3000), theme=theme)
    yield figures.loss_figure(losses(1), theme=theme)
    yield figures.loss_figure([], theme=theme)
    yield figures.memory_figure(budget(), theme=theme)
    yield figures.memory_figure(budget(), MemoryReading(1, GIB, "CUDA memory"), theme=theme)


@pytest.mark.parametrize("theme", ["light", "dark", "either"])
def test_every_figure_is_small_sized_and_transparent(theme):
    for figure in every_figure(theme):
        layout = figure.layout
        assert layout.width
        assert layout.height
        assert not layout.autosize
        assert layout.paper_bgcolor == "rgba(0,0,0,0)"
        assert len(layout.template.to_plotly_json()["data"]) <= 1, "plotly's own has 40 entries"
        json.loads(figure.to_json())
        for trace in figure.data:
            drawn = trace.z if trace.type == "heatmap" else trace.x
            assert np.size(drawn) <= 500
            for axis in ("x", "y", "z"):
                array = getattr(trace, axis, None)
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    assert array.dtype == np.float32
            assert any(
                form in trace.hovertemplate for form in (":.3g", ":.2g", ".2f", ".3f", "cus")
            )


def test_axes_carry_what_is_measured():
    spectrum = figures.spectrum_figure(view())
    assert spectrum.layout.yaxis.title.text == "singular value σ"
    loss = figures.loss_figure(losses(9))
    assert loss.layout.yaxis.title.text == "loss, nats per token"
    assert figures.memory_figure(budget()).layout.xaxis.title.text == "GiB"


def test_the_themes_differ_in_text_and_lines():
    light, dark = (figures.spectrum_figure(view(), theme=t) for t in ("light", "dark"))
    assert luminance(light.layout.font.color) < 0.1
    assert luminance(dark.layout.font.color) > 0.7
    # Bars stand out from the page: at least 3:1, the accessibility guideline for graphics.
    assert contrast(light.data[0].marker.color, "#ffffff") > 3
    assert contrast(dark.data[0].marker.color, "#111318") > 3


def test_without_a_theme_words_are_read_on_light_and_dark_pages():
    # WCAG asks 4.5 of small words and 3 of marks; one color has at most 4.35 on both pages.
    for page in ("#ffffff", "#111111", "#1f1f1f"):
        for figure in every_figure("either"):
            layout = figure.layout
            words = [layout.font, layout.xaxis.tickfont, layout.yaxis.title.font]
            words += [each.font for each in layout.annotations]
            assert all(contrast(font.color, page) >= 3.8 for font in words)
            assert contrast(layout.hoverlabel.font.color, layout.hoverlabel.bgcolor) > 7
            for trace in figure.data:
                if trace.type in ("bar", "scatter"):
                    color = trace.marker.color or trace.line.color
                    assert trace.name in figures.MEMORY_PARTS or contrast(color, page) >= 3
    unthemed = figures.spectrum_figure(view())
    assert unthemed.layout.font.color == next(every_figure("either")).layout.font.color


def test_a_loss_of_few_steps_is_seen():
    """Below 24 steps there is no mean, and what is drawn is not a ghost of it."""
    few, many = figures.loss_figure(losses(23)), figures.loss_figure(losses(24))
    assert len(few.data) == 1
    assert (few.data[0].opacity, few.data[0].line.width) == (1, 2)
    assert few.data[0].mode == "lines+markers"
    assert [trace.opacity for trace in many.data] == [0.35, None]


@pytest.mark.parametrize("kind", [go.Figure, go.FigureWidget])
def test_updates_in_place_equal_a_new_figure(kind):
    old, new = view(r=4, seed=1), view(r=6, seed=2)
    pairs = [
        (figures.spectrum_figure, figures.update_spectrum),
        (figures.overlap_figure, figures.update_overlap),
    ]
    for draw, update in pairs:
        for before, after in ((old, new), (view(zero=True), new), (new, view(zero=True))):
            live = kind(draw(before, theme="dark"))
            trace = live.data[0]
            with live.batch_update():
                update(live, after, "dark")
            assert live.data[0] is trace
            assert len(live.data) == 1
            assert json.loads(live.to_json())["data"][0] | {"uid": 0} == json.loads(
                draw(after, theme="dark").to_json()
            )["data"][0] | {"uid": 0}
            assert live.layout == draw(after, theme="dark").layout


def test_the_spectrum_shows_the_values():
    shown = view()
    figure = figures.spectrum_figure(shown)
    np.testing.assert_array_equal(figure.data[0].y, shown.singular_values)
    low, high = figure.layout.yaxis.range
    assert low == 0
    assert shown.singular_values[0] <= high <= 2 * shown.singular_values[0]
    text = figures.spectrum_figure(view(zero=True)).layout.annotations[0].text
    assert text == "ΔW is zero: nothing is learned yet"


@pytest.mark.parametrize("largest", [1e-44, 3e-7, 0.1, 0.99, 1.0, 1000.0, 7.1e30])
def test_the_axis_of_any_spectrum_holds_its_largest_value(largest):
    s = np.array([largest, 0], np.float32)
    shown = view(r=2)
    figure = figures.spectrum_figure(dataclasses.replace(shown, singular_values=s))
    assert figure.layout.yaxis.range[1] >= float(s[0])


def test_the_overlap_map_shows_the_squares_and_the_random_level():
    shown = view()
    figure = figures.overlap_figure(shown)
    np.testing.assert_array_equal(figure.data[0].z, shown.overlap)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 0.5)
    assert figure.layout.annotations[0].text == "random level 0.00521"
    wide = figures.overlap_figure(view(r=64))
    assert wide.data[0].z.shape == (20, 24)
    assert wide.layout.annotations[1].text == "first 20 of 64 directions"


def test_the_rank_map_leaves_sites_without_an_adapter_empty():
    figure = figures.effective_rank_figure(rank_map())
    assert np.isnan(figure.data[0].z[0, :5]).all()
    assert np.isnan(figure.data[0].z[1]).all()
    assert figure.data[0].zmax == 8
    assert figure.layout.yaxis.ticktext == ("q", "down")


def test_a_long_loss_keeps_its_ends():
    points = losses(3000)
    steps, values = figures.loss_figure(points).data[0].x, figures.loss_figure(points).data[0].y
    assert len(steps) == 500
    assert (steps[0], steps[-1]) == (1, 3000)
    assert values[0] == pytest.approx(points[0][1])
    assert values[-1] == pytest.approx(points[-1][1])


def test_the_mean_loss_is_the_mean_of_its_neighbours():
    rng = np.random.default_rng(0)
    points = list(enumerate(rng.random(48), 1))  # 48 points: a window of 5
    raw, mean = (np.asarray(trace.y, np.float64) for trace in figures.loss_figure(points).data)
    assert figures.loss_figure(points).data[1].name == "mean of 5 points"
    assert mean[20] == pytest.approx(raw[18:23].mean(), rel=1e-6)
    assert mean[0] == pytest.approx(raw[0])
    assert mean[-1] == pytest.approx(raw[-3:].mean(), rel=1e-6)


def test_memory_bars_add_up_and_show_their_totals():
    figure = figures.memory_figure(budget(), MemoryReading(5, GIB, "CUDA memory"))
    *parts, measured = figure.data
    assert [part.name for part in parts] == ["weights", "gradients", "optimizer", "activations"]
    assert sum(part.x[0] for part in parts) == pytest.approx(2.5)
    assert sum(part.x[1] for part in parts) == pytest.approx(1 + 3 / 256)
    assert measured.x[0] == pytest.approx(1)
    assert "CUDA memory" in measured.hovertemplate
    assert figure.layout.annotations[0].text == "2.50 GiB"


def test_a_measured_peak_is_drawn_in_its_parts_where_they_are_known():
    reading = MemoryReading(5, GIB, "CUDA memory", GIB // 2, GIB // 8, GIB // 8, GIB // 4)
    figure = figures.memory_figure(budget(), reading)
    assert [part.name for part in figure.data] == list(figures.MEMORY_PARTS)
    assert [part.x[2] for part in figure.data] == [0.5, 0.125, 0.125, 0.25]
    assert figure.data[0].y[2] == "measured peak"


def test_summaries_say_what_the_figures_show():
    text = figures.summary(view())
    assert "layers.3.v, step 12: effective rank 3.25 of 8" in text
    assert "0.420 between direction 2 of ΔW and 5 of W₀, random level 0.00521" in text
    assert "Amplification 18.4, along random directions 20.1" in text
    assert "ΔW is zero" in figures.summary(view(zero=True))
    assert "25 matrices: 1.00 to 7.50, mean 4.25; highest at layer 29, q" in figures.map_summary(
        rank_map()
    )
    assert "from 3.000 at step 1 to 1.500 at step 3; lowest 1.400 at step 2" in (
        figures.loss_summary([(1, 3.0), (2, 1.4), (3, 1.5)])
    )
    assert figures.loss_summary([]) == "No step has been trained yet."
    assert "2.50 GiB, this plan 1.01 GiB (−60 %)" in figures.memory_summary(budget())


def test_numbers_keep_three_digits():
    texts = [
        format_number(x)
        for x in (0.0, 3.5, 13, 0.00174, 0.9999, 999.9, 123456.0, 1.2e-6, 2e9, math.nan)
    ]
    assert texts == [
        *("0.00", "3.50", "13.0", "0.00174", "1.00", "1,000", "123,456", "1.20e-06", "2.00e+09"),
        "undefined",
    ]


def test_nothing_is_uploaded_anywhere():
    assert figures.CONFIG["showSendToCloud"] is False
    assert figures.CONFIG["displaylogo"] is False


def test_no_other_core_module_imports_plotly():
    core = Path(lora_lab.__file__).parent
    for path in core.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        if any(name.partition(".")[0] == "plotly" for name in names):
            assert path.parent.name == "figures"
