"""Runs, sweeps and published tables in one table: what each came to, and on what.

Nothing here says that one is better: rows of other data, models or metrics only stand beside each
other. Runs that may be compared are `compare_methods`' and `ll.compare`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lora_lab._util.format import format_number, plural
from lora_lab._util.tables import Table
from lora_lab.analysis.differing import settings_in_words
from lora_lab.analysis.methods import named
from lora_lab.analysis.records import metrics, training_settings
from lora_lab.errors import ConfigError, RunError
from lora_lab.paper.printed import PublishedTable
from lora_lab.paper.rows import PublishedRow
from lora_lab.paper.things import (
    KNOWN,
    Comparable,
    Thing,
    compared_cells,
    published_cells,
    things_of,
)
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import metric_of

_HEADER = "from", "model", "method", "setting", "learning rate", "parameters", "scores"
_AFTER = "_after"


def side_by_side(*things: Comparable) -> Table:
    """Set runs, sweeps and published tables beside each other, a row each.

    >>> side_by_side("Table 15", run, "runs/sweep")

    Args:
        things: runs (a `Run`, a `RunRecord`, an id or a folder), sweeps (or their folders), what
            `compare_methods` and `ll.compare` return, published tables and their rows, or names of
            tables, such as "Table 4" or "PEFT table 1", or lists of these.

    Raises:
        ConfigError: what is none of these.
        RunError: a run that tells neither its method nor how it trained.
    """
    rows = tuple(row for thing in things_of(things) for row in _rows(thing))
    if not rows:
        raise ConfigError(f"there is nothing to set side by side; give {KNOWN}")
    return Table(_HEADER, rows, frozenset({"learning rate", "parameters"}))


def _rows(thing: Thing) -> Iterator[tuple[str, ...]]:
    if isinstance(thing, RunRecord):
        yield _recorded(thing)
    elif isinstance(thing, PublishedRow):
        yield _row(f"{thing.table} (published)", published_cells(thing), list(thing.scores))
    elif isinstance(thing, PublishedTable):
        scores = [name for name in thing.header if name not in _HEADER]
        for row in thing.rows:
            cells = dict(zip(thing.header, row, strict=True))
            yield _row(f"{thing.source} (published)", cells, scores)
    else:
        label = metric_of(thing.metric).label
        for own in thing.rows:
            cells = compared_cells(thing, own) | {label: own.score}
            source = f"{plural(len(own.values), 'run')} on {cells['task']}"
            yield _row(source, cells, [label])


def _row(source: str, cells: Mapping[str, str], scores: Sequence[str]) -> tuple[str, ...]:
    told = ", ".join(f"{name} {cells[name]}" for name in scores if cells[name])
    return (source, *(cells.get(name, "") for name in _HEADER[1:-1]), told)


def _recorded(record: RunRecord) -> tuple[str, ...]:
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
    return (
        *(f"run {record.id} on {task}", model, named(record), setting, f"{rate:g}"),
        *("" if trained is None else f"{trained:,}", scores or str(record.state)),
    )
