"""Finds the family of a task: every module beside this one registers its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab._util.format import a_kind
from lora_lab._util.modules import import_modules
from lora_lab.errors import TaskError
from lora_lab.tasks import families
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.base import FAMILIES, Family, Lengths
from lora_lab.tasks.too_long import fit_examples

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

import_modules(families)


def family_of(task: Task, lm: LoadedModel) -> type[Family]:
    """Return how this model learns this task.

    Raises:
        TaskError: nobody has registered a family for such tasks.
    """
    for family in FAMILIES:
        if isinstance(task, family.kind) and family.suits(lm):
            return family
    raise TaskError(
        f"{task.name} is {a_kind(task)}, for which no family is registered; see "
        "lora_lab.tasks.register_family"
    )


def longest_example(lm: LoadedModel, task: Task, max_length: int) -> Lengths:
    """Return what a batch is padded to at most; see `longest_and_labels`."""
    return longest_and_labels(lm, task, max_length)[0]


def longest_and_labels(lm: LoadedModel, task: Task, max_length: int) -> tuple[Lengths, int | None]:
    """Return what a batch is padded to at most, and how many tokens of an example have a label.

    Args:
        lm: the model with its tokenizer.
        task: whose training examples are encoded.
        max_length: tokens an example; of an encoder-decoder model, of either side.

    Returns:
        The lengths, of an encoder-decoder model its two sides apart, and `Family.most_labels`.

    Raises:
        TaskError: an example cannot be encoded, or none fits.
    """
    family = family_of(task, lm)(lm, task, max_length)
    encoded = [item for found in fit_examples(family, task.train, "cut") for item in found.encoded]
    if not encoded:
        raise TaskError(f"no example of {task.name} fits max_length={max_length}; raise it")
    return family.longest(encoded), family.most_labels(encoded)
