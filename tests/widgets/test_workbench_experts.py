"""The workbench on routed experts, and on models with linear layers outside the blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.anatomy import anatomy
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import ranks as ranks_of
from lora_lab_widgets import Workbench
from lora_lab_widgets.rank_grid import RankGrid
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_experts import tiny_experts
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

QUICK: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_examples": 0}
DOWN = "model.layers.1.mlp.experts.down_proj"
HELD = {DOWN: 2, "model.layers.1.mlp.experts.gate_up_proj": 3}


def bench(name: str, folder: Path) -> Workbench:
    tokenizer = tiny_tokenizer()
    model: Any = tiny_experts(name, vocab_size=max(99, len(tokenizer)))
    return Workbench(model, tokenizer, task=tiny_task(), output_dir=folder, **QUICK)


@pytest.fixture
def wb(tmp_path: Path) -> Iterator[Workbench]:
    made = bench("mixtral", tmp_path)
    yield made
    if made.run is not None and not made.run.state.final:
        made.run.stop()
        made.run.wait(60)


def tick_until(wb: Workbench, condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        wb.panel._handle({"type": "tick", "seq": "t", "theme": "light", "width": 1000})
        assert not wb.errors
        if condition():
            return
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def trained(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_cell_of_experts_says_how_many_it_has(wb: Workbench) -> None:
    (cell,) = (cell for cell in wb.grid.cells if cell["site"] == DOWN)
    assert (cell["experts"], cell["shape"], cell["max_rank"]) == (4, [32, 48], 32)
    several = [cell["role"] for cell in wb.grid.cells if "experts" in cell]
    assert several == ["experts.gate_up_proj", "experts.down_proj"] * 2


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "qwen3-moe"])
def test_painted_experts_are_target_parameters(name: str, tmp_path: Path) -> None:
    wb = bench(name, tmp_path)
    wb.grid.ranks = {**wb.grid.ranks, **HELD}
    config = wb.config
    assert isinstance(config, ll.LoraConfig)
    assert set(config.target_parameters) == set(HELD)
    assert tuple(config.target_modules) == ("q", "v")
    assert ranks_of(wb.anatomy, config) == wb.grid.ranks
    copied: dict[str, Any] = {}
    exec(wb.grid.code, copied)  # what "copy as Python" copies
    ll.attach(wb.lm.model, copied["config"])
    # r · (in + out) of q and v in both layers, and of the four experts of each tensor in one.
    linear = 2 * 8 * ((32 + 32) + (32 + 16))
    wide = wb.anatomy.by_name[DOWN].in_features
    experts = 4 * 2 * (wide + 32) + 4 * 3 * (32 + 2 * wide)
    assert trained(wb.lm.model) == linear + experts
    assert wb.savings.budget is not None
    assert wb.savings.budget.parameters_trainable == linear + experts
    ll.detach(wb.lm.model)


def test_panels_look_at_every_expert(wb: Workbench) -> None:
    wb.grid.ranks = {**wb.grid.ranks, **HELD}
    run = wb.start()
    run.wait(60)
    assert run.snapshot.failure is None
    tick_until(wb, lambda: wb.delta_w._map.values)
    names = [name for _, name in wb.delta_w._picker.options]
    assert len(names) == 4 + 2 * 4
    assert ("layer 1 · experts.3.down_proj", f"{DOWN}[3]") in wb.delta_w._picker.options
    assert wb.delta_w._map.ranks[DOWN] == 2
    assert 1 <= wb.delta_w._map.values[DOWN] <= 2
    wb.grid.selected = DOWN  # a cell stands for its first expert
    assert wb.session.site == f"{DOWN}[0]"
    wb.delta_w._picker.value = f"{DOWN}[3]"
    assert (wb.session.site, wb.delta_w._map.selected) == (f"{DOWN}[3]", DOWN)
    tick_until(wb, lambda: wb.delta_w._view and wb.delta_w._view.site == f"{DOWN}[3]")
    wb.laboratory._handle({"type": "open", "value": True})
    for view in wb.laboratory._views.values():
        wb.laboratory._handle({"type": "view", "name": view.key})
        if view.of_one_site:
            assert view.values["site"] == f"{DOWN}[3]"
        tick_until(wb, lambda: not wb.laboratory.panel.state["busy"])
    wb.delta_w._map._handle({"type": "select", "site": "model.layers.1.mlp.experts.gate_up_proj"})
    assert wb.session.site == "model.layers.1.mlp.experts.gate_up_proj[0]"


def test_a_method_without_target_parameters_says_so(wb: Workbench) -> None:
    wb.grid.ranks = {**wb.grid.ranks, **HELD}
    wb.plan.merge({"method": "AdaLoRA"})
    line = "AdaLoRA has no target_parameters, and model.layers.1.mlp.experts"
    assert wb.plan.planned.line.startswith(line)
    with pytest.raises(ConfigError, match="clear its cell"):
        wb.start()
    assert wb.run is None
    wb.grid.ranks = {name: r for name, r in wb.grid.ranks.items() if name not in HELD}
    assert wb.plan.planned.error == ""


def test_targets_without_a_cell_are_kept_as_given(wb: Workbench) -> None:
    config = ll.LoraConfig(r=2, target_modules=["q", "lm_head"], target_parameters=["gate.weight"])
    wb.config = config
    assert wb.config == config
    assert "was set from Python" in wb.grid.inert
    wb.config = ll.LoraConfig(r=2, target_modules=["q"])
    assert wb.grid.inert == ""


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_all_linear_shows_what_it_trains(name: str) -> None:
    model, config = tiny(name), ll.LoraConfig(r=2, target_modules="all-linear")
    own = anatomy(model)
    grid = RankGrid.from_anatomy(own, ranks_of(own, config))
    ll.attach(model, config)
    shapes = {cell["site"]: cell["shape"] for cell in grid.cells}
    assert trained(model) == sum(r * sum(shapes[name]) for name, r in grid.ranks.items())
    assert (grid.rows[-1] == "outside") == (name != "llama")
    assert grid.fallback_html().count("<tr") == len(grid.rows) + 1


def test_a_pooler_is_painted_and_trains(tmp_path: Path) -> None:
    lm = tiny_classifier("bert")
    config = ll.LoraConfig(r=2, target_modules="all-linear")
    wb = Workbench(lm, task=tiny_classes(8, 4), config=config, output_dir=tmp_path, **QUICK)
    (cell,) = (cell for cell in wb.grid.cells if cell["row"] == len(wb.anatomy.rows))
    assert wb.grid.ranks[cell["site"]] == 2
    assert "bert.pooler.dense" in cell["site"]
    wb.grid.ranks = {cell["site"]: 2}
    run = wb.start()
    run.wait(60)
    assert run.snapshot.failure is None
    assert list(ll.attached(lm.model)["default"].sites) == [cell["site"]]
    tick_until(wb, lambda: wb.delta_w._view is not None)
