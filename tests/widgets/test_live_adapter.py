"""What the workbench reads of its adapter, and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import AdapterError
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model

QUICK: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 0,
}


def test_another_adapter_in_the_folder_is_replaced_only_where_that_is_said(
    tmp_path: Path,
) -> None:
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    wb.start().result()
    wb.save(tmp_path / "a")
    wb.save(tmp_path / "a")  # it is the same run's
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    run = wb.start()
    run.result()
    line = rf"a holds another adapter than run {run.id}'s; .* overwrite=True to replace it"
    with pytest.raises(AdapterError, match=line):
        wb.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    wb.save(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() != before
    wb.save(tmp_path / "a")  # its own again
    wb.save(tmp_path / "b")  # and another folder's
