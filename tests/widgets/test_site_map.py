"""The map of effective ranks, without a browser."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lora_lab.anatomy import Anatomy, ModelShape, Row, Site
from lora_lab.anatomy.blocks import blocks_of, site_label
from lora_lab_widgets.site_map import SiteMap

SHAPE = ModelShape("tiny", 8, 3, 16, 2, 2, 4, 50, 32, True, True, 4)


def site(layer: int | None, role: str, stack: str = "") -> Site:
    name = f"{stack}layers.{layer}.{role}" if layer is not None else role
    return Site(name, name, layer, role, 8, 8, stack=stack)


def grid(layers: int = 3, roles: tuple[str, ...] = ("q", "v")) -> Anatomy:
    rows = tuple(Row("", i) for i in range(layers))
    sites = [
        site(row.layer, role) for row in rows for role in roles if (row.layer, role) != (1, "q")
    ]
    blocks = blocks_of(sites, {row: f"layers.{row.layer}" for row in rows})
    return Anatomy((*sites, site(None, "pooler")), roles, blocks, SHAPE, 100)


def test_shows_the_grid_without_what_has_no_layer() -> None:
    shown = SiteMap(grid())
    assert shown.rows == ["0", "1", "2"]
    assert shown.roles == ["q", "v"]
    assert shown.sites == [
        ["layers.0.q", "layer 0 · q", 0, 0],
        ["layers.0.v", "layer 0 · v", 0, 1],
        ["layers.1.v", "layer 1 · v", 1, 1],
        ["layers.2.q", "layer 2 · q", 2, 0],
        ["layers.2.v", "layer 2 · v", 2, 1],
    ]
    assert repr(shown) == "<SiteMap 3 layers × 2 roles>"


@pytest.mark.parametrize(
    ("made", "label"),
    [
        (site(11, "v"), "layer 11 · v"),
        (site(3, "q", "encoder"), "enc 3 · q"),
        (site(0, "cross.q", "decoder"), "dec 0 · cross.q"),
        (site(None, "pooler"), "pooler"),
    ],
)
def test_labels_are_what_people_say(made: Site, label: str) -> None:
    assert site_label(made) == label


def test_values_are_rounded_and_plain() -> None:
    shown = SiteMap(grid())
    shown.values = {"layers.0.q": 3.14159, "layers.2.v": math.nan}
    assert shown.values == {"layers.0.q": 3.1}


def test_the_browser_selects_by_message() -> None:
    shown = SiteMap(grid())
    seen: list[str] = []
    shown.observe(lambda change: seen.append(change["new"]), "selected")
    shown._handle_custom_msg({"type": "select", "site": "layers.2.v"}, [])
    shown._handle_custom_msg({"type": "select", "site": "no such site"}, [])
    assert seen == ["layers.2.v"]


def test_a_typo_is_refused() -> None:
    with pytest.raises(TypeError, match="no setting 'select'; did you mean 'selected'"):
        SiteMap(grid(), select="layers.0.q")


def test_a_message_is_answered() -> None:
    panel = SiteMap(grid())
    sent: list[Any] = []
    panel._send = lambda message, buffers=None: sent.append(message)
    panel._handle_custom_msg({"type": "select", "site": ""}, [])
    assert sent == [{"method": "custom", "content": {"type": "seen", "seq": None}}]
