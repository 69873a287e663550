"""Keep the libraries underneath from printing: what matters is raised or warned in our words."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' progress bars, and its log lines of this thread."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_thread():
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


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


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hold back datasets' progress bars and log lines, and put its settings back after."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 10)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return lines[0] if lines else type(root).__name__
