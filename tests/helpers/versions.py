"""What the versions at hand lack: such tests are skipped there, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

_TRANSFORMERS = Version(transformers.__version__)
HAS_GROUPED = Version(torch.__version__) >= Version("2.9")  # transformers asks the same
needs_grouped = pytest.mark.skipif(not HAS_GROUPED, reason="torch before 2.9: no grouped product")


def skip_unless_stacked(model: nn.Module) -> None:
    """Skip a test of experts in one tensor where an old transformers has them in layers."""
    stacked = any(key.endswith("gate_up_proj") for key, _ in model.named_parameters())
    if not stacked and Version("5.15") > _TRANSFORMERS:
        pytest.skip(f"transformers {_TRANSFORMERS} has {type(model).__name__}'s experts in layers")
