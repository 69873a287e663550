"""Arrow's typed columns as text: .parquet, .arrow and .feather, and what `datasets` holds.

A column is made text when it is first asked for: pictures beside the texts cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lora_lab._util.json_files import parse_text
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.formats.unpacked import (
    check_column,
    most_unpacked,
    unpack_messages,
    unpack_parquet,
)
from lora_lab.tasks.table import LazyColumn, Table

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset


def read_parquet(file: IO[bytes], source: str, most: int) -> Table:
    """Read a .parquet: this file, its folder's name tells no columns.

    Args:
        file: a whole one.
        source: for messages.
        most: bytes that it, and each column's values, may unpack to.
    """
    return of_arrow(unpack_parquet(file, source, most), source, most=most)


def read_ipc(file: IO[bytes], source: str, most: int) -> Table:
    """Read an .arrow or .feather: Arrow's file or stream, or Feather of version 1."""
    from pyarrow import feather

    start = file.read(8)
    if start.startswith(b"FEA1"):
        table = feather.read_table(file)
        table.validate(full=True)
    else:  # a file is a stream between a mark and an index
        file.seek(8 if start.startswith(b"ARROW1") else 0)
        table = unpack_messages(file, source, most)
    return of_arrow(table, source, most=most)


def of_dataset(dataset: Dataset, source: str) -> Table:
    """Return the table of a `datasets.Dataset`; a class is called by its name."""
    classes = {
        name: list(feature.names)
        for name, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    return of_arrow(dataset.with_format("arrow")[:], source, classes)


def of_arrow(
    table: pa.Table,
    source: str,
    classes: Mapping[str, Sequence[str]] | None = None,
    most: int | None = None,
) -> Table:
    """Return the table of an Arrow table.

    Args:
        table: its columns become text: numbers and dates as Python writes them, but decimals with
            all their digits, and float32 with its own; bytes are read as UTF-8; NaN is nothing.
        source: for messages.
        classes: {column of numbers: the names that they stand for}; None: what `datasets` noted
            in the file.
        most: bytes that a column's values may take; None: what texts of this table's size do.
    """
    from pyarrow import types

    names = table.column_names
    twice = frozenset(name for name in names if names.count(name) > 1)
    noted = _noted_classes(table) if classes is None else classes
    most = most_unpacked(table.nbytes) if most is None else most
    floats = frozenset(f.name for f in table.schema if types.is_floating(f.type))

    def read(name: str) -> list[Any]:
        check_column(table[name], source, most)
        return _read(table[name], name, source, noted.get(name))

    def column(name: str) -> LazyColumn:
        return LazyColumn(len(table), lambda: read(name))

    orders = {name: tuple(own) for name, own in noted.items()} | _ordered(table)
    columns = {name: column(name) for name in names if name not in twice}
    return Table(columns, source, floats, twice, classes=orders)


def _ordered(table: pa.Table) -> dict[str, tuple[str, ...]]:
    """Return {column of ordered texts, such as pandas' categories: these, in their order}."""
    from pyarrow import types

    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if types.is_dictionary(kind) and kind.ordered and len(column):
            values = column.unify_dictionaries().chunk(0).dictionary.to_pylist()
            found[name] = tuple(map(str, values))
    return found


def _read(
    column: pa.ChunkedArray, name: str, source: str, classes: Sequence[str] | None
) -> list[Any]:
    try:
        return _texts(column) if classes is None else _class_names(column.to_pylist(), classes)
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{source}: column {name!r} holds bytes that are no UTF-8 ({error.object[:20]!r}); "
            "write it as text"
        ) from as_cause(error)


def _texts(column: pa.ChunkedArray) -> list[Any]:
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind) and str(kind.value_type) in ("string", "large_string"):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        found: list[Any] = column.to_pylist()
        return found
    if types.is_floating(kind):
        return _floats(column.to_numpy())
    return [written(value) for value in column.to_pylist()]


def _floats(numbers: npt.NDArray[Any]) -> list[str | None]:
    """Return numbers with their own digits: as float64 the float32 0.1 has 17.

    Whole ones beside a gap are whole numbers that pandas made floats of, and are written so.
    """
    there = numbers[~np.isnan(numbers)]
    if (
        len(there) < len(numbers)
        and np.array_equal(there, there.round())
        and np.isfinite(there).all()
    ):
        return [None if number != number else str(int(number)) for number in numbers]
    return [None if number != number else str(number) for number in numbers]


def written(value: Any) -> Any:
    """Return a Python value as text: None where it is nothing, lists and dicts as they are."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode()
    if isinstance(value, Mapping):
        return {key: _nested(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nested(inner) for inner in value]
    if isinstance(value, Decimal):
        return None if value.is_nan() else format(value, "f")
    return str(value) if value == value else None  # NaN and NaT are not equal to themselves


def _nested(value: Any) -> Any:
    """Return a value inside of a list or dict: its type is kept, but bytes are text."""
    return written(value) if isinstance(value, (bytes, list, tuple, Mapping)) else value


def _class_names(values: Sequence[int | None], names: Sequence[str]) -> list[str | None]:
    return [None if v is None or not 0 <= v < len(names) else names[v] for v in values]


def _noted_classes(table: pa.Table) -> dict[str, Sequence[str]]:
    """Return the classes' names that `datasets` notes in the files that it writes."""
    noted = (table.schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_text(noted.decode())["info"]["features"] if noted else {}
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
