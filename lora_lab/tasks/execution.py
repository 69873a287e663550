"""Execution accuracy: does a query that a model wrote return what the right one does?

Queries run in sqlite, in memory, on a table of their own: nothing but reading it is allowed there,
whatever the model wrote, and what takes long is broken off.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora_lab.tasks.intervals import Interval, wilson
from lora_lab.tasks.metrics import Metric, register_metric

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
_FUNCTIONS = {"count", "sum", "avg", "min", "max", "lower", "upper", "length", "like", "abs"}
_MOST_STEPS, _MOST_ROWS, _MOST_LETTERS = 1_000_000, 10_000, 10_000

register_metric(Metric("execution", None, unit="%", label="execution accuracy"))


@dataclass(frozen=True)
class SqlTable:
    """A table that queries are run on.

    Attributes:
        name: as queries call it.
        rows: {column: text} each.
    """

    name: str
    rows: Sequence[Mapping[str, str]] = field(repr=False)

    def metric(self) -> Metric:
        """Return execution accuracy on this table, from 0 to 100."""
        return Metric(
            "execution",
            self.accuracy,
            unit="%",
            label="execution accuracy",
            interval=self.interval,
        )

    def accuracy(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Return how many queries of a hundred return what one of the right ones does."""
        return 100 * self._hits(predictions, references) / len(references)

    def interval(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Interval:
        """Return the 95 % interval of `accuracy`."""
        return wilson(self._hits(predictions, references), len(references))

    def _hits(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> int:
        hits = 0
        with self._opened() as database:
            for query, right in zip(predictions, references, strict=True):
                found = _run(database, query)
                hits += found is not None and any(found == _run(database, r) for r in right)
        return hits

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            names = list(self.rows[0])
            columns = ", ".join(f'"{name}" TEXT' for name in names)
            database.execute(f'CREATE TABLE "{self.name}" ({columns})')
            marks = ", ".join("?" * len(names))
            values = [tuple(row[name] for name in names) for row in self.rows]
            database.executemany(f'INSERT INTO "{self.name}" VALUES ({marks})', values)
            database.set_authorizer(_authorize)
            yield database


def _authorize(action: int, _first: str | None, second: str | None, *_: object) -> int:
    function = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FUNCTIONS
    return sqlite3.SQLITE_OK if action in _ALLOWED or function else sqlite3.SQLITE_DENY


def _run(database: sqlite3.Connection, query: str) -> Counter[tuple[object, ...]] | None:
    """Return a query's rows, whatever their order; None of one that fails."""
    if len(query) > _MOST_LETTERS:
        return None
    steps = iter([0])  # the second call breaks it off
    database.set_progress_handler(lambda: next(steps, 1), _MOST_STEPS)
    try:
        return Counter(database.execute(query).fetchmany(_MOST_ROWS))
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError):
        return None
    finally:
        database.set_progress_handler(None, 0)
