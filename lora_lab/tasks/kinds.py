"""Which kind of task a table makes: by the columns that were named, or by its layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.errors import TaskError
from lora_lab.tasks.chat_reading import ChatReader, chat_columns
from lora_lab.tasks.classification import LabelReader
from lora_lab.tasks.families.language_modeling import DocumentReader
from lora_lab.tasks.families.regression import TargetReader
from lora_lab.tasks.forms import FormReader, as_form, columns_in, is_form
from lora_lab.tasks.framing import CHAT
from lora_lab.tasks.layouts import NO_TEMPLATE, recognized
from lora_lab.tasks.prompts import PromptReader
from lora_lab.tasks.reading import Reader
from lora_lab.tasks.table import Column, Table


@dataclass(frozen=True)
class Named:
    """The columns that were named; see `load_task`."""

    prompt: Column | None = None
    completion: Column | None = None
    text: Column | None = None
    label: Column | None = None
    target: Column | None = None
    pair: Column | None = None

    def __post_init__(self) -> None:
        for name, given in self.options().items():
            if not isinstance(given, (str, int)):
                raise TaskError(f"{name} is {given!r}; it is the name of one column, or its number")

    def options(self) -> dict[str, Column]:
        """Return those that were given, by their options."""
        return {name: given for name, given in vars(self).items() if given is not None}

    def columns(self) -> list[Column]:
        """Return the columns themselves, those of formats too."""
        return [
            column
            for given in self.options().values()
            for column in (columns_in(str(given)) if is_form(given) else [given])
        ]


def reader_of(table: Table, named: Named, template: str | None = None) -> Reader[Any]:
    """Return what reads a table.

    Args:
        table: the training rows.
        named: its columns; where none is, they are recognized.
        template: what was asked to stand around the prompts.

    Raises:
        TaskError: columns that make no task together, or a layout that is not known.
    """
    given = named.options()
    source, of_texts = table.source, given.keys() - {"prompt", "completion"}
    if of_texts and template is not None:
        raise TaskError(f"{source}: {NO_TEMPLATE}")
    if of_texts and len(of_texts) < len(given):
        raise TaskError(
            f"{source}: prompt and completion make a task of writing, text and label one of "
            "classes; name the columns of one of them"
        )
    if named.label is not None and named.target is not None:
        raise TaskError(f"{source}: label names a class and target a number to learn; give one")
    if named.target is not None:
        return TargetReader(table, named.text, named.target, named.pair)
    if of_texts == {"text"}:
        return DocumentReader(table, given["text"])
    if of_texts:
        return LabelReader(table, named.text, named.label, named.pair)
    chats = chat_columns(table, named.prompt, named.completion)
    if chats is not None:
        if template not in (None, CHAT):
            raise TaskError(
                f"{source} has conversations, which the model's chat template frames; "
                "leave out template"
            )
        return ChatReader(table, chats)
    if not given:
        return recognized(table, template)
    if is_form(named.prompt) or is_form(named.completion):
        if named.prompt is None or named.completion is None:
            return PromptReader(table, None, None)  # which says what is to be named
        return FormReader(as_form(named.prompt, named.completion), template)
    return PromptReader(table, named.prompt, named.completion, template)
