"""`load_task`: a task by its name, from files, or from the hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask, LabelReader
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.families.regression import RegressionTask, TargetReader
from lora_lab.tasks.prompts import GenerationTask, PromptReader
from lora_lab.tasks.reading import Reader, make_task
from lora_lab.tasks.sources import remembering

if TYPE_CHECKING:
    from lora_lab.tasks.table import Column, Table


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
    text: Column | None = None,
    label: Column | None = None,
    target: Column | None = None,
    pair: Column | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> Task:
    """Load a task: prompt → completion; text → class, of `label`; text → number, of `target`.

    Args:
        name: "mini-e2e", "mini-nli" or "mini-rating" (made here); a file (.csv, .tsv, .jsonl,
            .json, .parquet, also with .gz where it is text); or a data set's hub id, "owner/name".
        prompt: the column that the model reads.
        completion: the column that it learns to write.
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
        return EMBEDDED[str(name)].make(seed)
    is_file = tables.is_file_name(str(name))
    is_hub_id = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
    if not is_file and not is_hub_id:
        raise TaskError(_unknown(str(name)))
    if is_file:
        named = [column for column in columns.values() if column is not None]
        parts = tables.read_files(named, Path(name), validation, test)
    else:
        _refuse_file_options(str(name), validation=validation, test=test)
        parts = tables.read_hub(str(name))
    title = Path(name).name if is_file else str(name)
    return make_task(title, _reader(parts["training"], **columns), parts, seed, not is_file)


def _reader(
    table: Table, prompt: Any, completion: Any, text: Any, label: Any, target: Any, pair: Any
) -> Reader[Any]:
    """Return what reads the kind of task that the named columns make."""
    name = table.source
    of_texts = any(column is not None for column in (text, label, target, pair))
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
    return PromptReader(table, prompt, completion)


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
