import dataclasses
import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import figures
from lora_lab.figures._base import log_axis
from lora_lab.figures._site_axis import site_axis
from tests.helpers import laboratory_fakes as fakes
from tests.helpers.figure_inputs import contrast


def every_figure(theme, width):
    look = {"theme": theme, "width": width}
    yield figures.spectrum_against_base_figure(fakes.spectrum_view(), **look)
    yield figures.spectrum_against_base_figure(fakes.spectrum_view(zero=True), **look)
    yield figures.phi_figure(fakes.overlap_map(), **look)
    yield figures.phi_figure(fakes.overlap_map(64, 8), **look)
    yield figures.phi_figure(fakes.overlap_map(zero=True), **look)
    yield figures.phi_figure(fakes.overlap_map(), excess=True, **look)
    yield figures.amplification_figure(fakes.amplifications(), **look)
    yield figures.amplification_figure([fakes.amplification(0, "q", r=0)], **look)
    yield figures.amplification_figure([], **look)
    yield figures.step_maps_figure(fakes.step_maps(), 100, **look)
    yield figures.step_maps_figure(fakes.step_maps(), 0, standalone=True, **look)
    yield figures.intruder_figure(fakes.intruders(), **look)
    yield figures.intruder_figure([], **look)
    yield figures.intruder_curve_figure(fakes.intruder_curve(), **look)
    yield figures.intruder_curve_figure(fakes.intruder_curve(0), **look)
    yield figures.sweep_figure(fakes.sweep_map(), **look)
    yield figures.capacity_figure(fakes.capacity(), **look)
    yield figures.capacity_figure(fakes.capacity(None), **look)
    yield figures.method_comparison(fakes.method_comparison(), **look)
    yield figures.method_comparison(fakes.method_comparison(seeds=1), published=False, **look)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_every_figure_is_sized_transparent_and_small(theme, width):
    for figure in every_figure(theme, width):
        layout = figure.layout
        assert layout.width == width
        assert layout.height
        assert layout.paper_bgcolor == "rgba(0,0,0,0)"
        # A slider carries its 60 maps itself.
        assert len(figure.to_json()) < (400_000 if layout.sliders else 300_000)
        json.loads(figure.to_json())
        for trace in figure.data:
            for axis in ("x", "y", "z"):
                array = getattr(trace, axis, None)
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    assert array.dtype == np.float32


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_from_the_page(theme):
    page = {"light": "#ffffff", "dark": "#111318"}[theme]
    for trace in figures.amplification_figure(fakes.amplifications(2), theme=theme).data:
        assert contrast(trace.line.color, page) > 3


@given(st.floats(1e-30, 1e30), st.floats(1, 1e12))
def test_a_logarithmic_axis_holds_its_values_and_has_ticks(low, ratio):
    axis = log_axis(low, low * ratio)
    start, end = axis["range"]
    assert start < math.log10(low)
    assert math.log10(low * ratio) < end
    assert 1 <= len(axis["tickvals"]) <= 7
    assert all(start <= math.log10(tick) <= end for tick in axis["tickvals"])
    assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


def test_the_spectrum_beside_the_base_shows_both_and_the_edge():
    view = fakes.spectrum_view()
    base, delta, edge = figures.spectrum_against_base_figure(view).data
    np.testing.assert_array_equal(base.y, view.weight)
    np.testing.assert_array_equal(delta.y, view.delta)
    assert edge.y == pytest.approx([4.9, 4.9])
    figure = figures.spectrum_against_base_figure(fakes.spectrum_view(zero=True))
    assert len(figure.data[1].y) == 0
    assert "ΔW is zero" in figure.layout.annotations[0].text


def test_values_that_are_rounding_do_not_stretch_the_spectrum():
    view = fakes.spectrum_view()
    broken = dataclasses.replace(view, delta=np.array([2, 1e-12, 0], np.float32))
    figure = figures.spectrum_against_base_figure(broken)
    assert figure.data[1].y.tolist() == [2]
    assert figure.layout.yaxis.range[0] > -1


