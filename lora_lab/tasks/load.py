"""`load_task`: a task by its name, from files, or from the hub."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.chat_reading import ChatReader, chat_columns
from lora_lab.tasks.classification import ClassificationTask, LabelReader
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.families.regression import RegressionTask, TargetReader
from lora_lab.tasks.framing import CHAT
from lora_lab.tasks.prompts import GenerationTask, PromptReader
from lora_lab.tasks.reading import Reader, make_task
from lora_lab.tasks.sources import remembering

if TYPE_CHECKING:
    from lora_lab.tasks.table import Column, Table

_NO_TEMPLATE = "template is for prompts with completions, and not for texts under a head"


# Of a name that is a variable mypy knows no more than that it is a str: a task of prompts.
@overload
def load_task(  # type: ignore[overload-overlap]
    name: Literal["mini-nli", "mini-rating"], *, seed: int = 0
) -> ClassificationTask: ...
@overload
def load_task(
    name: str | Path,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    template: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> GenerationTask: ...
@overload
def load_task(
    name: str | Path,
    *,
    text: Column,
    label: Column,
    pair: Column | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> ClassificationTask: ...
@overload
def load_task(
    name: str | Path,
    *,
    text: Column,
    target: Column,
    pair: Column | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> RegressionTask: ...
@remembering
def load_task(
    name: str | Path,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    template: str | None = None,
    text: Column | None = None,
    label: Column | None = None,
    target: Column | None = None,
    pair: Column | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> Task:
    """Load a task: prompt → completion; text → class, of `label`; text → number, of `target`.

    Chats are known by their columns: `messages`, `conversations`, or lists of messages elsewhere.

    Args:
        name: "mini-e2e", "mini-nli" or "mini-rating" (made here); a file (.csv, .tsv, .jsonl,
            .json, .parquet, also with .gz where it is text); or a data set's hub id, "owner/name".
        prompt: the column that the model reads.
        completion: the column that it learns to write.
        template: what goes around a prompt: "chat", "plain", or a text with {prompt} in it; see
            `tasks.framing`.
        text: the column of the text that is read. Columns of a .csv or .tsv that has no
            line of names are given by their numbers, from 0.
        label: the column of its class.
        target: the column of its number, in place of a class.
        pair: the column of a second text, where there are pairs.
        validation: a file of held-out rows. Without one, whole prompts or texts are held out of
            the training rows.
        test: a file of rows that are kept for the end.
        seed: of what an embedded task makes, or of the held-out split.

    Raises:
        TaskError: nothing of that name, a file that cannot be read, a column that is not there, a
            row without a class or a number.
    """
    columns = {
        "prompt": prompt,
        "completion": completion,
        "text": text,
        "label": label,
        "target": target,
        "pair": pair,
    }
    if str(name) in EMBEDDED:
        _refuse_file_options(str(name), **columns, validation=validation, test=test)
        return _framed(EMBEDDED[str(name)].make(seed), template)
    named = [column for column in columns.values() if column is not None]
    parts = _parts(str(name), named, validation, test)
    reader = _reader(parts["training"], template, **columns)
    is_file = tables.is_file_name(str(name))
    return make_task(Path(name).name if is_file else str(name), reader, parts, seed, not is_file)


def _parts(
    name: str, named: Sequence[Column], validation: str | Path | None, test: str | Path | None
) -> dict[str, Table]:
    """Read the tables of a file, or of a hub data set."""
    if tables.is_file_name(name):
        return tables.read_files(named, Path(name), validation, test)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise TaskError(_unknown(name))
    _refuse_file_options(name, validation=validation, test=test)
    return tables.read_hub(name)


def _reader(
    table: Table,
    template: str | None,
    prompt: Any,
    completion: Any,
    text: Any,
    label: Any,
    target: Any,
    pair: Any,
) -> Reader[Any]:
    """Return what reads the kind of task that the named columns make."""
    name = table.source
    of_texts = any(column is not None for column in (text, label, target, pair))
    if of_texts and template is not None:
        raise TaskError(f"{name}: {_NO_TEMPLATE}")
    if of_texts and (prompt or completion):
        raise TaskError(
            f"{name}: prompt and completion make a task of writing, text and label one of "
            "classes; name the columns of one of them"
        )
    if label is not None and target is not None:
        raise TaskError(f"{name}: label names a class and target a number to learn; give one")
    if target is not None:
        return TargetReader(table, text, target, pair)
    if of_texts:
        return LabelReader(table, text, label, pair)
    chats = chat_columns(table, prompt, completion)
    if chats is not None:
        if template not in (None, CHAT):
            raise TaskError(
                f"{name} has conversations, which the model's chat template frames; "
                "leave out template"
            )
        return ChatReader(table, chats)
    return PromptReader(table, prompt, completion, template)


def _framed(task: Task, template: str | None) -> Task:
    if template is None:
        return task
    if not isinstance(task, GenerationTask):
        raise TaskError(f"{task.name}: {_NO_TEMPLATE}")
    return dataclasses.replace(task, template=template)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(EMBEDDED)}"
    return (
        f"no task is called {name!r}; {hint} (or give a {', '.join(tables.FORMATS)} file, or a "
        "hub id of the form owner/name)"
    )


def _refuse_file_options(name: str, **options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise TaskError(
            f"{name} brings its own parts; leave out {' and '.join(given)}, or give a file as the "
            "first argument"
        )
