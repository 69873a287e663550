"""MLPs of the form down(act(gate(x)) · up(x)), of which a training step need not keep all."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

_FORMULA = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
# SiLU and GELU, whose backward pass reads what they are given, and not what they return.
_FUNCTIONS = {"SiLU", "SiLUActivation", "GELU", "GELUActivation", "GELUTanh"}
_TRUSTED = ("torch.nn.modules.activation", "transformers.activations")


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module's class computes the formula above, by its source."""
    kind: Any = type(module)
    return hasattr(module, "act_fn") and (
        getattr(kind, "recomputes", False) or _has_formula(kind.forward)
    )


def can_be_recomputed(module: nn.Module) -> bool:
    """Whether act(gate) can be made again from gate: it draws nothing, writes nothing."""
    function = getattr(module, "act_fn", None)
    return (
        is_gated_mlp(module)
        and type(function).__name__ in _FUNCTIONS
        and type(function).__module__ in _TRUSTED
        and not getattr(function, "inplace", False)
    )


@functools.cache
def _has_formula(forward: Any) -> bool:
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):
        return False
    return _FORMULA in source and source.count("=") <= 1
