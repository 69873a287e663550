"""What a step looks at is counted, not timed: no more looks a parameter than are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab._util import own_gradients
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

# Two to clip, two to scale, three of AdamW's, one that asks whether none was dropped, the meter's.
LOOKS = 9


class Counting:
    """Stands in the place of torch's `grad`, and counts who reads it."""

    def __init__(self, real: Any) -> None:
        self.real, self.reads = real, 0

    def __get__(self, parameter: Any, kind: Any = None) -> Any:
        self.reads += 1
        return self.real.__get__(parameter)

    def __set__(self, parameter: Any, gradient: Any) -> None:
        self.real.__set__(parameter, gradient)


def reads(steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    counting = Counting(own_gradients._GRAD)
    monkeypatch.setattr(own_gradients, "_GRAD", counting)
    settings: dict[str, Any] = {"max_steps": steps, "save_steps": 0, "eval_examples": 0}
    run = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=folder, **settings)
    run.result(120)
    monkeypatch.undo()
    assert run.adapter is not None
    return counting.reads, len([*run.adapter.parameters()])


def test_a_step_reads_each_gradient_a_few_times(tmp_path, monkeypatch):
    few, parameters = reads(2, tmp_path / "few", monkeypatch)
    many, _ = reads(7, tmp_path / "many", monkeypatch)
    assert 0 < many - few <= 5 * LOOKS * parameters
