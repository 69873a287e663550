"""`load_task`: a task by its name, from files, from the hub, or from rows in memory."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.families.regression import RegressionTask
from lora_lab.tasks.kinds import NO_TEMPLATE, Named, reader_of
from lora_lab.tasks.memory import InMemory, is_in_memory, kind_of, read_memory, read_part
from lora_lab.tasks.prompts import GenerationTask
from lora_lab.tasks.reading import make_task
from lora_lab.tasks.sources import remembering

if TYPE_CHECKING:
    from lora_lab.tasks.table import Column

Data = Any  # a name, or rows in memory


# Of what is no literal mypy knows nothing: without columns it is a task of prompts to it.
@overload
def load_task(name: Literal["mini-nli", "mini-rating"], *, seed: int = 0) -> ClassificationTask: ...
@overload
def load_task(
    name: Data,
    *,
    prompt: Column | None = None,
    completion: Column | None = None,
    template: str | None = None,
    validation: Data = None,
    test: Data = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> GenerationTask: ...
@overload
def load_task(
    name: Data,
    *,
    text: Column,
    validation: Data = None,
    test: Data = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> LanguageModelingTask: ...
@overload
def load_task(
    name: Data,
    *,
    text: Column,
    label: Column,
    pair: Column | None = None,
    validation: Data = None,
    test: Data = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> ClassificationTask: ...
@overload
def load_task(
    name: Data,
    *,
    text: Column,
    target: Column,
    pair: Column | None = None,
    validation: Data = None,
    test: Data = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> RegressionTask: ...
@remembering
def load_task(
    name: Data,
    *,
    prompt: Column | None = None,
    completion: Column | None = None,
    template: str | None = None,
    text: Column | None = None,
    label: Column | None = None,
    target: Column | None = None,
    pair: Column | None = None,
    validation: Data = None,
    test: Data = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> Task:
    """Load a task: prompt → completion; text → class, of `label`; text → number, of `target`.

    Where no column is named, a layout that is known is read, and `task.describe()` says which it
    is: Alpaca's and Dolly's, with their authors' prompts, SQuAD's, WikiSQL's, E2E's, prompt and
    completion, question and answer, pairs, text and label, text alone; see `tasks.layouts`.

    Args:
        name: "mini-e2e", "mini-nli" or "mini-rating" (made here); a file (.csv, .tsv, .jsonl,
            .json, .parquet, also with .gz where it is text); a data set's hub id, "owner/name"; or
            rows in memory: a list of dicts or of (prompt, completion), a DataFrame, a
            `datasets.Dataset`, a DatasetDict, whose splits are the parts, or a stream. They are
            read at once: what becomes of them later changes nothing.
        prompt: the column that the model reads, or a format of columns, "{instruction}\\n{input}",
            in which an empty column is written as nothing ({{ and }} are braces).
        completion: the column that it learns to write, or such a format.
        template: what stands around a prompt: "chat" (a turn of the user and one of the assistant,
            in the model's chat template), "plain" (the text as it stands in the data), or a text
            with {prompt} in it. By default a line of its own, "{prompt}\\n"; "plain" where the rows
            have white space of their own between the two, or the layout its own prompts.
        text: the column of the text that is read; alone, a text of which every token is learned.
            Columns of a .csv or .tsv that has no line of names, and of tuples, are given by their
            numbers, from 0.
        label: the column of its class.
        target: the column of its number, in place of a class.
        pair: the column of a second text, where there are pairs.
        validation: a file of held-out rows, or such rows in memory. Without them, whole prompts or
            texts are held out of the training rows.
        test: the same, of rows that are kept for the end.
        seed: of what an embedded task makes, or of the held-out split.
        max_steps: of a stream: its first rows are taken, as many as so many steps reach, and those
            that are held out; other data is taken whole.
        batch_size: rows that a step takes of a stream.

    Raises:
        TaskError: nothing of that name, a file that cannot be read, a column that is not there, a
            row without a class or a number, a layout that is not known.
    """
    named = Named(prompt, completion, text, label, target, pair)
    held_out = {"validation": validation, "test": test}
    if not is_in_memory(name) and str(name) in EMBEDDED:
        _refuse_file_options(str(name), **named.options(), **held_out)
        return _framed(EMBEDDED[str(name)].make(seed), template)
    rows = None if max_steps is None else max_steps * batch_size
    title, (parts, notes) = _read(name, held_out, named, rows)
    reader = reader_of(parts["training"], named, template)
    reader.notes += notes
    secrets = is_in_memory(name) or not tables.is_file_name(str(name))
    return make_task(title, reader, parts, seed, secrets)


def as_task(given: Any, max_steps: int, batch_size: int) -> Task:
    """Return a task: the one that is given, or what `load_task` makes of a name or of rows."""
    if isinstance(given, Task):
        return given
    if is_in_memory(given):
        return load_task(given, max_steps=max_steps, batch_size=batch_size)
    return load_task(given)


def _read(
    name: Data, held_out: Mapping[str, Data], named: Named, rows: int | None
) -> tuple[str, InMemory]:
    """Return a task's name, and the tables of its parts."""
    if is_in_memory(name):
        title, found = kind_of(name), read_memory(name, rows)
    elif tables.is_file_name(str(name)):
        title = Path(name).name
        found = InMemory({"training": tables.read_file(Path(name), named.columns())})
    elif str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        _refuse_file_options(str(name), **held_out)
        return str(name), InMemory(tables.read_hub(str(name)))
    else:
        raise TaskError(_unknown(str(name)))
    for part, given in held_out.items():
        if given is None:
            continue
        if part in found.parts:
            raise TaskError(f"{title} brings its own {part} rows; leave out {part}=")
        if is_in_memory(given):
            more = read_part(given, part)
        else:
            more = InMemory({part: tables.read_file(Path(given), named.columns())})
        found = InMemory({**found.parts, **more.parts}, found.notes + more.notes)
    return title, found


def _framed(task: Task, template: str | None) -> Task:
    if template is None:
        return task
    if not isinstance(task, GenerationTask):
        raise TaskError(f"{task.name}: {NO_TEMPLATE}")
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
