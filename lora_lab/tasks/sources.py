"""Where a task came from, so that the same one can be loaded again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from lora_lab._util.files import user_path
from lora_lab.errors import TaskError
from lora_lab.tasks.cards import card_of, carded
from lora_lab.tasks.decoding import Decoding, decoded
from lora_lab.tasks.files import absolute
from lora_lab.tasks.folders import folder_of
from lora_lab.tasks.memory import is_in_memory, kind_of

_SOURCE = "_lora_lab_source"
_DATA = "name", "validation", "test"
IN_MEMORY = "in_memory"
OF_STREAMS = "max_steps", "batch_size"

Loader = TypeVar("Loader", bound=Callable[..., Any])


def remembering(load: Loader) -> Loader:
    """Have a loader write down on each task the arguments that it was loaded with."""

    @functools.wraps(load)
    def loaded(name: Any, config_name: str | None = None, **options: Any) -> Any:
        task = load(name, config_name, **options)
        given = {"name": name, "config_name": config_name, **options}
        source = {key: value for key, value in given.items() if value is not None}
        if folder_of(name, config_name) is not None:
            source["name"] = str(user_path(name, TaskError).resolve())
        memory = [key for key in _DATA if key in source and is_in_memory(source[key])]
        source |= {key: _name(source[key]) for key in _DATA if key in source}
        if "decoding" in source:
            source["decoding"] = Decoding.of(source["decoding"]).to_dict()
        if memory:
            source[IN_MEMORY] = memory
        else:
            source = {key: value for key, value in source.items() if key not in OF_STREAMS}
        # Not a field: a copy with other examples has another source.
        object.__setattr__(task, _SOURCE, source)
        return task

    return cast(Loader, loaded)


def task_source(task: Any) -> Mapping[str, Any] | None:
    """Return the arguments of `load_task` that a task came from; None of one made by hand.

    Of those that "in_memory" lists, which were rows and no names, it has what people call them.
    """
    return getattr(task, _SOURCE, None)


def with_decoding(task: Any, given: Decoding | Mapping[str, Any]) -> Any:
    """Return a task whose answers are written so, and which can be loaded as it can be.

    Raises:
        ConfigError: what `Decoding.of` refuses, or a task of which no answers are written.
    """
    found, source = decoded(task, given), task_source(task)
    if found is task:
        return task
    if source is not None:
        own = {key: value for key, value in source.items() if key != "decoding"}
        fields = found.decoding.to_dict()
        object.__setattr__(found, _SOURCE, own | ({"decoding": fields} if fields else {}))
    return carded(found, card_of(task))


def _name(data: Any) -> str | list[str]:
    return kind_of(data) if is_in_memory(data) else absolute(data)
