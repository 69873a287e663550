"""Rows that are in memory already, as tables: lists, frames and data sets of any library.

Whatever holds rows is read: a list of dicts or of tuples, a dict of columns, a pandas or polars
frame, an Arrow table, a `datasets.Dataset`, anything with a length and an index; a dict of these by
their splits; and a stream, of which a first part is taken.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import inspect
import itertools
import numbers
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lora_lab._util.quiet import first_line
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.files import FORMATS, suffix_of
from lora_lab.tasks.table import Table
from lora_lab.tasks.tables import (
    HELD_OUT_MOST,
    HELD_OUT_SHARE,
    NO_SPLITS,
    Splits,
    find_splits,
    of_dataset,
)

_WRITTEN = (str, numbers.Number, uuid.UUID, datetime.date, datetime.time)  # text once written out
_MISSING = {"NAType", "NaTType"}  # pandas' own, which compare with nothing


class InMemory(NamedTuple):
    """What was read: {"training", …: its table}, and lines on streams cut off and sets sorted."""

    parts: dict[str, Table]
    notes: tuple[str, ...] = ()


def is_in_memory(given: object) -> bool:
    """Return whether this is data, and not the name of some; of several strings, texts are."""
    if not isinstance(given, (list, tuple)) or not given:
        return not isinstance(given, (str, os.PathLike))
    if not all(isinstance(name, (str, os.PathLike)) for name in given):
        return True
    return not any(_is_name(str(name)) for name in given)


def _is_name(text: str) -> bool:
    """Return whether this names a file rather than being a text: texts have spaces."""
    return len(text.split()) < 2 or suffix_of(Path(text)) in FORMATS or os.path.exists(text)


def kind_of(given: object) -> str:
    """Return what people call it: "DataFrame in memory"."""
    return f"{'stream' if _is_stream(given) else type(given).__name__} in memory"


def read_memory(given: Any, rows: int | None, splits: Splits = NO_SPLITS) -> InMemory:
    """Read what is in memory; what becomes of it later changes nothing.

    Args:
        given: rows, or {"train", "validation", "test": rows}.
        rows: how many to train on are wanted of a stream; None: nobody has said.
        splits: {"training", …: the split that is this part}, where somebody has said.

    Raises:
        TaskError: it holds no rows, or rows that do not go together, or is a stream without an
            end that is known.
    """
    name = kind_of(given)
    if hasattr(given, "read"):
        raise TaskError(f"{name} is an open file; give its name")
    found = {"training": (name, given)}
    if _is_splits(given):
        parts = find_splits(list(given), name, splits).items()
        found = {part: (f"{name} ({split})", given[split]) for part, split in parts}
    elif splits:
        split = next(iter(splits.values()))
        raise TaskError(f"{name} has no splits, so that {split!r} is none of them; give rows")
    if rows is not None and "validation" not in found:  # held out of the rows that are taken
        rows += min(HELD_OUT_MOST, -(-rows // (HELD_OUT_SHARE - 1)))
    return _read(found, rows)


def read_part(given: Any, part: str) -> InMemory:
    """Read the rows of one held-out part; of a stream the first ones."""
    return _read({part: (f"{kind_of(given)} ({part})", given)}, None)


def _read(given: Mapping[str, tuple[str, Any]], rows: int | None) -> InMemory:
    parts, notes = {}, []
    for part, (source, data) in given.items():
        orders = {name: tuple(own.names) for name, own in _class_features(data).items()}
        if _is_stream(data):
            most = rows if part == "training" else HELD_OUT_MOST
            data = _taken(data, source, most)
            notes.append(f"{source}: its first {len(data):,} rows are taken")
        if isinstance(data, (set, frozenset)):  # of texts it has another order in each process
            data = sorted(data, key=lambda row: (type(row).__name__, repr(row)))
            notes.append(f"{source}: a set has no order; its rows are sorted")
        table = _table(data, source)
        parts[part] = replace(table, classes={**table.classes, **orders})
        if not len(parts[part]):
            raise TaskError(f"{source} has no rows; it needs at least two")
    return InMemory(parts, tuple(notes))


def _is_splits(given: Any) -> bool:
    """Return whether it is {"train": rows, …}, and not {column: values}."""
    if not isinstance(given, Mapping) or not given:
        return False
    if all(hasattr(rows, "column_names") for rows in given.values()):  # a DatasetDict
        return True
    return "train" in given and not _is_column(given["train"])


def _is_column(values: Any) -> bool:
    first = next(iter(values), None) if isinstance(values, (list, tuple)) else None
    return getattr(values, "ndim", 2) == 1 or isinstance(first, _WRITTEN)


# Streams -----------------------------------------------------------------------------------------


def _is_stream(given: Any) -> bool:
    if _is_splits(given):
        return any(map(_is_stream, given.values()))
    return not hasattr(given, "__len__") and (isinstance(given, Iterable) or _is_function(given))


def _is_function(given: Any) -> bool:
    return inspect.isroutine(given) or isinstance(given, functools.partial)


def _taken(given: Any, source: str, most: int | None) -> list[Any]:
    if most is None:
        raise TaskError(
            f"{source} does not say where it ends; ll.train(…, max_steps=100) takes what its steps "
            "reach, and so does load_task(…, max_steps=100); list(rows) takes all where it does end"
        )
    try:
        rows = given() if _is_function(given) and not isinstance(given, Iterable) else given
    except TypeError as error:
        raise TaskError(f"{source}: {error}; give a function without arguments") from as_cause(
            error
        )
    taken = list(itertools.islice(rows, most))
    classes = _class_features(rows)
    if not classes:
        return taken
    return [{**row, **{c: _class_name(row.get(c), f) for c, f in classes.items()}} for row in taken]


def _class_features(given: Any) -> dict[str, Any]:
    """Return {column: the ClassLabel} that a data set of `datasets` says of itself."""
    features = getattr(given, "features", None)
    own = features if isinstance(features, Mapping) else {}
    return {name: feature for name, feature in own.items() if hasattr(feature, "int2str")}


def _class_name(value: int | None, feature: Any) -> str | None:
    return None if value is None or value < 0 else feature.int2str(value)


# Tables ------------------------------------------------------------------------------------------


def _table(given: Any, source: str) -> Table:
    # A datasets.Dataset, whatever its rows are shown as; what a transform makes are other rows.
    if hasattr(given, "with_format") and given.format["type"] != "custom":
        return of_dataset(given.with_format(None), source)
    read = [(str(name), list(map(_value, values))) for name, values in _columns(given, source)]
    columns, names = dict(read), [name for name, _ in read]
    twice = frozenset(name for name in names if names.count(name) > 1)
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise TaskError(f"{source} has columns of different lengths ({lengths})")
    floats = {name for name, values in columns.items() if any(map(_is_float, values))}
    texts = {n: list(map(_text, values)) for n, values in columns.items() if n not in twice}
    return Table(texts, source, frozenset(floats), twice, classes=_classes(given))


def _classes(given: Any) -> dict[str, tuple[str, ...]]:
    """Return {column of pandas' categories: these, in their order}."""
    if not (hasattr(given, "iloc") and hasattr(given, "columns")):
        return {}
    kinds = ((str(name), given.iloc[:, i].dtype) for i, name in enumerate(given.columns))
    return {n: tuple(map(str, own.categories)) for n, own in kinds if hasattr(own, "categories")}


def _columns(given: Any, source: str) -> Iterable[tuple[Any, Iterable[Any]]]:
    """Return (column, its values), all of them still as they were given."""
    if hasattr(given, "iloc") and hasattr(given, "columns"):  # pandas
        return [(name, _of_pandas(given.iloc[:, i])) for i, name in enumerate(given.columns)]
    if hasattr(given, "to_pydict"):  # Arrow
        return zip(given.column_names, map(list, given.to_pydict().values()), strict=True)
    if hasattr(given, "to_dicts"):  # polars
        return _of_rows(given.to_dicts(), source)
    if isinstance(given, Mapping):
        if any(isinstance(v, (str, Mapping)) or not hasattr(v, "__len__") for v in given.values()):
            raise TaskError(
                f"{source} is no table: give a list of dicts, or a dict of columns that are lists"
            )
        return [(name, list(values)) for name, values in given.items()]
    if hasattr(given, "tolist"):  # NumPy
        names = getattr(given.dtype, "names", None)
        if names:
            return [(name, given[name].tolist()) for name in names]
        return _of_rows(given.tolist(), source)
    if hasattr(given, "__len__"):
        return _of_rows(_indexed(given, source), source)
    raise TaskError(
        f"{type(given).__name__} holds no rows; give a list of dicts, a DataFrame, a "
        "datasets.Dataset or a file's name"
    )


def _indexed(given: Any, source: str) -> list[Any]:
    if not hasattr(given, "__getitem__") or isinstance(given, (list, tuple)):
        return list(given)
    try:
        return [given[i] for i in range(len(given))]
    except (LookupError, TypeError) as error:
        raise TaskError(
            f"{source} holds no rows that are numbered from 0 ({first_line(error)}); give a list"
        ) from as_cause(error)


def _of_pandas(column: Any) -> list[Any]:
    """Return a column's values; whole numbers that pandas made floats of, beside a gap, again so.

    A column of whole numbers in which one is missing is of floats to pandas.
    """
    is_float = getattr(column.dtype, "kind", "") == "f"  # a float32 keeps its own digits
    values = list(map(_value, column.to_numpy() if is_float else column.tolist()))
    present = [value for value in values if value is not None]
    floats = is_float and len(present) < len(values)
    if floats and all(value.is_integer() for value in present):
        return [None if value is None else int(value) for value in values]
    return values


def _of_rows(rows: Sequence[Any], source: str) -> list[tuple[Any, list[Any]]]:
    """Return the columns of dicts; of tuples, numbered from 0; or the one of texts."""
    first = rows[0] if rows else {}
    if isinstance(first, str) and all(isinstance(row, str) for row in rows):
        return [("text", list(rows))]
    named = isinstance(first, Mapping)
    kinds = Mapping if named else (tuple, list)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, kinds) or not (named or len(row) == len(first)):
            raise TaskError(
                f"{source}: row {number} is {str(row)[:40]!r}; rows are dicts, or tuples of one "
                "length such as (prompt, completion)"
            )
    if named:
        names = dict.fromkeys(name for row in rows for name in row)
        return [(name, [row.get(name) for row in rows]) for name in names]
    fields: Sequence[Any] = getattr(type(first), "__match_args__", ()) or range(len(first))
    return [(name, [row[i] for row in rows]) for i, name in enumerate(fields)]


def _value(value: Any) -> Any:
    """Return a value with nothing missing but None, and a copy of what is nested."""
    if type(value) is str:
        return value
    if isinstance(value, Mapping):
        return {str(name): _value(part) for name, part in value.items()}
    if hasattr(value, "tolist") and getattr(value, "ndim", False):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_value(part) for part in value]
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):  # a picture is none
            return value.decode()
    if type(value).__name__ in _MISSING or (isinstance(value, numbers.Number) and value != value):
        return None
    return value


def _is_float(value: Any) -> bool:
    if isinstance(value, (str, int)):  # most values, and quick
        return False
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational)


def _text(value: Any) -> Any:
    """Return what is a text once it is written out as one; an image or a tensor is none."""
    if type(value) is str:
        return value
    written = isinstance(value, _WRITTEN) or type(value).__name__ in ("bool", "bool_")
    return str(value) if written else value
