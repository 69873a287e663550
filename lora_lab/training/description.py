"""What a run was made of, as its config.json tells it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from lora_lab.methods.head.adapter import head_parameters
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.plain import method_to_dict
from lora_lab.models.load import model_source
from lora_lab.tasks.families.classification import in_order
from lora_lab.tasks.sources import task_source
from lora_lab.training import processes
from lora_lab.training.fingerprints import base_fingerprint, body_fingerprint, task_fingerprints

if TYPE_CHECKING:
    from lora_lab.training.run import Run

_PACKAGES = ("lora-lab", "torch", "transformers", "accelerate", "safetensors", "numpy")


def describe(run: Run, base: str | None = None) -> dict[str, Any]:
    """Return what a run was made of, as plain JSON: model, task, configs, versions.

    Args:
        run: started or not.
        base: the base model's fingerprint, if it was taken before.
    """
    lm, task, config, start = run.lm, run.task, run.config, run.start_from
    base = base or base_fingerprint(lm.model)
    sources: dict[str, Any] = {"model": model_source(lm, task.head), "task": task_source(task)}
    if start is not None:
        sources["start_from"] = str(start.folder)
    if (kept_data := run.training.kept_data) is not None:
        sources["kept_data"] = kept_data
    return {
        "id": run.id,
        "model": dataclasses.asdict(lm.card),
        "task": {
            "name": task.name,
            "synthetic": task.synthetic,
            "examples": len(task.train),
            "loss_unit": task.loss_unit,
            **({"framing": task.framing} if task.framing else {}),
            **({"notes": list(task.notes)} if task.notes else {}),
            **_head(run),
        },
        "method": config.method,
        # LoRA alone, as the sweep map and other readers of the ranks want it.
        **({"lora": config.to_dict()} if isinstance(config, LoraConfig) else {}),
        "configs": [method_to_dict(part) for part in config.parts],
        "training": run.training.to_dict(),
        "processes": processes.count(),
        "versions": {**_versions()},
        **({} if start is None else {"start_from": start.to_dict()}),
        "sources": sources,
        "fingerprints": {
            "base": base,
            "body": body_fingerprint(lm.model, base),
            **task_fingerprints(task),
        },
    }


def _head(run: Run) -> dict[str, Any]:
    """Return what is said of the head that the task needs, if it needs one."""
    # The parameters are trained, and not in the paper's counts.
    head = run.task.head
    if not head:
        return {}
    labels = head.get("labels")
    order = {"classes": in_order(run.model.config, labels)} if labels else {}
    return {**head, **order, "head_parameters": head_parameters(run.model)}


@functools.cache  # each is a file to be read
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
