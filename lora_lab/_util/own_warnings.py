"""What a thread warns of, kept out of the cells that run meanwhile.

Filters and the hook that shows warnings belong to the whole process: `warnings.catch_warnings` on a
thread takes those of a cell too, and two that overlap leave one's list in the other's place. So
nothing of other threads' changes here: the filter fits, and the hook keeps, a collecting thread's.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

_said: dict[int, list[str]] = {}  # by the threads that collect
_lock = threading.Lock()
_before: Any = None


class _OnCollecting(type):
    def __subclasscheck__(cls, kind: type) -> bool:
        return threading.get_ident() in _said


class _Any(Warning, metaclass=_OnCollecting):
    """Each warning of a thread that collects, and none of another."""


_FILTER: Any = ("always", None, _Any, None, 0)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collect what this thread warns of in the block, instead of showing it; yield the list."""
    global _before
    mine, said = threading.get_ident(), list[str]()
    with _lock:
        outer = _said.get(mine)
        _said[mine] = said
        if warnings.showwarning is not _keep:
            _before, warnings.showwarning = warnings.showwarning, _keep
        warnings.simplefilter("always", _Any)
    try:
        yield said
    finally:
        with _lock:
            _said.pop(mine)
            if outer is not None:
                _said[mine] = outer
            if not _said:
                _take_away()


def _take_away() -> None:
    if warnings.showwarning is _keep:  # else it is not there, or beneath somebody's own
        warnings.showwarning = _before
    with contextlib.suppress(ValueError):  # somebody has set his own filters meanwhile
        filters: Any = warnings.filters
        filters.remove(_FILTER)


def _keep(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if (said := _said.get(threading.get_ident())) is not None:
        said.append(str(message))
    else:
        _before(message, category, filename, lineno, file, line)
