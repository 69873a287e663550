"""Prompt → completion from files and hub data sets with named columns."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Example, Task

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Columns:
    """The columns that make an example."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class _Row:
    prompt: str
    completion: str


def columns_asked_for(source: str | Path, prompt: str | None, completion: str | None) -> Columns:
    """Return the columns to read.

    Raises:
        TaskError: one is not named; where the source is a file, its columns are listed.
    """
    if prompt and completion:
        return Columns(prompt, completion)
    raise TaskError(
        f"{source}: name the columns to read, such as load_task(…, prompt='mr', completion='ref'), "
        f"or text='sentence', label='label' for classes{tables.columns_there(source)}"
    )


def from_files(
    train: Path,
    columns: Columns,
    validation: str | Path | None,
    test: str | Path | None,
    seed: int,
) -> Task:
    """Make a task of one to three local files.

    Raises:
        TaskError: a file that is missing, empty or malformed, or without the columns.
    """
    names = (columns.prompt, columns.completion)
    return _task(train.name, tables.read_files(names, train, validation, test), columns, seed)


def from_hub(hub_id: str, columns: Columns, seed: int) -> Task:
    """Make a task of a hub data set's train, validation and test splits.

    Raises:
        TaskError: the hub or the data set is not reached, it has no train split, or not the
            columns.
    """
    return _task(hub_id, tables.read_hub(hub_id), columns, seed)


def _task(name: str, parts: Mapping[str, tuple[str, Dataset]], columns: Columns, seed: int) -> Task:
    rows = {part: _rows(table, columns, source) for part, (source, table) in parts.items()}
    train, validation, test = rows["training"], rows.get("validation"), rows.get("test", [])
    if validation is None:
        train, validation = _hold_out(name, train, seed)
    seen = {row.prompt for row in train}
    for part, held_out in (("validation", validation), ("test", test)):
        tables.warn_known(name, part, "prompts", len(seen & {row.prompt for row in held_out}))
    return Task(
        name,
        synthetic=False,
        train=tuple(Example(r.prompt, r.completion, (r.completion,)) for r in train),
        validation=_shuffled(_grouped(validation), seed),
        test=_grouped(test),
    )


def _hold_out(name: str, rows: Sequence[_Row], seed: int) -> tuple[list[_Row], list[_Row]]:
    """Split by prompt, so that no prompt is on both sides."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    if len(prompts) < 2:
        raise TaskError(
            f"{name} has one prompt only, nothing can be held out; give validation='…' or more rows"
        )
    rng = random.Random(f"held out {seed}")
    chosen = set(rng.sample(prompts, tables.held_out_count(prompts)))
    return (
        [row for row in rows if row.prompt not in chosen],
        [row for row in rows if row.prompt in chosen],
    )


def _grouped(rows: Iterable[_Row]) -> tuple[Example, ...]:
    """Make one example a prompt, every different completion a reference."""
    completions: dict[str, dict[str, None]] = {}
    for row in rows:
        completions.setdefault(row.prompt, {})[row.completion] = None
    return tuple(
        Example(prompt, next(iter(texts)), tuple(texts)) for prompt, texts in completions.items()
    )


def _shuffled(examples: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    # Files are often sorted (E2E's by restaurant); the first n shall be a fair sample.
    return tuple(random.Random(f"validation {seed}").sample(examples, len(examples)))


def _rows(table: Dataset, columns: Columns, source: str) -> list[_Row]:
    names = (columns.prompt, columns.completion)
    tables.need_columns(table, names, source)
    read = [tables.texts(table, column, source) for column in names]
    rows = [_Row(prompt, completion) for prompt, completion in zip(*read, strict=True)]
    kept = [row for row in rows if row.prompt and row.completion]
    if not kept:
        raise TaskError(
            f"{source}: no row has both {columns.prompt!r} and {columns.completion!r}; there is "
            "nothing to learn from"
        )
    either = f"{columns.prompt!r} or {columns.completion!r}"
    tables.warn_left_out(source, len(rows) - len(kept), len(rows), either)
    return kept
