"""LoRA Lab: a Jupyter-native workbench for low-rank adaptation.

The names below are the public face. Most are imported when they are first used, so that
``import lora_lab`` costs little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Imported at once, and light: these functions have the names of their modules, and Python would
# put the module in the function's place the first time that anything imports it.
from lora_lab.anatomy import anatomy
from lora_lab.budget import budget

if TYPE_CHECKING:
    from lora_lab.adapters import (
        activate,
        active,
        attach,
        attached,
        combine,
        detach,
        merge,
        mixed_batch,
        unmerge,
    )
    from lora_lab.analysis import analyze
    from lora_lab.budget.dry_run import dry_run
    from lora_lab.checkpoint import (
        export_merged,
        export_uniform,
        load_adapter,
        load_loralib,
        push_ready,
        save_adapter,
        save_loralib,
    )
    from lora_lab.configs import (
        AdaLoraConfig,
        BitFitConfig,
        BottleneckConfig,
        FullConfig,
        HeadConfig,
        LoraConfig,
        PrefixEmbedConfig,
        PrefixLayerConfig,
        TrainingConfig,
    )
    from lora_lab.errors import LoraLabError
    from lora_lab.models import LoadedModel, catalogue, load_model
    from lora_lab.runs import Run, resume, runs, train
    from lora_lab.sweeps import AshaConfig, sweep
    from lora_lab.tasks import load_task

__version__ = "0.1.0"

_HOMES = {
    "AdaLoraConfig": "configs",
    "AshaConfig": "sweeps",
    "BitFitConfig": "configs",
    "BottleneckConfig": "configs",
    "FullConfig": "configs",
    "HeadConfig": "configs",
    "LoadedModel": "models",
    "LoraConfig": "configs",
    "LoraLabError": "errors",
    "PrefixEmbedConfig": "configs",
    "PrefixLayerConfig": "configs",
    "Run": "runs",
    "TrainingConfig": "configs",
    "activate": "adapters",
    "active": "adapters",
    "analyze": "analysis",
    "attach": "adapters",
    "attached": "adapters",
    "catalogue": "models",
    "combine": "adapters",
    "detach": "adapters",
    "dry_run": "budget.dry_run",
    "export_merged": "checkpoint",
    "export_uniform": "checkpoint",
    "load_adapter": "checkpoint",
    "load_loralib": "checkpoint",
    "load_model": "models",
    "load_task": "tasks",
    "merge": "adapters",
    "mixed_batch": "adapters",
    "push_ready": "checkpoint",
    "resume": "runs",
    "runs": "runs",
    "save_adapter": "checkpoint",
    "save_loralib": "checkpoint",
    "sweep": "sweeps",
    "train": "runs",
    "unmerge": "adapters",
}

__all__ = [
    "AdaLoraConfig",
    "AshaConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "FullConfig",
    "HeadConfig",
    "LoadedModel",
    "LoraConfig",
    "LoraLabError",
    "PrefixEmbedConfig",
    "PrefixLayerConfig",
    "Run",
    "TrainingConfig",
    "__version__",
    "activate",
    "active",
    "analyze",
    "anatomy",
    "attach",
    "attached",
    "budget",
    "catalogue",
    "combine",
    "detach",
    "dry_run",
    "export_merged",
    "export_uniform",
    "load_adapter",
    "load_loralib",
    "load_model",
    "load_task",
    "merge",
    "mixed_batch",
    "push_ready",
    "resume",
    "runs",
    "save_adapter",
    "save_loralib",
    "sweep",
    "train",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lora_lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
