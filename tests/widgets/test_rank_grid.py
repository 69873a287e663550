"""The rank grid's Python side and the manners that it has from Panel, without a browser."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from lora_lab.anatomy import Anatomy, ModelShape, Row, Site
from lora_lab.anatomy.blocks import blocks_of
from lora_lab.errors import ConfigError
from lora_lab_widgets.panel import STATIC
from lora_lab_widgets.rank_grid import RankGrid


def make_anatomy(layers: int = 3, name: str = "layers") -> Anatomy:
    """Roles q, v and up; the last layer has no up."""
    shapes = {"q": (64, 64), "v": (16, 64), "up": (128, 64)}
    sites = tuple(
        Site(f"{name}.{i}.{role}", f"{name}.{i}.{role}", i, role, in_features=k, out_features=d)
        for i in range(layers)
        for role, (d, k) in shapes.items()
        if (i, role) != (layers - 1, "up")
    )
    pooler = Site("pooler", "pooler", None, "pooler", in_features=64, out_features=64)
    shape = SimpleNamespace(spec=ModelShape)
    blocks = blocks_of(sites, {Row("", i): f"{name}.{i}" for i in range(layers)})
    return Anatomy((*sites, pooler), tuple(shapes), blocks, shape, 0)  # type: ignore[arg-type]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every state that a widget sends to the browser."""
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(
        RankGrid, "_send", lambda self, message, buffers=None: states.append(message["state"])
    )
    return states


def test_cells_are_the_sites_of_the_layers_and_the_linear_layers_outside() -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8})
    assert grid.rows == ["0", "1", "2", "outside"]
    assert grid.roles == ["q", "v", "up", "pooler"]
    assert len(grid.cells) == 9
    assert grid.cells[1] == {
        "row": 0,
        "role": "v",
        "site": "layers.0.v",
        "shape": [16, 64],
        "max_rank": 16,
    }
    assert (grid.cells[-1]["row"], grid.cells[-1]["site"]) == (3, "pooler")
    assert grid.ranks == {"layers.0.q": 8}
    json.dumps(grid.get_state(["rows", "roles", "cells", "ranks"]))


def test_zeros_are_left_out() -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 0, "layers.1.q": 2})
    assert grid.ranks == {"layers.1.q": 2}


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            {"layers.0.w": 8},
            "'layers.0.w', which is no matrix of this model; did you mean 'lay",
        ),
        ({"nonsense": 8}, "'nonsense', which is no matrix of this model; see .cells"),
        ({"layers.0.v": 17}, r"rank 17 at layers.0.v \(16 × 64\) is above min.*use at most 16"),
        ({"layers.0.v": -1}, r"ranks\['layers.0.v'\] is -1; a rank is a whole number"),
        ({"layers.0.v": 2.5}, r"ranks\['layers.0.v'\] is 2.5; a rank is a whole number"),
        ({"layers.0.v": True}, r"ranks\['layers.0.v'\] is True; a rank is a whole number"),
    ],
)
def test_ranks_that_cannot_be_are_refused_and_the_old_ones_stay(
    ranks: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RankGrid.from_anatomy(make_anatomy(), ranks=ranks)
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8})
    with pytest.raises(ConfigError, match=message):
        grid.ranks = ranks
    assert grid.ranks == {"layers.0.q": 8}


def test_paint_from_the_browser_reaches_observers_once() -> None:
    grid = RankGrid.from_anatomy(make_anatomy())
    seen: list[Any] = []
    grid.observe(lambda change: seen.append(change.new), "ranks")
    grid.set_state({"ranks": {"layers.0.q": 4}, "selected": "layers.0.q"})
    assert seen == [{"layers.0.q": 4}]
    assert grid.selected == "layers.0.q"


def test_another_anatomy_goes_out_in_one_message(sent: list[dict[str, Any]]) -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8}, selected="layers.0.q")
    seen: list[Any] = []
    grid.observe(lambda change: seen.append(change.new), "ranks")
    sent.clear()
    grid.show_anatomy(make_anatomy(2, name="blocks"), ranks={"blocks.1.q": 2})
    assert seen == [{"blocks.1.q": 2}]
    assert grid.selected == ""
    assert [set(state) for state in sent] == [{"rows", "cells", "ranks", "selected"}]


def test_another_anatomy_with_impossible_ranks_changes_nothing() -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8})
    with pytest.raises(ConfigError, match=r"no matrix of this model"):
        grid.show_anatomy(make_anatomy(2, name="blocks"), ranks={"layers.0.q": 8})
    assert grid.ranks == {"layers.0.q": 8}
    assert len(grid.rows) == 4


def test_code_goes_out_with_the_ranks_it_is_for(sent: list[dict[str, Any]]) -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8})
    sent.clear()
    grid.set_code("ll.LoraConfig()")
    assert sent == [{"code": "ll.LoraConfig()"}, {"coded_ranks": {"layers.0.q": 8}}]


def test_unknown_settings_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"RankGrid has no setting 'rnks'; did you mean 'ranks'\?"):
        RankGrid(rnks={})
    with pytest.raises(TypeError, match=r"no setting 'zzz'; known: bench, bytes_per_parameter"):
        RankGrid(zzz=1)


def test_repr_is_short_and_plain() -> None:
    grid = RankGrid.from_anatomy(make_anatomy(), ranks={"layers.0.q": 8, "layers.1.q": 4})
    assert repr(grid) == "<RankGrid 2 of 9 matrices, r 4 8>"
    assert repr(RankGrid()) == "<RankGrid 0 of 0 matrices>"


def test_fallback_is_an_escaped_table() -> None:
    cell = {"row": 0, "role": "<q>", "site": "<s>", "shape": [8, 8], "max_rank": 8}
    grid = RankGrid(rows=["<0>"], roles=["<q>", "v"], cells=[cell], ranks={"<s>": 2})
    data, _ = grid._repr_mimebundle_()
    assert data["text/plain"] == repr(grid)
    assert "application/vnd.jupyter.widget-view+json" in data
    table = data["text/html"]
    cells = re.findall(r"<(th|td)([^>]*)>([^<]*)</", table.partition("<tbody>")[2])
    assert [(tag, text) for tag, _, text in cells] == [
        ("th", "&lt;0&gt;"),
        ("td", "2"),
        ("td", "–"),
    ]
    assert 'scope="row"' in cells[0][1]
    assert "<q>" not in table
    assert "<0>" not in table


def test_assets_are_the_shared_files_then_the_panels_own() -> None:
    esm = RankGrid()._esm
    order = [esm.index(text) for text in ("function themeOf", "class RankStore", "export default")]
    assert order == sorted(order)
    css = RankGrid()._css
    assert css.index(".ll-panel {") < css.index(".ll-rank-cell {")


def test_no_panel_reaches_for_the_network_or_for_markup() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "http" not in text.replace("https and localhost", ""), path.name
        assert "innerHTML" not in text, path.name


def test_the_browser_gets_little() -> None:
    """What opening the widget sends, of a model as large as GPT-3 (96 layers), stays small.

    The texts of its "?" are a tenth of it.
    """
    grid = RankGrid.from_anatomy(make_anatomy(96))
    assert len(json.dumps(grid.get_state(grid.keys), default=str)) < 120_000
