"""What the versions at hand lack: such tests are skipped there, and nowhere else."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.core_model_loading import WeightRenaming

_TRANSFORMERS = Version(transformers.__version__)
HAS_GROUPED = Version(torch.__version__) >= Version("2.9")  # transformers asks the same
needs_grouped = pytest.mark.skipif(not HAS_GROUPED, reason="torch before 2.9: no grouped product")


def skip_unless_stacked(model: nn.Module) -> None:
    """Skip a test of experts in one tensor where an old transformers has them in layers."""
    stacked = any(key.endswith("gate_up_proj") for key, _ in model.named_parameters())
    if not stacked and Version("5.15") > _TRANSFORMERS:
        pytest.skip(f"transformers {_TRANSFORMERS} has {type(model).__name__}'s experts in layers")


def skip_unless_peft_reads_experts() -> None:
    """Skip the rest of a test where PEFT asks an old transformers for what it cannot do yet."""
    known = inspect.signature(WeightRenaming.convert).parameters
    if "loading_info" not in known and Version("5.15") > _TRANSFORMERS:
        pytest.skip(f"PEFT's conversion of experts needs more than transformers {_TRANSFORMERS}")
