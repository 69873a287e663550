"""The savings follow the settings that change what a plan costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.configs import LoraConfig
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
