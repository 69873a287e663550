"""Tables of named columns: local files by their formats, and hub data sets.

What stands in the data is text and stays text: it is not run, formatted or rendered here.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from lora_lab._util.files import is_hollow, user_path
from lora_lab._util.hub import hub_host, hub_reachable
from lora_lab._util.quiet import first_line, quiet_thread
from lora_lab._util.warn import warn as warn
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks import webnlg
from lora_lab.tasks.files import (
    FORMATS,
    JSON,
    SEPARATED,
    XML,
    Files,
    find_files,
    is_saved,
    suffix_of,
    title,
)
from lora_lab.tasks.files import is_file_name as is_file_name
from lora_lab.tasks.formats.arrow import of_dataset, read_ipc, read_parquet
from lora_lab.tasks.formats.excel import read_xlsx
from lora_lab.tasks.formats.json_rows import read_json
from lora_lab.tasks.formats.separated import read_separated
from lora_lab.tasks.formats.text import decode
from lora_lab.tasks.formats.unpacked import bomb, check_messages, most_unpacked
from lora_lab.tasks.formats.webnlg_xml import read_webnlg
from lora_lab.tasks.hub_data import load_hub
from lora_lab.tasks.logical_form import are_sketches, with_headers
from lora_lab.tasks.table import Column, Table, joined

_CHUNK = 2**20
_BINARY = {".parquet": read_parquet, ".arrow": read_ipc, ".feather": read_ipc}
_LFS = b"version https://git-lfs"
_CONFIGS = re.compile(r"available configs: \[([^\]]*)\]")  # as datasets says it
Splits = Mapping[str, str]
NO_SPLITS: Splits = MappingProxyType({})
HELD_OUT_SHARE, HELD_OUT_MOST = 10, 100  # one text in ten, 100 at most
_SPLITS = {
    "training": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


def read_files(
    files: Files,
    columns: Sequence[Column],
    encoding: str | None = None,
    sep: str | None = None,
    field: str | None = None,
) -> Table:
    """Read the rows of one file or of several; see `read_file`."""
    tables = [read_file(path, columns, encoding, sep, field) for path in find_files(files)]
    return joined(tables, title(files))


def has_splits(name: Files) -> bool:
    """Return whether this is a folder of splits that `save_to_disk` wrote."""
    if not isinstance(name, (str, os.PathLike)):
        return False
    return is_saved(user_path(name, TaskError), splits=True)


def read_splits(name: Files, splits: Splits = NO_SPLITS) -> dict[str, Table]:
    """Read the folder of splits that `save_to_disk` wrote; see `read_hub`. {} where it is none."""
    if not has_splits(name):
        return {}
    return _parts(_load_from_disk(find_files(name)[0]), str(name), splits)


def _load_from_disk(folder: Path) -> Any:
    import datasets
    import pyarrow as pa

    try:
        for path in folder.rglob("*.arrow"):
            with pa.memory_map(str(path)) as file:
                check_messages(file, str(path), most_unpacked(path.stat().st_size))
        with quiet_thread():
            return datasets.load_from_disk(str(folder))
    except TaskError:
        raise
    except Exception as error:  # whatever is wrong with one of its files
        raise TaskError(f"{folder} cannot be loaded: {first_line(error)}") from as_cause(error)


def read_hub(
    hub_id: str, config_name: str | None = None, splits: Splits = NO_SPLITS
) -> dict[str, Table]:
    """Read a hub data set's train, validation and test splits; see `read_files`.

    Args:
        hub_id: of the form owner/name.
        config_name: which of its configurations, where it has several.
        splits: {"training", …: the split that is this part}, where somebody has said.

    Raises:
        TaskError: the hub or the data set is not reached, or it has no train split.
    """
    from huggingface_hub import constants

    # With HF_HUB_OFFLINE=1 datasets looks into its cache by itself, and at once.
    if not constants.HF_HUB_OFFLINE and not hub_reachable():
        raise TaskError(
            f"{hub_id}: {hub_host()} cannot be reached; set HF_HUB_OFFLINE=1 to use a copy in the "
            "cache, or give a local file"
        )
    try:
        with quiet_thread():
            found = load_hub(hub_id, config_name)
    except TaskError:
        raise
    except Exception as error:  # the builder's own errors are of any type
        if configs := _CONFIGS.search(str(error)):
            raise TaskError(
                f"{hub_id} has several configurations ({configs[1]}); name one: "
                f"load_task({hub_id!r}, {configs[1].split(', ')[0]})"
            ) from as_cause(error)
        raise TaskError(f"{hub_id} cannot be loaded: {first_line(error)}") from as_cause(error)
    return _parts(found, f"{hub_id}, {config_name}" if config_name else hub_id, splits)


def _parts(found: Mapping[str, Any], name: str, splits: Splits) -> dict[str, Table]:
    whole, domains = webnlg.whole_splits(splits, found)
    parts = {
        part: of_dataset(found[split], f"{name} ({split})")
        for part, split in find_splits(list(found), name, whole).items()
    }
    return webnlg.of_domains(parts, domains)


def find_splits(there: Sequence[str], name: str, given: Splits = NO_SPLITS) -> dict[str, str]:
    """Return {"training", …: the split that is this part}; a warning tells of the others.

    Without a split of the usual name the first one that begins with it is taken, as MNLI's
    validation_matched; of several to train on none is.

    Args:
        there: the splits' names.
        name: what messages call the data.
        given: those that somebody has named.

    Raises:
        TaskError: none of them is train, or there is no split of a given name.
    """
    for part, named in given.items():
        if named not in there:
            raise TaskError(
                f"{name} has no split {named!r} for the {part} rows; it has "
                f"{', '.join(map(str, there))}"
            )
    free = [split for split in there if split not in given.values()]
    found = {}
    for part, names in _SPLITS.items():
        begins = [s for usual in names for s in free if s.startswith((f"{usual}_", f"{usual}-"))]
        usual = [split for split in names if split in free]
        split: str | None = given.get(part) or next(iter([*usual, *begins]), None)
        if split is not None:
            found[part] = split
        several = len(begins) > 1 and not usual and part not in given
        if part == "training" and (split is None or several):
            why = "several train splits" if several else "no train split"
            raise TaskError(
                f"{name} has {why}; it has {', '.join(map(str, there))}: name one, train=…"
            )
    unread = [str(split) for split in there if split not in found.values()]
    if unread:
        warn(
            f"{name}: {', '.join(unread)} is not read, but {', '.join(found.values())} only; give "
            "such rows as validation=… or test=…"
        )
    return found


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


def read_file(
    path: Path,
    columns: Sequence[Column],
    encoding: str | None = None,
    sep: str | None = None,
    field: str | None = None,
) -> Table:
    """Read one file: every value as the text that stands there.

    Args:
        path: this very file, whatever letters are in its name.
        columns: those that are wanted; numbers where there is no line of names.
        encoding: of a file of text; None: its mark tells it, or it is UTF-8.
        sep: what stands between the fields of a .csv, .tsv or .txt; None: found there.
        field: where the rows of JSON stand; see `read_json`.

    Raises:
        TaskError: the file is missing, empty, malformed or of no known format.
    """
    source, suffix = str(path), suffix_of(path)
    if path.is_dir():
        return _read_folder(path)
    if suffix not in FORMATS:
        raise TaskError(f"{path} is not of a known format; use {', '.join(FORMATS)}")
    if (found := path.stat()).st_size == 0:
        raise TaskError(f"{path} is empty; it needs rows with named columns")
    if is_hollow(found):
        raise TaskError(f"{path} is nearly all holes, and no data; fetch it again")
    _check_options(path, suffix, columns, encoding, sep)
    if field is not None and suffix not in JSON:
        raise TaskError(f"{path}: field is for {', '.join(JSON)}; leave it out")
    try:
        with _open(path) as file:
            if (first := file.read(len(_LFS))) == _LFS:
                raise TaskError(f"{path} is a pointer of Git LFS, not the file; git lfs pull")
            if first and not any(first):  # a file that is one hole, or that a power loss has left
                raise TaskError(f"{path} begins with zeros, and no data; fetch it again")
            file.seek(0)
            if suffix == ".xlsx":
                _refuse_bomb(file, path)
                return _some_rows(read_xlsx(file, source, columns))
            if suffix in _BINARY:
                most = most_unpacked(path.stat().st_size)
                return _some_rows(_BINARY[suffix](file, source, most))
            if suffix == XML:
                return read_webnlg(file.read(), source)
            text = decode(file.read(), encoding, source)
    except TaskError:
        raise
    except Exception as error:  # Arrow's own errors, and those of the disk
        raise TaskError(
            f"{path} cannot be read as {suffix[1:]}: {first_line(error)}; fix the file"
        ) from as_cause(error)
    if suffix in SEPARATED:
        return read_separated(text, source, suffix, columns, sep)
    return _queries_written(read_json(text, source, suffix, field), path, suffix)


def _queries_written(table: Table, path: Path, suffix: str) -> Table:
    """Return WikiSQL's rows with their queries as texts, by the file of tables beside them."""
    if not are_sketches(table):
        return table
    beside = path.with_name(path.name.replace(suffix, f".tables{suffix}", 1))
    if not beside.is_file():
        raise TaskError(
            f"{path} has WikiSQL's queries by numbers of columns; put {beside.name}, which names "
            "them, beside it"
        )
    return with_headers(table, read_file(beside, ()))


