"""What the browser tests' files share as long as they follow one another.

A Chromium, a JupyterLab, a page at it and its kernel with all imported take twenty seconds of a
core. `tests/conftest.py` closes them before the first file that is not one of the browser's: while
Playwright is up, no other test can run an asyncio loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class Kept:
    """Things by name, each made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._open = contextlib.ExitStack()

    def get(self, name: str, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Any:
        """Return a thing; `make` makes it if there is none."""
        if name not in self._made:
            self._made[name] = self._open.enter_context(make())
        return self._made[name]

    def close(self) -> None:
        """Close them all, the last one first; they can be made again."""
        self._made.clear()
        self._open.close()


KEPT = Kept()
