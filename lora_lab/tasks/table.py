"""A table of named columns: what every reader of data gives, and every kind of task reads."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType
from typing import Any

from lora_lab.errors import TaskError

_SURROGATE = re.compile("[\ud800-\udfff]")

Column = str | int  # an int counts from 0, in a file that has no line of names


class LazyColumn(Sequence[Any]):
    """A column whose values are made when one of them is first asked for.

    Args:
        length: how many they are.
        make: returns them.
    """

    def __init__(self, length: int, make: Callable[[], Sequence[Any]]) -> None:
        self._length, self._make = length, make

    @cached_property
    def _values(self) -> Sequence[Any]:
        return self._make()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __getitem__(self, at: Any) -> Any:
        return self._values[at]


@dataclass(frozen=True)
class Table:
    """Rows by their columns. What stands in them is text and stays text.

    Attributes:
        columns: {name: its values, one a row}; all of one length. A value is a `str`, as it is
            written in the file; a list or a dict where the data is nested, the texts in it
            untouched; None where nothing stands; of what was in memory, whatever is no text.
            Columns without names are "0", "1", …. What is nested has a name too, by its path:
            "translation.en", "answers.text.0".
        source: what messages call it: the file, or the data set and its split.
        floats: the columns of typed floats, in no file of text; their whole numbers may be classes.
        ambiguous: names that several columns have; none of those is in `columns`.
        files: the tables that it was joined of, where several were.
        classes: {column of classes that have an order of their own: their names in it}.
    """

    columns: Mapping[str, Sequence[Any]]
    source: str
    floats: frozenset[str] = frozenset()
    ambiguous: frozenset[str] = frozenset()
    files: tuple[Table, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def column_names(self) -> list[str]:
        """The names, in the file's order."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(self[self.column_names[0]]) if self.columns else 0

    def __getitem__(self, column: Column) -> Sequence[Any]:
        name = str(column)
        if name in self.columns or (outer := self._outer(name)) is None:
            return self.columns[name]
        path = name.removeprefix(f"{outer}.").split(".")
        return [at_path(value, path) for value in self.columns[outer]]

    def _outer(self, name: str) -> str | None:
        """Return the column that something nested is in; None: there is no such."""
        parts = name.split(".")
        heads = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        outer = next((head for head in heads if head in self.columns), None)
        if outer is None:
            return None
        path = name.removeprefix(f"{outer}.").split(".")
        there = (at_path(value, path) is not None for value in self.columns[outer])
        return outer if any(there) else None

    def has(self, column: Column) -> bool:
        """Return whether there is a column of this name, or something nested at this path."""
        return str(column) in self.columns or self._outer(str(column)) is not None

    def need(self, columns: Sequence[Column]) -> None:
        """Raise `TaskError` where one of the columns is not there."""
        for file in self.files:
            file.need(columns)
        for column in columns:
            if column in self.ambiguous:
                raise TaskError(
                    f"{self.source} has several columns that are called {column!r}; rename all "
                    "but one"
                )
            if not self.has(column):
                raise TaskError(f"{self.source} has no column {column!r}; {self.columns_there()}")

    def columns_there(self) -> str:
        """Return the end of a line on columns: those that there are."""
        names = [name if name == name.strip() else repr(name) for name in self.columns]
        for name, values in self.columns.items():
            first = next((value for value in values if value is not None), None)
            if isinstance(first, dict):
                names += [f"{name}.{key}" for key in first]
        return f"its columns are {', '.join(names)}{self._without_names()}"

    def _without_names(self) -> str:
        """Return what to do where the line of names looks like a row: it has its columns' words."""
        if not any(name in values for name, values in self.columns.items()):
            return ""
        return (
            "; its first line looks like a row: of a file without a line of names columns are "
            "given by their numbers, such as text=0, label=1"
        )

    def place(self, number: int) -> str:
        """Return what messages call a row, by its file; the first one is 1."""
        for file in self.files:
            if number <= len(file):
                return file.place(number)
            number -= len(file)
        return f"{self.source}: row {number}"

    def texts(self, column: Column) -> list[str]:
        """Return a column as text, as it stands; "" where there is none.

        Raises:
            TaskError: it holds lists or dicts, or half a letter.
        """
        values, found = self[column], []
        if set(map(type, values)) == {str}:  # nearly always, and quick
            with contextlib.suppress(UnicodeEncodeError):  # half a letter
                "".join(values).encode()
                return list(values)
        for number, value in enumerate(values, 1):
            if not isinstance(value, (str, NoneType)):
                raise TaskError(f"{self.source}: column {column!r} {_no_text(column, value)}")
            found.append(text := value or "")
            if not text.isascii() and _SURROGATE.search(text):
                raise TaskError(
                    f"{self.place(number)} has half a letter (a lone surrogate) in column "
                    f"{column!r}, at {ascii(text)[:40]}; no tokenizer takes it, fix the text"
                )
        return found


def _no_text(column: Column, value: Any) -> str:
    """Return what a column holds in place of text, and how its texts are read."""
    kind = type(value).__name__
    line = f"holds {'bytes that are no UTF-8' if kind == 'bytes' else f'{kind}s'}, not text"
    if isinstance(value, dict) and value:
        return f"{line}; name what is in them, such as '{column}.{next(iter(value))}'"
    if isinstance(value, list):
        return f"{line}; '{column}.0' is the first one of each; for all of them write a row each"
    return line


def at_path(value: Any, path: Sequence[str]) -> Any:
    """Return what stands in nested dicts and lists, a number as it is written; None: nothing."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return None if value != value else getattr(value, "text", str(value))
    return value


def joined(tables: Sequence[Table], source: str) -> Table:
    """Return one table of the rows of several; a column that one lacks has None there.

    Args:
        tables: in the order of the rows.
        source: what messages call all of them.
    """
    if len(tables) == 1:
        return tables[0]
    names = dict.fromkeys(name for table in tables for name in table.columns)
    length = sum(map(len, tables))

    def column(name: str) -> LazyColumn:
        return LazyColumn(length, lambda: list(_chained(tables, name)))

    return Table(
        {name: column(name) for name in names},
        source,
        frozenset(name for name in names if _is_float(tables, name)),
        frozenset().union(*(table.ambiguous for table in tables)),
        tuple(tables),
        {n: own for n, own in tables[0].classes.items() if _all_have(tables, n, own)},
    )


def _chained(tables: Sequence[Table], name: str) -> Iterator[Any]:
    for table in tables:
        yield from table.columns.get(name, itertools.repeat(None, len(table)))


def _all_have(tables: Sequence[Table], name: str, classes: tuple[str, ...]) -> bool:
    return all(table.classes.get(name) == classes for table in tables)


def _is_float(tables: Sequence[Table], name: str) -> bool:
    """Return whether a column is one of floats wherever there is anything in it."""
    return any(name in table.floats for table in tables) and all(
        name in table.floats or not any(table.columns.get(name, ())) for table in tables
    )
