"""The workbench on a quantized base: priced, trained and looked at, whosever layers it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lab_widgets import Workbench
from tests.helpers.quantized_layers import KINDS, quantize
from tests.helpers.tiny_run import tiny_task, until
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

SITE = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("kind", ["bitsandbytes, 4 bits on a CPU", "GPTQ"])
def test_every_panel_works(kind: str, tmp_path: Path) -> None:
    model: Any = quantize(tiny_llama(), KINDS[kind])
    quick: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_examples": 1}
    wb = Workbench(model, tiny_tokenizer(), task=tiny_task(), output_dir=tmp_path, **quick)

    def look(condition: Any) -> None:
        def looked() -> bool:
            wb.panel._handle({"type": "tick", "seq": "t", "theme": "light", "width": 1000})
            assert not wb.errors
            return bool(condition())

        until(looked)

    assert wb.savings.budget is not None
    assert wb.savings.budget.parameters_total == sum(p.numel() for p in tiny_llama().parameters())
    run = wb.start()
    assert run.wait(60)
    assert run.snapshot.failure is None
    look(lambda: wb.delta_w._map.values)
    wb.delta_w._map._handle({"type": "select", "site": SITE})
    look(lambda: wb.delta_w._view and wb.delta_w._view.site == SITE)
    wb.laboratory._handle({"type": "open", "value": True})
    for view in wb.laboratory._views.values():
        wb.laboratory._handle({"type": "view", "name": view.key})
        look(lambda: not wb.laboratory.panel.state["busy"])
    assert torch.isfinite(torch.tensor(list(wb.delta_w._map.values.values()))).all()
