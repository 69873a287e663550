"""The processes of one training: one in a notebook, several under `accelerate launch`.

Each has the whole model and runs the same steps. The first one, rank 0, decides and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return distributed.get_rank() if _joined() else 0


def main() -> bool:
    """Whether this process decides and writes."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if a launcher has started some, and leave them at the end."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched or _joined():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def from_main(value: object) -> object:
    """Return rank 0's value in every process; a plain one. All must call it."""
    if not _joined():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether any process says so. All must call it."""
    if not _joined():
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    told = torch.tensor(int(flag), device=device)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return bool(told)


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
