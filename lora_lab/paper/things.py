"""What may be set beside published numbers, whatever it is named by: one reader for all doors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from lora_lab._util.files import user_path
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.methods import MethodComparison
from lora_lab.errors import ConfigError, RunError
from lora_lab.paper.printed import PublishedTable, printed_table
from lora_lab.paper.rows import PublishedRow
from lora_lab.paper.tables import TABLES
from lora_lab.runs.records import RunRecord, find_run, is_sweep, list_runs

if TYPE_CHECKING:  # what is recorded is read where torch is not
    from lora_lab.sweeps.comparison import Comparison
    from lora_lab.sweeps.local import Sweep
    from lora_lab.training.run import Run

Thing: TypeAlias = RunRecord | PublishedRow | PublishedTable | MethodComparison | Choices
Comparable: TypeAlias = (
    "Thing | Run | Sweep | Comparison | str | os.PathLike[str] | Iterable[Comparable]"
)
KNOWN = "a run, a sweep, the id or folder of one, what comparisons return, a table, or several"
_TABLE = re.compile(r"(?:(LoRA|AdaLoRA|PEFT),? )?table (\d+)", re.IGNORECASE)
_PAPERS = {"lora": "LoRA", "adalora": "AdaLoRA", "peft": "PEFT"}


def things_of(given: Any) -> Iterator[Thing]:
    """Yield what stands behind runs, sweeps, comparisons, tables and their names, in their order.

    Args:
        given: a `Run`, a `RunRecord`, an id or a folder of a run; a sweep or its folder; what
            `compare`, `compare_methods` and `Comparison.results` return; a row or table of a paper,
            or its name: "Table 15", "AdaLoRA table 1"; or several of these.

    Raises:
        ConfigError: for what is none of these.
        RunError: a run has left nothing on the disk.
    """
    if isinstance(given, RunRecord | PublishedRow | PublishedTable | MethodComparison | Choices):
        yield given
    elif hasattr(given, "sweeps") and hasattr(given, "results"):  # of `ll.compare`
        yield given.results()
    elif hasattr(given, "records"):
        yield from given.records()
    elif hasattr(given, "folder"):
        yield find_run(given.folder)
    elif isinstance(given, str | os.PathLike):
        yield from _named(given)
    elif isinstance(given, Iterable) and not isinstance(given, bytes):
        for each in given:
            yield from things_of(each)
    else:
        raise ConfigError(
            f"a {type(given).__name__} is no run, and cannot be set beside others; give {KNOWN}"
        )


def _named(name: str | os.PathLike[str]) -> Iterator[Thing]:
    counted = [row for row in TABLES if row.table == name]
    if counted:
        yield from counted
    elif isinstance(name, str) and (table := _TABLE.fullmatch(name.strip())):
        yield printed_table(_PAPERS[(table[1] or "LoRA").lower()], table[2])
    elif is_sweep(path := user_path(name, RunError)):
        yield from list_runs(path)
    else:
        try:
            yield find_run(os.fspath(name))
        except RunError as error:
            tables = ", ".join(dict.fromkeys(row.table for row in TABLES))
            raise ConfigError(f"{error}; published tables are {tables} …") from None


def compared_cells(found: MethodComparison | Choices, row: Any) -> dict[str, str]:
    """Return a comparison's row by the names of columns."""
    size = getattr(row, "train_examples", None)
    return {
        "model": found.model,
        "method": row.method,
        "setting": row.setting,
        "learning rate": f"{row.learning_rate:g}",
        "parameters": f"{row.trainable:,}",
        "task": found.task if size is None else f"{size:,} examples of {found.task}",
    }


def published_cells(row: PublishedRow) -> dict[str, str]:
    """Return a counted row by the names of columns, its scores too."""
    return {
        "model": row.model,
        "method": row.method,
        "setting": row.setting,
        "parameters": f"{row.published:,}",
        **{name: f"{score:g}" for name, score in row.scores.items()},
    }
