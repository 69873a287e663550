"""A table of named columns: what every reader of data gives, and every kind of task reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from lora_lab.errors import TaskError

_SURROGATE = re.compile("[\ud800-\udfff]")

Column = str | int  # an int counts from 0, in a file that has no line of names


@dataclass(frozen=True)
class Table:
    """Rows by their columns. What stands in them is text and stays text.

    Attributes:
        columns: {name: its values, one a row}; all of one length. A value is a `str`, as it is
            written in the file; a list or a dict where the data is nested, the texts in it
            untouched; None where nothing stands; of what was in memory, whatever is no text.
            Columns without names are "0", "1", ….
        source: what messages call it: the file, or the data set and its split.
        floats: the columns of floating-point numbers; their whole numbers may be classes.
        ambiguous: names that several columns have; none of those is in `columns`.
    """

    columns: Mapping[str, Sequence[Any]]
    source: str
    floats: frozenset[str] = frozenset()
    ambiguous: frozenset[str] = frozenset()

    @property
    def column_names(self) -> list[str]:
        """The names, in the file's order."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(self[self.column_names[0]]) if self.columns else 0

    def __getitem__(self, column: Column) -> Sequence[Any]:
        return self.columns[str(column)]

    def need(self, columns: Sequence[Column]) -> None:
        """Raise `TaskError` where one of the columns is not there."""
        for column in columns:
            if column in self.ambiguous:
                raise TaskError(
                    f"{self.source} has several columns that are called {column!r}; rename all "
                    "but one"
                )
            if str(column) not in self.columns:
                raise TaskError(f"{self.source} has no column {column!r}; {self.columns_there()}")

    def columns_there(self) -> str:
        """Return the end of a line on columns: those that there are."""
        names = (name if name == name.strip() else repr(name) for name in self.columns)
        return f"its columns are {', '.join(names)}"

    def texts(self, column: Column) -> list[str]:
        """Return a column as text, as it stands; "" where there is none.

        Raises:
            TaskError: it holds lists or dicts, or half a letter.
        """
        found = []
        for number, value in enumerate(self[column], 1):
            if not isinstance(value, (str, NoneType)):
                raise TaskError(
                    f"{self.source}: column {column!r} holds {type(value).__name__}s, not text"
                )
            found.append(text := value or "")
            if not text.isascii() and _SURROGATE.search(text):
                raise TaskError(
                    f"{self.source}: row {number} has half a letter (a lone surrogate) in column "
                    f"{column!r}, at {ascii(text)[:40]}; no tokenizer takes it, mend the text"
                )
        return found
