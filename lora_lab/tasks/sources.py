"""Where a task came from, so that the same one can be loaded again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

_SOURCE = "_lora_lab_source"
_FILES = ("validation", "test")

Loader = TypeVar("Loader", bound=Callable[..., Any])


def remembering(load: Loader) -> Loader:
    """Have a loader write down on each task the arguments that it was loaded with."""

    @functools.wraps(load)
    def loaded(name: str | Path, **options: Any) -> Any:
        task = load(name, **options)
        given = {key: value for key, value in options.items() if value is not None}
        files = {key: _absolute(given[key]) for key in _FILES if key in given}
        source = {"name": _absolute(name), **given, **files}
        # Not a field: a copy with other examples has another source.
        object.__setattr__(task, _SOURCE, source)
        return task

    return cast(Loader, loaded)


def task_source(task: Any) -> Mapping[str, Any] | None:
    """Return the arguments of `load_task` that a task came from; None of one made by hand."""
    return getattr(task, _SOURCE, None)


def _absolute(name: str | Path) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_file() else str(name)
