"""The map of effective ranks in Chromium: colors, selecting, keys, widths."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from lora_lab.anatomy import Anatomy, ModelShape, Row, Site
from lora_lab.anatomy.blocks import blocks_of
from lora_lab_widgets.site_map import SiteMap
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

SHAPE = ModelShape("tiny", 8, 3, 16, 2, 2, 4, 50, 32, True, True, 4)
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def site_map(layers: int = 12, roles: tuple[str, ...] = ROLES, **kwargs: Any) -> SiteMap:
    sites = tuple(
        Site(f"{i}.{role}", f"{i}.{role}", i, role, 8, 8)
        for i in range(layers)
        for role in roles
        if (i, role) != (2, "k")  # a hole, as in models with different layers
    )
    blocks = blocks_of(sites, {Row("", i): f"{i}" for i in range(layers)})
    return SiteMap(Anatomy(sites, roles, blocks, SHAPE, 1), **kwargs)


def cell(esm: EsmPage, name: str, view: int = 0) -> Locator:
    return esm.view(view).locator(f'[data-site="{name}"]')


def color(esm: EsmPage, name: str) -> list[int]:
    text = cell(esm, name).evaluate("n => getComputedStyle(n).backgroundColor")
    return [int(float(n)) for n in re.findall(r"[\d.]+", text)]


def test_colors_run_from_zero_to_the_largest_rank(esm_page: Make) -> None:
    esm = esm_page(site_map(ranks={"0.q": 8, "1.q": 8}, values={"0.q": 0.0, "1.q": 8.0}))
    assert color(esm, "0.q") == [68, 1, 84]  # matplotlib's viridis, its two ends
    assert color(esm, "1.q") == [253, 231, 37]
    assert color(esm, "3.q") not in ([68, 1, 84], [253, 231, 37])
    expect(esm.view().locator(".ll-map-key")).to_have_text("no ΔW08")


def test_every_cell_says_what_it_is(esm_page: Make) -> None:
    esm = esm_page(site_map(ranks={"11.v": 8, "3.v": 4}, values={"11.v": 3.14}))
    expect(cell(esm, "11.v")).to_have_attribute(
        "aria-label", "layer 11 · v · effective rank 3.1 of 8"
    )
    expect(cell(esm, "3.v")).to_have_attribute(
        "aria-label", "layer 3 · v · rank 4, not trained yet"
    )
    expect(cell(esm, "0.q")).to_have_attribute("aria-label", "layer 0 · q · no adapter")
    caption = esm.view().locator(".ll-map-caption")
    expect(caption).to_have_text("click a cell, or use the arrow keys")
    cell(esm, "11.v").hover()
    expect(caption).to_have_text("layer 11 · v · effective rank 3.1 of 8")
    esm.set(values=site_map(values={"11.v": 4.0}).get_state("values")["values"])
    expect(caption).to_have_text("layer 11 · v · effective rank 4.0 of 8")


def test_a_click_selects_in_every_view(esm_page: Make) -> None:
    esm = esm_page(site_map(), views=2)
    cell(esm, "5.o").click()
    assert esm.sent() == [{"type": "select", "site": "5.o"}]
    assert esm.saves() == []
    for view in (0, 1):
        expect(cell(esm, "5.o", view)).to_have_attribute("aria-selected", "true")
        assert esm.view(view).locator('[aria-selected="true"]').count() == 1
    esm.set(selected="0.v")
    expect(cell(esm, "0.v", 1)).to_have_attribute("aria-selected", "true")


def test_keys_walk_over_the_grid(esm_page: Make) -> None:
    esm = esm_page(site_map(selected="1.k"))
    assert esm.view().locator('[data-site][tabindex="0"]').count() == 1
    esm.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', e => keys.push(e.key)); }"
    )
    cell(esm, "1.k").focus()
    for key, name in [
        ("ArrowRight", "3.k"),  # over the hole
        ("ArrowUp", "3.q"),
        ("ArrowUp", "3.q"),  # at the edge
        ("ArrowDown", "3.k"),
        ("Home", "0.k"),
        ("ArrowLeft", "0.k"),
        ("End", "11.k"),
    ]:
        esm.page.keyboard.press(key)
        assert esm.get("selected") == name, key
        expect(cell(esm, name)).to_be_focused()
    assert esm.page.evaluate("() => keys") == []
    assert esm.view().locator('[data-site][tabindex="0"]').count() == 1


@pytest.mark.parametrize("width", [360, 600, 1000])
@pytest.mark.parametrize(("layers", "roles"), [(12, 6), (30, 7), (96, 12)])
def test_fits(esm_page: Make, width: int, layers: int, roles: int) -> None:
    names = (*ROLES, "cross.q", "cross.k", "cross.v", "cross.o", "extra")[:roles]
    esm = esm_page(site_map(layers, names), width=width)
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width
    axis = esm.view().locator(".ll-map-axis span")
    drawn = axis.filter(has_text=re.compile("."))
    expect(drawn).not_to_have_count(0)  # as soon as its size is known
    labels = axis.evaluate_all(
        "all => all.filter(n => n.textContent).map(n => {"
        "const r = document.createRange(); r.selectNodeContents(n);"
        "const b = r.getBoundingClientRect(); return [b.left, b.right]; })"
    )
    assert len(labels) >= 5
    assert all(a[1] <= b[0] for a, b in pairwise(labels))  # none overlap


def test_names_are_text(esm_page: Make) -> None:
    evil = "<img src=x onerror='window.hacked=1'>"
    esm = esm_page(site_map(3, (evil, "v"), selected=f"1.{evil}"))
    assert esm.view().locator("img").count() == 0
    expect(esm.view().locator(".ll-map-caption")).to_contain_text(evil)


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = esm_page(site_map())
    esm.remove_view(0, by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}
