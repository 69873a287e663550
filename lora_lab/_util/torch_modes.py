"""Torch's modes that a notebook may be in, kept out of what is made for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

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
