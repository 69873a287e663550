"""The first sheet of an .xlsx, by openpyxl where that is installed."""

from __future__ import annotations

import datetime
import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

from lora_lab._util.warn import warn
from lora_lab.errors import TaskError
from lora_lab.tasks.table import Column, Table


def read_xlsx(file: IO[bytes], source: str, columns: Sequence[Column] = ()) -> Table:
    """Read the first sheet that has rows; its first row has the names.

    A date without a time is written as one; what a formula gave last is its value.

    Args:
        file: the .xlsx.
        source: for messages.
        columns: those that are wanted; numbers where there is no row of names.

    Raises:
        TaskError: openpyxl is not installed, or there are no rows.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise TaskError(f"{source}: an .xlsx is read by openpyxl; pip install openpyxl")
    import openpyxl

    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    filled: dict[str, list[list[str | None]]] = {}
    for sheet in book.worksheets:
        rows = [[_text(cell) for cell in row] for row in sheet.iter_rows()]
        filled[sheet.title] = [row for row in rows if any(value is not None for value in row)]
    first, *others = [name for name, rows in filled.items() if rows] or [""]
    if not first:
        raise TaskError(f"{source} is empty; it needs rows with named columns")
    if others:
        warn(f"{source}: sheet {first!r} is read, and not {', '.join(map(repr, others))}")
    by_numbers = any(isinstance(column, int) for column in columns)
    return _table(filled[first], source, by_numbers)


def _table(rows: list[list[str | None]], source: str, by_numbers: bool) -> Table:
    width = max(map(len, rows))
    header: list[str | None] = [str(number) for number in range(width)]
    if not by_numbers:
        header = rows[0] + [None] * (width - len(rows[0]))
        rows = rows[1:]
    columns = zip(*([*row, *[None] * (width - len(row))] for row in rows), strict=True)
    named = {
        f"Unnamed: {at}" if name is None else name: values
        for at, (name, values) in enumerate(zip(header, columns, strict=False))
        if name is not None or any(value is not None for value in values)
    }
    twice = frozenset(name for name, n in Counter(header).items() if name is not None and n > 1)
    kept = {name: values for name, values in named.items() if name not in twice}
    return Table(kept, source, ambiguous=twice)


def _text(cell: Any) -> str | None:
    """Return what a cell shows; None of an empty one and of an error, such as #N/A."""
    value = cell.value
    if value is None or cell.data_type == "e":
        return None
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime) and "h" not in cell.number_format.lower():
        return str(value.date())
    return str(value)