def test_phi_is_drawn_on_a_scale_from_0_to_1_with_the_random_level():
    overlap = fakes.overlap_map()
    figure = figures.phi_figure(overlap)
    (cells,) = figure.data
    np.testing.assert_array_equal(cells.z, overlap.values)
    assert (cells.zmin, cells.zmax) == (0, 1)
    # 64/576 = 0.111; unrelated subspaces reach 0.05 from 29 directions on, 0.1 from 58.
    assert "random level up to 0.111" in figure.layout.annotations[-1].text
    places = {note.text: note.x for note in figure.layout.annotations[:-1]}
    assert places == {"0.02": 11.5, "0.05": 28.5, "0.1": 57.5}
    assert figure.layout.shapes[-1].path == "M57.5,0.5L57.5,8.5"


def test_the_lines_of_the_random_level_turn_a_corner():
    figure = figures.phi_figure(fakes.overlap_map(64, 64))
    assert figure.layout.shapes[-1].path == "M57.5,0.5L57.5,57.5L0.5,57.5"
    tall = figures.phi_figure(fakes.overlap_map(64, 8))
    assert tall.layout.shapes[-1].path == "M0.5,57.5L8.5,57.5"
    assert {note.text: note.y for note in tall.layout.annotations[:-1]}["0.05"] == 28.5


def test_phi_above_chance_is_zero_where_chance_is():
    overlap = fakes.overlap_map()
    cells = figures.phi_figure(overlap, excess=True).data[0]
    expected = (overlap.values.astype(float) - overlap.random) / (1 - overlap.random)
    np.testing.assert_allclose(cells.z, expected, atol=1e-6)


def test_sites_are_sorted_role_by_role_and_by_layer():
    rows = [fakes.amplification(layer, role) for layer in (2, 0, 1) for role in ("v", "q")]
    axis = site_axis(rows)
    assert axis.order == (2, 4, 0, -1, 3, 5, 1)
    assert axis.layers == (0, 1, 2, None, 0, 1, 2)
    assert axis.groups == (("v", 0, 2), ("q", 4, 6))
    encoder = [fakes.amplification(0, "q", stack=stack) for stack in ("encoder", "decoder")]
    assert [label for label, _, _ in site_axis(encoder).groups] == ["enc q", "dec q"]


def test_layers_are_labelled_where_there_is_room():
    wide = figures.amplification_figure(fakes.amplifications(), width=1000).layout.xaxis
    assert "0" in wide.ticktext
    assert "<br>gate" in wide.ticktext
    narrow = figures.amplification_figure(fakes.amplifications(), width=360).layout.xaxis
    assert narrow.ticktext == fakes.ROLES
    assert not narrow.tickangle
    names = ("query_key_value", "dense_h_to_4h", "dense_4h_to_h")
    long = figures.amplification_figure(fakes.amplifications(1, names), width=360).layout.xaxis
    assert (long.ticktext, long.tickangle) == (names, -45)


def test_table_7_is_drawn_for_every_site_and_a_zero_update_stays_empty():
    rows = [fakes.amplification(0, "q", along_delta=1.5), fakes.amplification(1, "q", r=0)]
    own, delta, random = figures.amplification_figure(rows).data
    np.testing.assert_array_equal(own.y, np.array([20, np.nan], np.float32))
    np.testing.assert_array_equal(delta.y, np.array([1.5, np.nan], np.float32))
    np.testing.assert_array_equal(random.y, np.array([0.51, np.nan], np.float32))
    assert "amplification 2.00" in delta.customdata[0]
    assert "0.510 ± 0.0200" in random.customdata[0]
    low, high = figures.amplification_figure(rows).layout.yaxis.range
    assert 10**low < 0.51 < 20 < 10**high


