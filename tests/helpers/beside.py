"""Cells that run in the midst of a run's passes, as they may beside a run: none may be noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lora_lab as ll
from lora_lab.models import LoadedModel

Cell = Callable[[Any], object]
_IN_EVALUATIONS = 1


def in_the_midst(model: nn.Module, cell: Cell) -> list[int]:
    """Have a thread call `cell(model)` within passes of a run, before the last block of a stack.

    Within every pass that trains, and within the first ones of evaluations.

    Returns:
        Grows by one with every call of the cell.
    """
    calls: list[int] = []
    errors: list[BaseException] = []

    def meanwhile(block: nn.Module, *_: Any) -> None:
        if not threading.current_thread().name.startswith("lora-lab"):
            return  # the cell's own pass
        if len(calls) > _IN_EVALUATIONS and not block.training:
            return
        thread = threading.Thread(target=called)
        thread.start()
        thread.join()
        calls.append(1)
        if errors:
            raise errors[0]

    def called() -> None:
        try:
            cell(model)
        except BaseException as error:
            errors.append(error)

    blocks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    for stack in blocks:
        list(stack)[-1].register_forward_pre_hook(meanwhile)
    assert blocks
    return calls


def outcome(
    lm: LoadedModel, task: Any, config: Any, folder: Path, cell: Cell | None = None, **training: Any
) -> tuple[Any, ...]:
    """Return losses, metrics, answers and what is learned, bit by bit, of a run, maybe with a cell
    beside it.
    """
    calls = [1] if cell is None else in_the_midst(lm.model, cell)
    settings = {
        "max_steps": 2, "max_length": 32, "per_device_train_batch_size": 2, "eval_examples": 1,
        "save_steps": 0, "learning_rate": 1e-2,
    }  # fmt: skip
    run = ll.train(lm, task, config, output_dir=folder, **{**settings, **training})
    result = run.result(120)
    assert calls
    learned = [bits(parameter) for parameter in run.adapter.parameters()]
    return result.losses, result.metrics, [sample.adapted for sample in run.samples], learned


def bits(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes."""
    return tensor.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes()
