"""The savings follow the settings that change what a plan costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.configs import BitFitConfig, LoraConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.planned_cost import planned_cost
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model

QUICK: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 0,
}


@pytest.fixture
def wb(tmp_path: Path) -> Workbench:
    return Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)


def trained(config: LoraConfig) -> int:
    """Count what an adapter of this config trains on the model itself."""
    adapter = ll.attach(tiny_chat_model()[0], config)
    return sum(p.numel() for p in dict.fromkeys(adapter.parameters()) if p.requires_grad)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_lora_weights": "PiSSA"},
        {"gradient_checkpointing": True},
        {"modules_to_save": "lm_head"},
        {"modules_to_save": "model.norm, embed_tokens"},
        {"modules_to_save": "layers.1.mlp"},
    ],
)
def test_what_is_trained_and_kept_is_in_the_price(wb: Workbench, settings: dict[str, Any]) -> None:
    before = wb.savings.budget
    wb.panel._handle({"type": "settings", "seq": "s", "settings": settings})
    assert wb.panel.plan["wrong"] == {}
    shown = wb.savings.budget
    assert shown is not None
    assert before is not None
    config = wb.config
    assert isinstance(config, LoraConfig)
    assert shown.parameters_trainable == trained(config)
    assert shown.adapted == ll.budget(wb.anatomy, config, **wb.plan.planned.price.inputs).adapted
    assert shown.adapted != before.adapted


def test_a_recomputed_plan_is_said_to_be_one(wb: Workbench) -> None:
    assert "recomputed" not in wb.savings.settings_text
    wb.panel._handle({"type": "settings", "seq": "s", "settings": {"gradient_checkpointing": True}})
    assert wb.savings.settings_text.endswith("AdamW, recomputed")


def test_a_wrong_length_leaves_the_price_as_it_was(wb: Workbench) -> None:
    before = wb.savings.settings_text
    wb.panel._handle({"type": "settings", "seq": "s", "settings": {"max_length": "long"}})
    assert wb.savings.settings_text == before


def test_bench_report_and_notebook_have_one_forecast(wb: Workbench) -> None:
    """The same batch, the same length: what the browser draws, `wb.budget`, and a run's report."""
    shown = wb.budget
    assert shown is not None
    training = TrainingConfig.from_dict(wb.plan.training(wb.plan.typed()))
    assert shown == planned_cost(wb.lm, wb.task, wb.config, training)
    assert shown.adapted == wb.savings.budget.adapted  # type: ignore[union-attr]
    assert shown.longest in wb.savings.lengths["most"]
    assert shown.longest.split(" ")[0] in wb.savings.settings_text


def test_steps_and_seed_change_what_is_expected_and_nothing_else(tmp_path: Path) -> None:
    rows = [("a" * (8 + i % 5), "b") for i in range(59)] + [("a" * 60, "b")]
    wb = Workbench(*tiny_chat_model(), task=rows, output_dir=tmp_path, **QUICK)
    price, lengths = wb.savings.price, wb.savings.lengths
    assert 0 < lengths["share"] < 1
    assert lengths["drawn"].endswith("the longest of the 8 examples that the steps draw")
    wb.savings.note_run()
    wb.panel._handle({"type": "settings", "seq": "s", "settings": {"max_steps": 30}})
    assert wb.savings.lengths["drawn"] == ""
    assert wb.savings.lengths["share"] == 1
    assert wb.savings.price is price, "no dry run is forgotten"
    assert wb.savings.run_ranks == {}, "a run before drew others"
    wb.panel._handle({"type": "settings", "seq": "s", "settings": {"max_steps": "many"}})
    assert wb.savings.price is price
    wb.plan.take(BitFitConfig(new_biases=True), max_steps=2)
    assert wb.savings.lengths["drawn"].endswith("of the 4 examples that the steps draw")
    assert wb.savings.lengths["share"] < 1


def test_a_grid_that_is_cleared_and_painted_again_is_the_plan_that_was_measured(
    wb: Workbench,
) -> None:
    painted = dict(wb.grid.ranks)
    wb.savings.note_run()
    wb.grid.ranks = {}
    assert wb.savings.lengths == {}, "there is no plan"
    wb.grid.ranks = painted
    assert wb.savings.lengths["most"]
    assert wb.savings.run_ranks == painted