def _read_folder(path: Path) -> Table:
    if has_splits(path):
        raise TaskError(f"{path} holds splits; name the folder of one, in it")
    return _some_rows(of_dataset(_load_from_disk(path), str(path)))


def _some_rows(table: Table) -> Table:
    if not len(table):
        raise TaskError(f"{table.source} has no rows; it needs at least two")
    return table


def _check_options(
    path: Path,
    suffix: str,
    columns: Sequence[Column],
    encoding: str | None,
    sep: str | None,
) -> None:
    """Refuse what says nothing about files of this format."""
    numbers = [column for column in columns if isinstance(column, int)]
    if numbers and len(numbers) < len(columns):
        raise TaskError(
            f"{path}: columns are named by numbers in a file that has no line of names, and then "
            "all of them; give names"
        )
    if encoding is not None and (suffix in _BINARY or suffix in (".xlsx", XML)):
        raise TaskError(f"{path}: a {suffix} has its own encoding; leave out encoding")
    if sep is not None and suffix not in SEPARATED:
        raise TaskError(f"{path}: sep is for {', '.join(SEPARATED)}; leave it out")


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    most = most_unpacked(path.stat().st_size)
    unpacked = io.BytesIO()
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK):
            unpacked.write(chunk)
            if unpacked.tell() > most:
                raise bomb(path)
    unpacked.seek(0)
    return unpacked


def _refuse_bomb(file: IO[bytes], path: Path) -> None:
    """Refuse a workbook, which is a zip, whose parts unpack to more than texts do."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as parts:
        if sum(part.file_size for part in parts.infolist()) > most_unpacked(path.stat().st_size):
            raise bomb(path)
    file.seek(0)
