"""Tables of named columns: local files and hub data sets, read through `datasets`.

What stands in the data is text and stays text: it is not run, formatted or rendered here.
"""

from __future__ import annotations

import csv
import inspect
import tempfile
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.hub import hub_host, hub_reachable
from lora_lab._util.quiet import first_line, quiet_datasets
from lora_lab.errors import TaskError
from lora_lab.tasks.table import Column, Table

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
HELD_OUT_SHARE, HELD_OUT_MOST = 10, 100  # one text in ten, 100 at most
_SEPARATED = (".csv", ".tsv")
_VALIDATION_SPLITS = ("validation", "dev", "val")


def is_file_name(name: str) -> bool:
    """Return whether a task's name is a file of a known format, or a file at all."""
    return _suffix(Path(name)) in FORMATS or Path(name).is_file()


def read_files(
    columns: Sequence[Column],
    train: Path,
    validation: str | Path | None,
    test: str | Path | None,
) -> dict[str, Table]:
    """Read one to three local files.

    CSV is read with quotes (RFC 4180); in .tsv a quote is a letter like any other.

    Returns:
        {"training", "validation", "test": its table}, of those given.

    Raises:
        TaskError: a file that is missing, empty or malformed.
    """
    parts = {"training": train, "validation": validation, "test": test}
    return {
        part: read_file(Path(path), columns) for part, path in parts.items() if path is not None
    }


def read_hub(hub_id: str) -> dict[str, Table]:
    """Read a hub data set's train, validation and test splits; see `read_files`.

    Raises:
        TaskError: the hub or the data set is not reached, or it has no train split.
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
    return {
        part: of_dataset(splits[split], f"{hub_id} ({split})")
        for part, split in found.items()
        if split in splits
    }


def warn(line: str) -> None:
    """Warn at the line that called LoRA Lab, however deep it is from here."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "lora_lab":
        level, frame = level + 1, frame.f_back
    warnings.warn(line, stacklevel=level - 1 if frame is None else level)


def warn_left_out(table: Table, kept: int, columns: str) -> None:
    """Tell of rows that lack a text."""
    total = len(table)
    if total > kept:
        warn(f"{table.source}: {total - kept} of {total} rows without {columns} are left out")


def warn_known(name: str, part: str, what: str, known: int) -> None:
    """Tell of held-out texts that are trained on too."""
    if known:
        warn(
            f"{name}: {known} {part} {what} are in the training rows too; their score tells "
            f"nothing about new {what}"
        )


def held_out_count(texts: Collection[object]) -> int:
    """Return how many of so many different texts are held out where no file of them is given."""
    return min(HELD_OUT_MOST, max(1, len(texts) // HELD_OUT_SHARE))


def read_file(path: Path, columns: Sequence[Column]) -> Table:
    """Read a file into memory, the columns as text, leaving nothing in any cache.

    Raises:
        TaskError: the file is missing, empty, malformed or of no known format.
    """
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
    try:
        with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
            dataset = readers[suffix](
                str(path),
                cache_dir=cache,
                keep_in_memory=True,
                **_separated_options(path, suffix, columns),
            )
            return of_dataset(dataset, str(path))
    except TaskError:
        raise
    except Exception as error:  # pandas', Arrow's and the builder's own errors
        if "corresponds to no data" in str(error) or isinstance(error, StopIteration):
            raise TaskError(f"{path} has no rows; it needs at least two") from error
        raise TaskError(
            f"{path} cannot be read as {suffix[1:]}: {first_line(error)}; fix the file"
        ) from error


def _separated_options(path: Path, suffix: str, columns: Sequence[Column]) -> dict[str, Any]:
    """Return how a .csv or .tsv is read."""
    numbers = [column for column in columns if isinstance(column, int)]
    if numbers and (suffix not in _SEPARATED or len(numbers) < len(columns)):
        raise TaskError(
            f"{path}: columns are named by numbers in a .csv or .tsv that has no line of names, "
            "and then all of them; give names"
        )
    if suffix not in _SEPARATED:
        return {}
    # pandas would make None of "NA" and 7 of "007".
    options: dict[str, Any] = {"keep_default_na": False}
    options["converters"] = dict.fromkeys(columns, str)
    if numbers:
        options["header"] = None
    if suffix == ".tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    return options


def of_dataset(dataset: Dataset, source: str) -> Table:
    """Return the table of a `datasets.Dataset`; a class is called by its name."""
    floats = {
        name
        for name, feature in dataset.features.items()
        if str(getattr(feature, "dtype", "")).startswith("float")
    }
    columns = {name: _values(dataset, name) for name in dataset.column_names}
    return Table(columns, source, frozenset(floats))


def _values(dataset: Dataset, name: str) -> list[Any]:
    from datasets import ClassLabel

    feature, values = dataset.features[name], dataset[name]
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.int2str(v) for v in values]
    return [v if v is None or isinstance(v, (str, list, dict)) else str(v) for v in values]


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
