"""Tasks from files and hub data sets with named columns, read through `datasets`.

What stands in the data is text and stays text: it is not run, formatted or rendered here.
"""

from __future__ import annotations

import csv
import random
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._hub import hub_host, hub_reachable
from lora_lab._quiet import first_line, quiet_datasets
from lora_lab.errors import TaskError
from lora_lab.tasks.base import Example, Task

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_HELD_OUT_SHARE, _HELD_OUT_MOST = 10, 100  # one prompt in ten, 100 at most
_VALIDATION_SPLITS = ("validation", "dev", "val")


@dataclass(frozen=True)
class Columns:
    """The columns that make an example."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class _Row:
    prompt: str
    completion: str


def is_file_name(name: str) -> bool:
    """Return whether a task's name is a file of a known format, or a file at all."""
    return _suffix(Path(name)) in FORMATS or Path(name).is_file()


def columns_asked_for(source: str | Path, prompt: str | None, completion: str | None) -> Columns:
    """Return the columns to read.

    Raises:
        TaskError: one is not named; where the source is a file, its columns are listed.
    """
    if prompt and completion:
        return Columns(prompt, completion)
    there = ""
    if is_file_name(str(source)):
        there = f"; its columns are {', '.join(_read(Path(source), ()).column_names)}"
    raise TaskError(
        f"{source}: name the columns to read, such as load_task(…, prompt='mr', completion='ref')"
        f"{there}"
    )


def from_files(
    train: Path,
    columns: Columns,
    validation: str | Path | None,
    test: str | Path | None,
    seed: int,
) -> Task:
    """Make a task of one to three local files.

    CSV is read with quotes (RFC 4180); in .tsv a quote is a letter like any other.

    Raises:
        TaskError: a file that is missing, empty or malformed, or without the columns.
    """
    parts = {"training": train, "validation": validation, "test": test}
    rows = {
        part: _rows(_read(Path(path), columns), columns, str(path))
        for part, path in parts.items()
        if path is not None
    }
    return _task(train.name, rows, seed)


def from_hub(hub_id: str, columns: Columns, seed: int) -> Task:
    """Make a task of a hub data set's train, validation and test splits.

    Raises:
        TaskError: the hub or the data set is not reached, it has no train split, or not the
            columns.
    """
    import datasets
    from huggingface_hub import constants

    # With HF_HUB_OFFLINE=1 datasets looks into its cache by itself, and at once.
    if not constants.HF_HUB_OFFLINE and not hub_reachable():
        raise TaskError(
            f"{hub_id}: {hub_host()} cannot be reached; set HF_HUB_OFFLINE=1 to use a copy in the "
            "cache, or give a local file"
        )
    try:
        with quiet_datasets():
            splits = datasets.load_dataset(hub_id)
    except Exception as error:  # the builder's own errors are of any type
        raise TaskError(f"{hub_id} cannot be loaded: {first_line(error)}") from error
    if "train" not in splits:
        raise TaskError(f"{hub_id} has no train split; it has {', '.join(splits)}")
    found = {"training": "train", "test": "test"} | {
        "validation": next((s for s in _VALIDATION_SPLITS if s in splits), "")
    }
    rows = {
        part: _rows(splits[split], columns, f"{hub_id} ({split})")
        for part, split in found.items()
        if split in splits
    }
    return _task(hub_id, rows, seed)


def _task(name: str, rows: dict[str, list[_Row]], seed: int) -> Task:
    train, validation, test = rows["training"], rows.get("validation"), rows.get("test", [])
    if validation is None:
        train, validation = _hold_out(name, train, seed)
    seen = {row.prompt for row in train}
    for part, held_out in (("validation", validation), ("test", test)):
        known = len(seen & {row.prompt for row in held_out})
        if known:
            warnings.warn(
                f"{name}: {known} {part} prompts are in the training rows too; their score tells "
                "nothing about new prompts",
                stacklevel=4,
            )
    return Task(
        name,
        synthetic=False,
        train=tuple(Example(r.prompt, r.completion, (r.completion,)) for r in train),
        validation=_shuffled(_grouped(validation), seed),
        test=_grouped(test),
    )


