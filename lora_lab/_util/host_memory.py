"""The computer's own memory, in which whole copies of a model's weights are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from lora_lab._util.format import format_bytes
from lora_lab._util.torch_private import FakeTensor
from lora_lab.errors import AdapterError

_ROOT = Path("/")
# A container's limit, what it has taken, and its statistics: of cgroups' version 2, and of 1.
_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_FILES = ("inactive_file", "active_file")  # version 1 counts groups below apart, as "total_…"


def available_memory() -> int | None:
    """Return the memory in bytes that this process may take yet, where Linux tells it.

    The computer's, or what a container's limit (Docker's, Binder's) leaves of it.
    """
    try:
        kibibytes = _entries(_ROOT / "proc/meminfo")["MemAvailable"]
    except (OSError, ValueError, KeyError):
        return None
    return min([kibibytes * 1024, *_left_of_limits()])


def _left_of_limits() -> Iterator[int]:
    for folder, limit, usage in _CGROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max": there is none
            most = int((_ROOT / folder / limit).read_text(encoding="ascii"))
            taken = int((_ROOT / folder / usage).read_text(encoding="ascii"))
            pages = _entries(_ROOT / folder / "memory.stat")
            # Files that were read are counted too, and go when room is needed.
            files = (pages.get(f"total_{own}", pages[own]) for own in _FILES)
            yield max(0, most - taken + sum(files))


def _entries(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}


class HostRoom:
    """What may be copied there, from now on; a kernel that takes more is killed without a word.

    Args:
        what: the copies are, "keeping W₀ for `unmerge`".
        fix: what to do where they do not fit.
    """

    def __init__(self, what: str, fix: str) -> None:
        self._what, self._fix = what, fix
        self._free = available_memory()
        self._taken = 0

    def take(self, tensors: Iterable[Tensor], copies: int = 1) -> None:
        """Count copies that are about to be made; none of what has no numbers (meta, fake).

        Raises:
            AdapterError: they do not fit; the line names both figures.
        """
        real = (t for t in tensors if not (t.is_meta or isinstance(t, FakeTensor)))
        self.take_bytes(copies * sum(t.nbytes for t in real))

    def take_bytes(self, count: int) -> None:
        """Count what is about to be taken; see `take`."""
        self._taken += count
        if self._free is not None and self._taken > self._free:
            raise AdapterError(
                f"{self._what} takes {format_bytes(self._taken)} or more of the computer's memory, "
                f"and {format_bytes(self._free)} are available; {self._fix}"
            )
