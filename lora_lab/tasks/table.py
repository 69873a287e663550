"""A table of named columns: what every reader of data gives, and every kind of task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import TaskError

Column = str | int  # an int counts from 0, in a file that has no line of names


@dataclass(frozen=True)
class Table:
    """Rows by their columns. What stands in them is text and stays text.

    Attributes:
        columns: {name: its values, one a row}; all of one length. A value is a `str`, as it is
            written in the file; a list or a dict where the data is nested, the texts in it
            untouched; None where nothing stands. Columns without names are "0", "1", ….
        source: what messages call it: the file, or the data set and its split.
        floats: the columns of floating-point numbers; their whole numbers may be classes.
    """

    columns: Mapping[str, Sequence[Any]]
    source: str
    floats: frozenset[str] = frozenset()

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
            if str(column) not in self.columns:
                raise TaskError(f"{self.source} has no column {column!r}; {self.columns_there()}")

    def columns_there(self) -> str:
        """Return the end of a line on columns: those that there are."""
        return f"its columns are {', '.join(self.columns)}"

    def texts(self, column: Column) -> list[str]:
        """Return a column as text, stripped; "" where there is none.

        Raises:
            TaskError: it holds lists or dicts.
        """
        for value in self[column]:
            if isinstance(value, (list, dict)):
                raise TaskError(
                    f"{self.source}: column {column!r} holds {type(value).__name__}s, not text"
                )
        return ["" if value is None else str(value).strip() for value in self[column]]
