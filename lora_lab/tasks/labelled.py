"""Classification tasks from files and hub data sets with named columns."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.classification import ClassificationTask, LabelledText, some
from lora_lab.tasks.tables import Column

if TYPE_CHECKING:
    from datasets import Dataset

_UNKNOWN = -1  # the label of hub splits whose classes are kept secret (GLUE's test)


@dataclass(frozen=True)
class LabelColumns:
    """The columns that make an example."""

    text: Column
    label: Column
    pair: Column | None = None

    @property
    def all(self) -> tuple[Column, ...]:
        """Those that are read."""
        return (self.text, self.label) if self.pair is None else (self.text, self.pair, self.label)

    @property
    def texts(self) -> str:
        """The columns of text as a message names them."""
        return f"{self.text!r}" if self.pair is None else f"{self.text!r} or {self.pair!r}"


def label_columns(
    source: str | Path, text: Column | None, label: Column | None, pair: Column | None
) -> LabelColumns:
    """Return the columns to read.

    Raises:
        TaskError: one is not named, or two are the same; a file's columns are listed.
    """
    if text is None or label is None:
        missing = "text" if text is None else "label"
        raise TaskError(
            f"{source}: name the column of the {missing} too, such as load_task(…, "
            f"text='sentence', label='label'){tables.columns_there(source)}"
        )
    columns = LabelColumns(text, label, pair)
    if len(set(columns.all)) < len(columns.all):
        raise TaskError(f"{source}: one column is named twice; text, label and pair differ")
    return columns


def from_files(
    train: Path,
    columns: LabelColumns,
    validation: str | Path | None,
    test: str | Path | None,
    seed: int,
) -> ClassificationTask:
    """Make a task of one to three local files.

    The classes are the values of the label column in the training rows, sorted; whole numbers by
    their size, and their names are their digits.

    Raises:
        TaskError: a file that is missing, empty or malformed, or without the columns; a row
            without a class; one class only.
    """
    parts = tables.read_files(columns.all, train, validation, test)
    return _task(train.name, parts, columns, seed)


def from_hub(hub_id: str, columns: LabelColumns, seed: int) -> ClassificationTask:
    """Make a task of a hub data set's splits, without those whose classes are kept secret.

    Raises:
        TaskError: as `from_files`, or the hub or the data set is not reached.
    """
    parts = {}
    for part, (source, table) in tables.read_hub(hub_id).items():
        tables.need_columns(table, columns.all, source)
        if part != "training" and set(table[str(columns.label)]) == {_UNKNOWN}:
            tables.warn(f"{source} has no labels; it is left out")
        else:
            parts[part] = source, table
    return _task(hub_id, parts, columns, seed)


def _task(
    name: str, parts: Mapping[str, tuple[str, Dataset]], columns: LabelColumns, seed: int
) -> ClassificationTask:
    rows = {part: _rows(table, columns, source) for part, (source, table) in parts.items()}
    train, validation, test = rows["training"], rows.get("validation"), rows.get("test", [])
    labels = _sorted({row.label for row in train})
    if len(labels) < 2:
        raise TaskError(
            f"{parts['training'][0]}: column {columns.label!r} holds one class only "
            f"({labels[0]!r}); there is nothing to tell apart"
        )
    for part, (source, _) in parts.items():
        if strange := _sorted({row.label for row in rows[part]} - set(labels)):
            raise TaskError(
                f"{source}: class {strange[0]!r} is in no training row; the training rows have "
                f"{some(labels)}"
            )
    if validation is None:
        train, validation = _hold_out(name, train, seed)
    seen = set(map(_unlabelled, train))
    for part, held_out in (("validation", validation), ("test", test)):
        tables.warn_known(name, part, "texts", len(seen & set(map(_unlabelled, held_out))))
    shuffled = random.Random(f"validation {seed}").sample(validation, len(validation))
    return ClassificationTask(
        name, False, labels, train=tuple(train), validation=tuple(shuffled), test=tuple(test)
    )


def _sorted(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


def _hold_out(
    name: str, rows: Sequence[LabelledText], seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Split by text, so that no text is on both sides."""
    different = list(dict.fromkeys(map(_unlabelled, rows)))
    if len(different) < 2:
        raise TaskError(
            f"{name} has one text only, nothing can be held out; give validation='…' or more rows"
        )
    rng = random.Random(f"held out {seed}")
    chosen = set(rng.sample(different, tables.held_out_count(different)))
    return (
        [row for row in rows if _unlabelled(row) not in chosen],
        [row for row in rows if _unlabelled(row) in chosen],
    )


def _unlabelled(row: LabelledText) -> LabelledText:
    return dataclasses.replace(row, label="")


def _rows(table: Dataset, columns: LabelColumns, source: str) -> list[LabelledText]:
    tables.need_columns(table, columns.all, source)
    read = tables.texts(table, columns.text, source)
    pairs: Sequence[str | None] = [None] * len(read)
    if columns.pair is not None:
        pairs = tables.texts(table, columns.pair, source)
    labels = _labels(table, columns.label, source)
    kept = []
    for number, (text, pair, label) in enumerate(zip(read, pairs, labels, strict=True), 1):
        if not text or pair == "":
            continue
        if not label:
            raise TaskError(
                f"{source}: row {number} ({text[:40]!r}) has no class in column "
                f"{columns.label!r}; fill it in, or leave the row out"
            )
        kept.append(LabelledText(text, label, pair))
    if not kept:
        raise TaskError(
            f"{source}: every row lacks {columns.texts}; there is nothing to learn from"
        )
    tables.warn_left_out(source, len(read) - len(kept), len(read), columns.texts)
    return kept


def _labels(table: Dataset, column: Column, source: str) -> list[str]:
    """Return the names of the rows' classes, "" where a row has none."""
    from datasets import ClassLabel

    feature: Any = table.features[str(column)]
    if isinstance(feature, ClassLabel):
        values = table[str(column)]
        return [feature.int2str(v) if v is not None and v != _UNKNOWN else "" for v in values]
    if not str(getattr(feature, "dtype", "")).startswith("float"):
        return tables.texts(table, column, source)
    found = []
    for number, value in enumerate(table[str(column)], 1):
        missing = value is None or math.isnan(value)
        if not missing and not value.is_integer():
            raise TaskError(
                f"{source}: row {number} has {value} in column {column!r}, which is no class but a "
                "measure; classification needs names or whole numbers"
            )
        found.append("" if missing else str(int(value)))
    return found
