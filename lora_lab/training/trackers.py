"""Experiment trackers, where the user names one: transformers' callbacks, kept silent."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from lora_lab.errors import ConfigError

# The packages of each, any of which will do.
_PACKAGES = {
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
}


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        ConfigError: the line names the command that brings it.
    """
    for name in names or ():
        packages = _PACKAGES[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"report_to={name!r} needs a package that is not there: pip install {packages[0]}, "
                "or leave report_to out"
            )


def tracker_callbacks(names: Sequence[str] | None) -> list[Any]:
    """Return transformers' callbacks for these trackers."""
    if not names:
        return []
    from transformers.integrations import get_reporting_integration_callbacks

    os.environ.setdefault("WANDB_SILENT", "true")
    with silent_thread():
        return [kind() for kind in get_reporting_integration_callbacks(list(names))]


@contextlib.contextmanager
def silent_thread() -> Iterator[None]:
    """Drop what this thread prints in the block; what others print goes where it went before."""
    before = sys.stdout, sys.stderr
    mine = _AllBut(before[0]), _AllBut(before[1])
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        # Unless somebody else has put his own there meanwhile.
        if sys.stdout is mine[0]:
            sys.stdout = before[0]
        if sys.stderr is mine[1]:
            sys.stderr = before[1]


class _AllBut:
    """A stream that is deaf to one thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._deaf_to = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._deaf_to:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
