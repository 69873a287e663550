"""The tasks that `load_task` knows by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from lora_lab.tasks.base import Task
from lora_lab.tasks.cards import DataCard, carded

MakeTask = TypeVar("MakeTask", bound=Callable[[int], Task])


class EmbeddedTask(NamedTuple):
    """How a task is made from a seed, of which kind it is, and its card."""

    make: Callable[[int], Task]
    kind: type[Task]
    card: DataCard | None = None


EMBEDDED: dict[str, EmbeddedTask] = {}


def register_task(
    name: str, kind: type[Task], card: DataCard | None = None
) -> Callable[[MakeTask], MakeTask]:
    """Have `load_task`, and whatever offers tasks, know a function of a seed by this name."""

    def registered(make: MakeTask) -> MakeTask:
        EMBEDDED[name] = EmbeddedTask(lambda seed: carded(make(seed), card), kind, card)
        return make

    return registered
