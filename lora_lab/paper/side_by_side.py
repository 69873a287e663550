"""Runs, sweeps and published tables in one table: what each came to, and on what.

Nothing here says that one is better: rows of other data, models or metrics only stand beside each
other. Runs that may be compared are `compare_methods`' and `ll.compare`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_lab._util.format import format_number
from lora_lab._util.tables import Table
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.differing import settings_in_words
from lora_lab.analysis.methods import MethodComparison, named
from lora_lab.analysis.records import metrics, training_settings
from lora_lab.errors import ConfigError, RunError
from lora_lab.paper.own_rows import records_of
from lora_lab.paper.rows import PublishedRow
from lora_lab.paper.tables import TABLES
from lora_lab.runs.records import RunRecord, find_run, is_sweep, list_runs
from lora_lab.tasks.metrics import metric_of

_HEADER = "from", "model", "method", "setting", "learning rate", "parameters", "scores"
_KNOWN = (
    "a run, its id or folder, a sweep or its folder, what comparisons return, or a table's name"
)
_AFTER = "_after"


def side_by_side(*things: Any) -> Table:
    """Set runs, sweeps and published tables beside each other, a row each.

    >>> side_by_side("Table 15", run, "runs/sweep")

    Args:
        things: runs (a `Run`, a `RunRecord`, an id or a folder), sweeps (or their folders), what
            `compare_methods` and `ll.compare` return, names of the paper's tables, such as
            "Table 4", `PublishedRow`s, or lists of these.

    Raises:
        ConfigError: what is none of these.
        RunError: a run that tells neither its method nor how it trained.
    """
    rows = tuple(row for thing in things for row in _rows(thing))
    if not rows:
        raise ConfigError(f"there is nothing to set side by side; give {_KNOWN}")
    return Table(_HEADER, rows, frozenset({"learning rate", "parameters"}))


def _rows(thing: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(thing, PublishedRow):
        yield _published(thing)
    elif isinstance(thing, MethodComparison | Choices):
        yield from _compared(thing)
    elif hasattr(thing, "sweeps") and hasattr(thing, "results"):  # of `ll.compare`
        yield from _compared(thing.results())
    elif hasattr(thing, "records") or hasattr(thing, "folder"):  # a sweep, a run, a run's record
        yield from _recorded(list(records_of(thing)))
    elif isinstance(thing, str | os.PathLike):
        yield from _named(thing)
    elif isinstance(thing, Iterable):
        for each in thing:
            yield from _rows(each)
    else:
        raise ConfigError(f"a {type(thing).__name__} cannot be set beside others; give {_KNOWN}")


def _named(name: str | os.PathLike[str]) -> Iterator[tuple[str, ...]]:
    published = [row for row in TABLES if row.table == name]
    if published:
        yield from map(_published, published)
    elif is_sweep(path := Path(name).expanduser()):
        yield from _recorded(list_runs(path))
    else:
        try:
            record = find_run(os.fspath(name))
        except RunError as error:
            tables = ", ".join(dict.fromkeys(row.table for row in TABLES))
            raise ConfigError(f"{error}; published tables are {tables}") from None
        yield from _recorded([record])


def _published(row: PublishedRow) -> tuple[str, ...]:
    scores = ", ".join(f"{name} {score:g}" for name, score in row.scores.items())
    printed = f"{row.published:,}"
    return (f"{row.table} (published)", row.model, row.method, row.setting, "", printed, scores)


def _recorded(records: list[RunRecord]) -> Iterator[tuple[str, ...]]:
    for record in records:
        try:
            (setting,) = settings_in_words([record], ())
            rate, model = training_settings(record)["learning_rate"], record.config["model"]["name"]
            task = record.config["task"]["name"]
        except KeyError as error:
            raise RunError(
                f"{record.folder / 'config.json'} does not tell {error}; leave that run out"
            ) from None
        trained = (record.summary or {}).get("trainable")
        scores = ", ".join(
            f"{metric_of(name).label} {format_number(value)}"
            for name, value in metrics(record).items()
            if name.endswith(_AFTER)
        )
        yield (
            *(f"run {record.id} on {task}", model, named(record), setting, f"{rate:g}"),
            *("" if trained is None else f"{trained:,}", scores or str(record.state)),
        )


def _compared(found: MethodComparison | Choices) -> Iterator[tuple[str, ...]]:
    label = metric_of(found.metric).label
    for row in found.rows:
        size = getattr(row, "train_examples", None)
        where = found.task if size is None else f"{size:,} examples of {found.task}"
        yield (
            *(f"{len(row.values)} runs on {where}", found.model, row.method, row.setting),
            *(f"{row.learning_rate:g}", f"{row.trainable:,}"),
            f"{label} {row.score}",
        )
