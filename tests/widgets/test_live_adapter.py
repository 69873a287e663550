"""What the workbench reads of its adapter, and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model

QUICK: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 0,
}


def test_another_adapter_in_the_folder_is_not_replaced_in_silence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    wb.start().result()
    wb.save(tmp_path / "a")
    wb.save(tmp_path / "a")
    assert not [w for w in recwarn if "is replaced" in str(w.message)], "it is the same run's"
    run = wb.start()
    run.result()
    line = rf"a held another adapter, which is replaced; it has run {run.id}'s now"
    with pytest.warns(UserWarning, match=line) as told:
        wb.save(tmp_path / "a")
    assert told[0].filename == __file__
