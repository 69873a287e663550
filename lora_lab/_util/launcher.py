"""What torchrun and `accelerate launch` tell each process that they start, in its environment."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Return how many processes were launched together; 1 where nobody says."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return which of those on this machine it is: the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, otherwise: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else otherwise