@pytest.mark.parametrize("kind", [go.Figure, go.FigureWidget])
@pytest.mark.parametrize("width", [360, 1000])
def test_another_step_in_place_equals_a_new_figure(kind, width):
    maps = fakes.step_maps()
    live = kind(figures.step_maps_figure(maps, 0, width=width))
    with live.batch_update():
        figures.update_step_maps(live, maps, 150)
    new = figures.step_maps_figure(maps, 150, width=width)
    assert live.layout == new.layout
    assert live.layout.annotations[-1].text == "step 1,500"
    for old, fresh in zip(live.data, new.data, strict=True):
        np.testing.assert_array_equal(old.z, fresh.z)
    np.testing.assert_array_equal(live.data[0].z, maps.effective_ranks[150])
    np.testing.assert_array_equal(live.data[1].z, maps.relative_sizes[150])


def test_the_maps_of_all_steps_have_one_colour_scale():
    maps = fakes.step_maps()
    for index in (0, 100, 199):
        ranks, sizes = figures.step_maps_figure(maps, index).data
        assert (ranks.zmin, ranks.zmax) == (1, 8)
        assert (sizes.zmin, sizes.zmax) == (0, pytest.approx(0.02))  # the largest is 0.01996


@pytest.mark.parametrize("index", [0, 37, 100, 199, -1, -200])
def test_a_slider_stands_where_the_data_stand(index):
    maps = fakes.step_maps()
    figure = figures.step_maps_figure(maps, index, standalone=True)
    (slider,) = figure.layout.sliders
    ranks, sizes = slider.steps[slider.active].args[0]["z"]
    for cells, drawn in zip(figure.data, (ranks, sizes), strict=True):
        shown = np.array(drawn, np.float64)
        np.testing.assert_allclose(np.asarray(cells.z, np.float64), shown, rtol=1e-3)
    asked = int(maps.steps[index])
    assert abs(int(slider.steps[slider.active].label.replace(",", "")) - asked) <= 20
    with pytest.raises(IndexError):
        figures.step_maps_figure(maps, 200)


def test_a_slider_shows_at_most_60_steps_and_both_ends():
    maps = fakes.step_maps()
    figure = figures.step_maps_figure(maps, 100, standalone=True)
    (slider,) = figure.layout.sliders
    assert len(slider.steps) == 60
    assert [slider.steps[0].label, slider.steps[-1].label] == ["0", "1,990"]
    assert abs(int(slider.steps[slider.active].label.replace(",", "")) - 1000) <= 20
    ranks, sizes = slider.steps[-1].args[0]["z"]
    assert ranks[1][0] is None
    np.testing.assert_allclose(np.array(ranks, float), maps.effective_ranks[-1], rtol=1e-3)
    np.testing.assert_allclose(np.array(sizes, float), maps.relative_sizes[-1], rtol=1e-3)
    few = figures.step_maps_figure(fakes.step_maps(steps=3), 0, standalone=True)
    assert len(few.layout.sliders[0].steps) == 3


def test_intruders_are_told_from_known_directions():
    rows = [fakes.site_intruders(0, "q"), fakes.site_intruders(1, "q", (0.8, 0.6), n=4096)]
    known, intruders, epsilon, random = figures.intruder_figure(rows).data
    assert known.x.tolist() == [0, 0, 1, 1]
    assert known.y == pytest.approx([0.99, 0.9, 0.8, 0.6])
    assert (intruders.x.tolist(), intruders.y.tolist()) == ([0], pytest.approx([0.3]))
    assert "direction 2, σ = 8" in intruders.customdata[0]
    assert set(epsilon.y) == {0.5}
    # √(2 ln 576 / 576) and √(2 ln 4096 / 4096)
    assert random.y == pytest.approx([0.14856, 0.14856, 0.06373, 0.06373], abs=1e-4)


def test_the_curve_of_the_intruders_runs_from_removed_to_as_trained():
    figure = figures.intruder_curve_figure(fakes.intruder_curve())
    task, base = figure.data
    assert task.x.tolist() == base.x.tolist() == [0, 0.5, 1]
    assert task.y == pytest.approx([1.9, 1.5, 1.3])
    assert base.y == pytest.approx([2.3, 2.4, 2.6])
    assert figure.layout.shapes[0].y0 == 2.25
    low, high = figure.layout.yaxis2.range
    assert low < 2.25 < 2.6 < high
    nothing = figures.intruder_curve_figure(fakes.intruder_curve(0))
    assert "nothing to scale" in nothing.layout.annotations[-1].text


