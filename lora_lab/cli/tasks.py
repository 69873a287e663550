"""`lora-lab tasks`: the tasks known by name."""

from __future__ import annotations

import argparse

from lora_lab.cli.command import Command, Report, no_arguments
from lora_lab.tasks.base import Task
from lora_lab.tasks.cards import card_of
from lora_lab.tasks.embedded.api import EMBEDDED


def _text(task: Task) -> str:
    """Return a task's line, its first example and its card."""
    card = card_of(task)
    more = [task.input_text(task.train[0]), *([] if card is None else str(card).splitlines())]
    return "\n  ".join([task.describe(), *more])


def _run(_options: argparse.Namespace) -> Report:
    made = {name: entry.make(0) for name, entry in EMBEDDED.items()}
    listed = [
        {
            "name": name,
            "train": len(task.train),
            "validation": len(task.validation),
            "test": len(task.test),
            "metrics": [metric.name for metric in task.metrics],
            "example": task.input_text(task.train[0]),
            **({} if (card := EMBEDDED[name].card) is None else {"card": card.to_json()}),
        }
        for name, task in made.items()
    ]
    lines = [_text(task) for task in made.values()]
    more = "A file, a folder of datasets, or a hub id (owner/name) is taken as well; see load_task."
    return Report({"tasks": listed}, "\n".join([*lines, more]))


COMMAND = Command(no_arguments, _run)
