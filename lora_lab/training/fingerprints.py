"""Is it the same base and the same data? What a run writes down, and a resume compares."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_lab._util.cpu_layout import undo_cpu_layout
from lora_lab._util.wrapper_tensors import held_tensors
from lora_lab.methods.attached import base_parameters, original_weight
from lora_lab.tasks.framing import LINE

if TYPE_CHECKING:
    from lora_lab.tasks.base import Task

_SAMPLES = 64  # values of each matrix, evenly spaced: another model or another dtype shows in them


def base_fingerprint(model: nn.Module) -> str:
    """Return a hash of the base's shapes, dtypes and some of the values of every matrix.

    Adapters that are on the model, or merged into it, do not count.
    """
    found = hashlib.sha256()
    undo_cpu_layout(model.modules())
    with torch.no_grad():
        for parameter in base_parameters(model):
            found.update(f"{tuple(parameter.shape)} {parameter.dtype};".encode())
            for tensor in held_tensors(original_weight(model, parameter).detach()):
                weight = tensor.reshape(-1)
                if weight.numel():
                    values = weight[:: max(1, weight.numel() // _SAMPLES)].cpu().contiguous()
                    found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def data_fingerprint(task: Task | Any) -> str:
    """Return a hash of all training examples in their order, and of what frames their prompts."""
    template = getattr(task, "template", LINE)
    found = hashlib.sha256(b"" if template == LINE else template.encode())
    for example in task.train:
        text = repr(example)
        if text.startswith("LabeledText("):
            text = f"LabelledText({text.removeprefix('LabeledText(')}"  # so in all older runs
        found.update(text.encode())
    return found.hexdigest()
