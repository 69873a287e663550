"""Keep the libraries underneath from printing: what matters is raised or warned in our words."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

_without_bars: list[int] = []  # threads; one that has entered twice stands there twice
_hook_lock = threading.Lock()
_hook_before: Any = None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' progress bars and log lines, those of this thread.

    Other threads' are drawn as ever: whether there are bars is a setting of the whole process.
    Before transformers 5.4, which has no hook for them, bars of this thread are drawn, too.
    """
    global _hook_before
    from transformers.utils import logging as transformers_logging

    set_hook = getattr(transformers_logging, "set_tqdm_hook", lambda _: _draw)
    with _hook_lock:
        if not _without_bars:
            _hook_before = set_hook(_draw)
        _without_bars.append(threading.get_ident())
    try:
        with quiet_thread():
            yield
    finally:
        with _hook_lock:
            _without_bars.remove(threading.get_ident())
            if not _without_bars:
                now = set_hook(_hook_before)
                if now is not _draw:  # somebody has set his own meanwhile
                    set_hook(now)


def _draw(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return the progress bar that a thread gets; see transformers' `set_tqdm_hook`."""
    if threading.get_ident() in _without_bars:
        from transformers.utils.logging import EmptyTqdm

        return EmptyTqdm(*args, **options)
    return bar(*args, **options) if _hook_before is None else _hook_before(bar, args, options)


@contextlib.contextmanager
def quiet_thread() -> Iterator[None]:
    """Hold back what the libraries log on this thread, errors left out.

    Levels belong to the whole process: other threads may set them, or put them back, meanwhile.
    """
    mine = threading.get_ident()
    with log_filter(lambda record: record.thread != mine or record.levelno >= logging.ERROR):
        yield


@contextlib.contextmanager
def log_filter(passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Ask a function about every line that somebody is about to see, before others are asked."""
    handlers: list[Any] = [*logging.getLogger().handlers, logging.lastResort]
    for library in ("transformers", "accelerate", "datasets"):
        handlers += logging.getLogger(library).handlers
    handlers = [*filter(None, handlers)]
    for handler in handlers:
        handler.filters.insert(0, passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return lines[0] if lines else type(root).__name__
