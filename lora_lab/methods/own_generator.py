"""The generator that a place's start draws from, where it has said that it asks for it.

Apart from `own_draws`, which needs torch: initializations are read without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class _Here(threading.local):
    generator: torch.Generator | None = None


_here = _Here()


def generator() -> torch.Generator | None:
    """Return what to draw from; None: whatever torch draws from is right."""
    return _here.generator


@contextlib.contextmanager
def drawing_from(own: torch.Generator) -> Iterator[None]:
    """Have those who ask draw from it, on this thread in the block."""
    before, _here.generator = _here.generator, own
    try:
        yield
    finally:
        _here.generator = before
