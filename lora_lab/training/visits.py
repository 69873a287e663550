"""Who has the model of a run just now, told by what no interrupt can leave behind.

Ctrl-C raises at almost any place of the main thread's Python code: also after an `__enter__` has
done its work, or on the first line of an `__exit__`. C functions it cannot cut, so that the end of
a `with` block is one here; see bpo-29988 and "with" in CPython's Lib/test/test_contextlib.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Generic, TypeVar

from lora_lab.errors import RunError

T = TypeVar("T")


class Visit(io.BytesIO, Generic[T]):
    """A ``with`` block that has something: open until the block is left, in whatever way.

    An in-memory file because its `__exit__` is written in C, and `closed` costs nothing to ask for.

    Args:
        admit: called on entering; returns when the block may begin.
        value: what the block is given.
    """

    def __init__(self, admit: Callable[[Visit[T]], None], value: T) -> None:
        super().__init__()
        self._admit = admit
        self._value = value

    def __enter__(self) -> T:  # type: ignore[override]
        if self.closed:
            raise RunError("this paused() block was left before; call paused() again")
        try:
            self._admit(self)
        except BaseException:
            self.close()
            raise
        return self._value