def _hold_out(name: str, rows: Sequence[_Row], seed: int) -> tuple[list[_Row], list[_Row]]:
    """Split by prompt, so that no prompt is on both sides."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    if len(prompts) < 2:
        raise TaskError(
            f"{name} has one prompt only, nothing can be held out; give validation='…' or more rows"
        )
    count = min(_HELD_OUT_MOST, max(1, len(prompts) // _HELD_OUT_SHARE))
    chosen = set(random.Random(f"held out {seed}").sample(prompts, count))
    return (
        [row for row in rows if row.prompt not in chosen],
        [row for row in rows if row.prompt in chosen],
    )


def _grouped(rows: Iterable[_Row]) -> tuple[Example, ...]:
    """Make one example a prompt, every different completion a reference."""
    completions: dict[str, dict[str, None]] = {}
    for row in rows:
        completions.setdefault(row.prompt, {})[row.completion] = None
    return tuple(
        Example(prompt, next(iter(texts)), tuple(texts)) for prompt, texts in completions.items()
    )


def _shuffled(examples: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    # Files are often sorted (E2E's by restaurant); the first n shall be a fair sample.
    return tuple(random.Random(f"validation {seed}").sample(examples, len(examples)))


def _rows(table: Dataset, columns: Columns, source: str) -> list[_Row]:
    for column in (columns.prompt, columns.completion):
        if column not in table.column_names:
            raise TaskError(
                f"{source} has no column {column!r}; its columns are "
                f"{', '.join(map(str, table.column_names))}"
            )
    pairs = zip(table[columns.prompt], table[columns.completion], strict=True)
    rows = [
        _Row(_text(prompt, columns.prompt, source), _text(completion, columns.completion, source))
        for prompt, completion in pairs
    ]
    kept = [row for row in rows if row.prompt and row.completion]
    if not kept:
        raise TaskError(
            f"{source}: no row has both {columns.prompt!r} and {columns.completion!r}; there is "
            "nothing to learn from"
        )
    if len(kept) < len(rows):
        warnings.warn(
            f"{source}: {len(rows) - len(kept)} of {len(rows)} rows without "
            f"{columns.prompt!r} or {columns.completion!r} are left out",
            stacklevel=5,
        )
    return kept


def _text(value: Any, column: str, source: str) -> str:
    if isinstance(value, (list, dict)):
        raise TaskError(f"{source}: column {column!r} holds {type(value).__name__}s, not text")
    return "" if value is None else str(value).strip()


def _read(path: Path, columns: Columns | tuple[()]) -> Dataset:
    """Read a file into memory, the two columns as text, leaving nothing in any cache."""
    from datasets import Dataset

    if not path.is_file():
        raise TaskError(f"there is no file {path}; look at the path (folder: {Path.cwd()})")
    suffix = _suffix(path)
    if suffix not in FORMATS:
        raise TaskError(f"{path} is not of a known format; use {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise TaskError(f"{path} is empty; it needs rows with named columns")
    readers = {
        ".csv": Dataset.from_csv,
        ".tsv": Dataset.from_csv,
        ".jsonl": Dataset.from_json,
        ".json": Dataset.from_json,
        ".parquet": Dataset.from_parquet,
    }
    options: dict[str, Any] = {}
    if suffix in (".csv", ".tsv"):
        # pandas would make None of "NA" and 7 of "007".
        options["keep_default_na"] = False
        if columns:
            options["converters"] = {columns.prompt: str, columns.completion: str}
    if suffix == ".tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    try:
        with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
            return readers[suffix](str(path), cache_dir=cache, keep_in_memory=True, **options)
    except Exception as error:  # pandas', Arrow's and the builder's own errors
        if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
            raise TaskError(f"{path} has no rows; it needs at least two") from error
        raise TaskError(
            f"{path} cannot be read as {suffix[1:]}: {first_line(error)}; mend the file"
        ) from error


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
