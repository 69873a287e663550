"""A plotly figure in Chromium, with plotly.js as the package brings it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest
from playwright.sync_api import expect

from lora_lab import figures
from lora_lab_widgets.plot import Plot
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]


def bars(*heights: float | None) -> go.Figure:
    return go.Figure(go.Bar(y=heights), {"height": 150, "width": 300})


def opened(make: Make, figure: go.Figure | None = None, source: str | None = None) -> EsmPage:
    plot = Plot()
    plot.bring()
    if figure is not None:
        plot.show(figure)
    esm = make(plot, views=0)
    bring(esm, source or figures.plotly_js())
    esm.add_view()
    return esm


def bring(esm: EsmPage, source: str, id_: str = "") -> None:
    esm.page.evaluate(
        "([id, source]) => lab.give(id, { source })",
        [id_ or esm.get("library").removeprefix("IPY_MODEL_"), source],
    )


def heights(esm: EsmPage, view: int = 0) -> Any:
    return esm.page.evaluate(
        "view => document.querySelector(`[data-view='${view}'] .ll-plot`).data?.[0]?.y", view
    )


def test_a_figure_is_drawn_and_the_next_one_takes_its_place(esm_page: Make) -> None:
    esm = opened(esm_page, bars(1, 2, 3))
    drawn = esm.view().locator(".barlayer .point")
    expect(drawn).to_have_count(3)
    size = esm.view().locator(".main-svg").first.bounding_box()
    assert size is not None
    assert (size["width"], size["height"]) == (300, 150)
    esm.set(figure=bars(4, 1).to_json())
    expect(drawn).to_have_count(2)
    assert heights(esm) == [4, 1]


def test_nothing_is_left_of_the_figure_before(esm_page: Make) -> None:
    first = bars(1, 2)
    first.update_layout(title_text="before", shapes=[{"type": "line", "x0": 0, "x1": 1}])
    esm = opened(esm_page, first)
    expect(esm.view().get_by_text("before")).to_be_visible()
    esm.set(figure=go.Figure(go.Scatter(y=[1, 2]), {"height": 120, "width": 300}).to_json())
    expect(esm.view().locator(".scatterlayer .lines")).to_have_count(1)
    expect(esm.view().get_by_text("before")).to_have_count(0)
    expect(esm.view().locator(".shapelayer path")).to_have_count(0)


def test_gaps_are_gaps_in_a_map(esm_page: Make) -> None:
    figure = go.Figure(go.Heatmap(z=[[1.0, float("nan")]]), {"height": 150, "width": 300})
    esm = opened(esm_page, figure)
    expect(esm.view().locator(".heatmaplayer image")).to_have_count(1)
    assert json.loads(esm.get("figure"))["data"][0]["z"] == [[1.0, None]]


def test_a_library_that_comes_late_draws_the_newest_figure(esm_page: Make) -> None:
    plot = Plot()
    plot.bring()
    esm = esm_page(plot, views=0)
    esm.page.evaluate(
        "id => { lab.models[id] = new Promise((done) => { lab.arrive = done; }); }",
        esm.get("library").removeprefix("IPY_MODEL_"),
    )
    esm.add_view()
    for count in (1, 2, 3):
        esm.set(figure=bars(*range(count)).to_json())
    esm.page.wait_for_timeout(2_500)  # longer than anywidget waits for a module
    expect(esm.view().locator(".main-svg")).to_have_count(0)
    esm.page.evaluate("source => lab.arrive({ source })", figures.plotly_js())
    expect(esm.view().locator(".barlayer .point")).to_have_count(3)
    assert heights(esm) == [0, 1, 2]


def test_a_library_that_fails_is_said_and_asked_for_again(esm_page: Make) -> None:
    esm = opened(esm_page, bars(1), source="throw new Error('half a file')")
    place = esm.view().locator(".ll-plot")
    expect(place).to_have_attribute("data-problem", "This figure cannot be drawn: half a file")
    bring(esm, figures.plotly_js())
    esm.set(figure=bars(1, 2).to_json())
    expect(esm.view().locator(".barlayer .point")).to_have_count(2)
    expect(place).not_to_have_attribute("data-problem", "This figure cannot be drawn: half a file")


def test_the_pages_own_plotly_stays(esm_page: Make) -> None:
    plot = Plot()
    plot.show(bars(1))
    esm = esm_page(plot, views=0)
    bring(esm, figures.plotly_js())
    esm.page.evaluate("() => { window.Plotly = 'its own'; window.define = () => {}; }")
    esm.page.evaluate("() => { window.define.amd = {}; }")
    esm.add_view()
    expect(esm.view().locator(".barlayer .point")).to_have_count(1)
    assert esm.page.evaluate("() => window.Plotly") == "its own"


def test_two_views_share_one_library_and_leave_nothing_behind(esm_page: Make) -> None:
    esm = opened(esm_page, bars(1, 2))
    esm.add_view()
    for view in (0, 1):
        expect(esm.view(view).locator(".barlayer .point")).to_have_count(2)
    esm.remove_view(1)
    esm.set(figure=bars(5).to_json())
    expect(esm.view(0).locator(".barlayer .point")).to_have_count(1)
    esm.remove_view(0)
    assert esm.open_ends()["model"] == 0
    assert esm.page.evaluate("() => document.querySelectorAll('.main-svg').length") == 0


def test_a_library_that_is_brought_later_draws_what_waits(esm_page: Make) -> None:
    esm = esm_page(Plot())
    esm.set(figure=bars(1).to_json())
    esm.page.wait_for_timeout(200)
    expect(esm.view().locator(".main-svg")).to_have_count(0)
    esm.set(figure=bars(1, 2).to_json())
    library = esm.get("library").removeprefix("IPY_MODEL_")
    assert esm.sent() == [{"to": library, "type": "source"}], "asked for once"
    bring(esm, figures.plotly_js())
    expect(esm.view().locator(".barlayer .point")).to_have_count(2)


def test_a_figure_that_fills_its_place_follows_it(esm_page: Make) -> None:
    plot = Plot(fills=True)
    plot.show(bars(1, 2))
    esm = esm_page(plot, views=0)
    bring(esm, figures.plotly_js())
    esm.add_view()
    width = """width => {
        const place = document.querySelector("[data-view]");
        if (width) place.style.width = `${width}px`;
        return document.querySelector(".main-svg")?.getBoundingClientRect().width;
    }"""
    expect(esm.view().locator(".barlayer .point")).to_have_count(2)
    for room in (420, 260):
        esm.page.evaluate(width, room)
        esm.page.wait_for_function(f"() => ({width})(0) === {room}")
    esm.set(figure=bars(3, 1, 2).to_json())
    expect(esm.view().locator(".barlayer .point")).to_have_count(3)
    assert esm.page.evaluate(width, 0) == 260


def test_a_figure_that_is_cleared_leaves_its_place(esm_page: Make) -> None:
    esm = opened(esm_page, bars(1, 2))
    place = esm.view().locator(".ll-plot")
    expect(esm.view().locator(".barlayer .point")).to_have_count(2)
    esm.set(figure="")
    expect(esm.view().locator(".main-svg")).to_have_count(0)
    size = place.bounding_box()
    assert size is not None
    assert size["height"] == 150
    esm.set(figure=bars(1, 2, 3).to_json())
    expect(esm.view().locator(".barlayer .point")).to_have_count(3)


def test_a_figure_that_fills_its_place_is_not_tried_again_without_end(esm_page: Make) -> None:
    plot = Plot(fills=True)
    plot.show(bars(1))
    esm = esm_page(plot, views=0)
    bring(esm, "throw new Error('half a file')")
    esm.page.evaluate(
        "() => { lab.tries = 0; const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => { lab.tries += 1; return make.call(URL, blob); }; }"
    )
    esm.add_view()
    place = esm.view().locator(".ll-plot")
    expect(place).to_have_attribute("data-problem", "This figure cannot be drawn: half a file")
    esm.page.wait_for_timeout(300)
    assert esm.page.evaluate("() => lab.tries") <= 3  # drawing, and loading while at rest
    esm.set(figure="")
    expect(place).not_to_have_attribute("data-problem", "This figure cannot be drawn: half a file")
