"""Torch's modes that a notebook may be in, kept out of what is made for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lora_lab._util.torch_private import has_function_modes


@contextlib.contextmanager
def plain_modes() -> Iterator[None]:
    """Have no inference mode, no autocast and no default device but the CPU; for this thread."""
    with contextlib.ExitStack() as held:
        held.enter_context(torch.inference_mode(False))
        # To ask for the default device may set up a GPU; to set it has each function looked at.
        if has_function_modes():
            held.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        yield


class DefaultDtype(TorchFunctionMode):
    """Have what is made without a dtype be of this one, in the block and for this thread.

    torch's own default is the whole process's.

    Args:
        dtype: a floating-point one.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        by_default = func in _MAKERS and kwargs.get("dtype") is None
        return made.to(self._dtype) if by_default and made.is_floating_point() else made


# What they make of floating-point numbers, without a dtype, is of the default one.
_MAKERS = {
    *(torch.arange, torch.empty, torch.empty_strided, torch.eye, torch.full, torch.linspace),
    *(torch.logspace, torch.normal, torch.ones, torch.rand, torch.randn, torch.scalar_tensor),
    *(torch.tensor, torch.zeros),
}
