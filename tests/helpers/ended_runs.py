"""Records of runs that were never trained, as comparisons read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_lab.configs import LoraConfig, method_name
from lora_lab.methods.config import MethodConfig
from lora_lab.runs.records import RunRecord

LORA = LoraConfig(r=2, target_modules=["q", "v"])


def record(
    configs: Sequence[MethodConfig] = (LORA,),
    loss: float | None = 2.0,
    *,
    trainable: int = 100,
    seconds: float = 10.0,
    state: str | None = "done",
    task: str = "mini-e2e",
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **metrics: float,
) -> RunRecord:
    config = {
        "model": {"name": "m", "hub_id": "a/m", "parameters": 9, "dtype": "float32"}
        | (model or {}),
        "task": {"name": task, "synthetic": True},
        "method": method_name(configs),
        "configs": [{"class": type(c).__name__, **c.to_dict()} for c in configs],
        "training": {"learning_rate": 1e-3, "max_steps": 60, "seed": 0} | (training or {}),
    }
    if loss is not None:
        metrics["loss_after"] = loss
    ended = {
        "state": state,
        "seconds": seconds,
        "trainable": trainable,
        "peak_memory": 1000 + trainable,
        "checkpoint_bytes": 4 * trainable,
        "metrics": metrics,
    }
    return RunRecord("id", Path("runs/id"), config, None if state is None else ended)
