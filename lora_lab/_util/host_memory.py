"""The computer's own memory, in which whole copies of a model's weights are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab._util.format import format_bytes
from lora_lab.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor


def available_memory() -> int | None:
    """Return the computer's available memory in bytes, where Linux tells it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(kibibytes) * 1024


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
        """Count copies that are about to be made; none of what has no numbers (meta).

        Raises:
            AdapterError: they do not fit; the line names both figures.
        """
        self._taken += copies * sum(t.nbytes for t in tensors if not t.is_meta)
        if self._free is not None and self._taken > self._free:
            raise AdapterError(
                f"{self._what} takes {format_bytes(self._taken)} or more of the computer's memory, "
                f"and {format_bytes(self._free)} are available; {self._fix}"
            )
