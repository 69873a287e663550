"""The settings of how answers are written: fields of `tasks.Decoding`, behind "more"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.methods.descriptor import Field
from lora_lab.tasks.base import Task
from lora_lab.tasks.sources import with_decoding

if TYPE_CHECKING:
    from lora_lab_widgets.plan import PlanModel

DECODING = (
    Field(
        "num_beams",
        "beams",
        "answers that are scored are written by beam search; empty: as the task says, 1 as a rule",
        int,
        automatic=True,
        more=True,
    ),
    Field(
        "length_penalty",
        "length penalty",
        "a beam's score is divided by its length to this power; empty: as the task says",
        automatic=True,
        more=True,
    ),
    Field(
        "no_repeat_ngram_size",
        "no repeat",
        "no so many tokens come twice in a row in an answer; 0: any may; empty: as the task says",
        int,
        automatic=True,
        more=True,
    ),
    Field(
        "max_new_tokens",
        "answer length",
        "tokens at which an answer is broken off; empty: half as many again as the longest right "
        "one has",
        int,
        automatic=True,
        more=True,
    ),
)


def decoding_values() -> dict[str, Any]:
    """Return the settings that leave a task's decoding as it is."""
    return dict.fromkeys((field.name for field in DECODING), "")


def decoding_fields(task: Task | None) -> tuple[Field, ...]:
    """Return the fields, of a task whose answers are written; else none."""
    return DECODING if hasattr(task, "decoding") else ()


def decoded_by(task: Task, values: Mapping[str, Any]) -> Task:
    """Return a task with the decoding that settings ask for, which are numbers.

    Raises:
        ConfigError: a number that cannot be.
    """
    given = {field.name: values[field.name] for field in decoding_fields(task)}
    given = {name: value for name, value in given.items() if value not in ("", None)}
    if not given:
        return task
    decoded: Task = with_decoding(task, given)
    return decoded


def task_to_train(plan: PlanModel, values: Mapping[str, Any] | None = None) -> Task:
    """Return the planned task as settings, which are numbers, or those on show have it decoded."""
    values = plan.typed() if values is None else values
    return decoded_by(plan.task_called(values["task"]), values)