@pytest.mark.parametrize(("width", "beside"), [(360, False), (700, True)])
def test_the_two_curves_stand_where_there_is_room(width, beside):
    layout = figures.intruder_curve_figure(fakes.intruder_curve(), width=width).layout
    assert (layout.xaxis.domain[1] < layout.xaxis2.domain[0]) is beside
    assert (layout.yaxis2.domain[1] < layout.yaxis.domain[0]) is not beside


def test_a_sweep_frames_its_best_and_diverged_runs_do_not_stretch_the_colours():
    sweep = fakes.sweep_map()
    figure = figures.sweep_figure(sweep)
    (cells,) = figure.data
    np.testing.assert_array_equal(cells.z, sweep.values)
    frame = figure.layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (1.5, 2.5, 1.5, 2.5)
    assert cells.zmin == pytest.approx(1.31)
    assert cells.zmax == pytest.approx(1.31 + 3 * (1.41 - 1.31), abs=1e-6)  # the median is 1.41
    assert cells.colorbar.ticktext == ("1.31", "1.46", "≥ 1.61")
    assert cells.text[3][4] == "9.70"
    assert cells.text[2][4] == ""
    assert "mean of 2 runs" in cells.customdata[0][0]
    assert figure.layout.xaxis.ticktext == ("1e-4", "3e-4", "1e-3", "3e-3", "0.01")


def test_bright_is_good_whether_low_or_high():
    loss = fakes.sweep_map()
    score = dataclasses.replace(loss, metric="bleu_after", values=-loss.values)
    brightest = {c.lower() for c in ("#fde725",)}
    low, high = (figures.sweep_figure(s).data[0] for s in (loss, score))
    assert low.colorscale[0][1] in brightest
    assert high.colorscale[-1][1] in brightest
    assert figures.sweep_figure(score).data[0].zmax == pytest.approx(-1.31)
    assert figures.sweep_figure(score).data[0].colorbar.ticktext[0] == "≤ -1.61"


def test_a_sweep_without_results_says_so():
    sweep = fakes.sweep_map()
    empty = dataclasses.replace(sweep, values=np.full_like(sweep.values, np.nan))
    texts = [note.text for note in figures.sweep_figure(empty).layout.annotations]
    assert "no run has ended with it" in texts


def test_the_gauge_shows_capacity_and_data_on_one_scale():
    figure = figures.capacity_figure(fakes.capacity())
    assert figure.layout.xaxis.title.text == "Mbit"
    assert figure.data[0].x == pytest.approx([1.8432, 0.15936])
    assert [note.text for note in figure.layout.annotations] == [
        "1.84 Mbit",
        "159 kbit (8.65 %)",
    ]
    unknown = figures.capacity_figure(fakes.capacity(None))
    assert unknown.layout.annotations[1].text == "not known yet"


def test_markup_in_names_is_shown_and_not_obeyed():
    evil = '<a href="https://example.org">x</a>'
    maps = dataclasses.replace(fakes.step_maps(2, 2, ("q", evil)), layers=("0", evil))
    drawn = [
        figures.amplification_figure([fakes.amplification(0, evil, name=evil)]),
        figures.intruder_figure([fakes.site_intruders(0, evil, name=evil)]),
        figures.phi_figure(dataclasses.replace(fakes.overlap_map(), first=evil, second=evil)),
        figures.step_maps_figure(maps, 0),
        figures.sweep_figure(fakes.sweep_map(metric=evil)),
    ]
    for figure in drawn:
        text = json.dumps(figure.to_dict(), default=lambda array: array.tolist())
        assert "&lt;a href" in text
        assert "<a href" not in text
