"""Random starts that are a place's own: drawn from a seed, the place and the rank there.

One stream for a whole adapter would make r = 8 the first rows of r = 64 at its first matrix, and a
target more or less would change the start of all that follow.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterator

import torch

from lora_lab._util.own_random import seeded
from lora_lab._util.torch_private import FakeTensor
from lora_lab.methods.own_generator import drawing_from


@contextlib.contextmanager
def drawing(seed: int, how: str) -> Iterator[None]:
    """Have what is made in the block draw from a seed, "per_site" or from "one_stream" as once."""
    before, _here.one_stream = _here.one_stream, how == "one_stream"
    try:
        with seeded(seed):
            yield
    finally:
        _here.one_stream = before


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Have no starts drawn for in the block, on this thread: a file's values take their place."""
    before, _here.unread = _here.unread, True
    try:
        yield
    finally:
        _here.unread = before


class _Here(threading.local):
    one_stream = False
    unread = False


_here = _Here()


class OwnDraws:
    """The draws of one adapter's places.

    Its seed is drawn from torch's generator for the CPU, a run's own within a run, at the first
    place that has anything to draw.
    """

    @functools.cached_property
    def _seed(self) -> int:
        if _here.unread:
            return 0
        number = torch.randint(2**63 - 1, (), device="cpu")
        return 0 if isinstance(number, FakeTensor) else int(number)  # nobody reads fake numbers

    @contextlib.contextmanager
    def of(self, place: str, rank: int, hollow: bool = False, asks: bool = False) -> Iterator[None]:
        """Have what the block draws follow from the seed, the place and the rank alone.

        Args:
            place: such as a site's name.
            rank: there, or what else says how large its parameters are.
            hollow: they are on the meta device, where nothing is drawn.
            asks: all that draws there does so from `own_generator`: the same numbers as without,
                and nobody has to look at each operation for them, which takes longer by far.
        """
        if hollow or _here.one_stream:
            yield
            return
        told = hashlib.sha256(f"{self._seed} {place} {rank}".encode()).digest()
        seed = int.from_bytes(told[:4], "big")  # the CPU's generator takes 32 bits
        own = drawing_from(torch.Generator("cpu").manual_seed(seed)) if asks else seeded(seed)
        with own:
            yield
