"""What a file or a hub data set may be read as: its columns, and a proposal for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.files import is_file_name
from lora_lab.tasks.folders import folder_of, read_folder
from lora_lab.tasks.kinds import Named, reader_of
from lora_lab.tasks.load import headless_columns, load_task
from lora_lab.tasks.measures import are_measures
from lora_lab.tasks.table import Column, Table

KINDS: Mapping[str, tuple[str, ...]] = {
    "prompt → completion": ("prompt", "completion"),
    "text → class": ("text", "label"),
    "two texts → class": ("text", "pair", "label"),
    "text → number": ("text", "target"),
    "two texts → number": ("text", "pair", "target"),
    "text alone": ("text",),
}
"""What a table may be read as: {in words: the options of `load_task` that name columns}."""
_SAMPLE = 200  # rows that a proposal looks at
_SHOWN, _LETTERS = 3, 200  # rows, and letters of a value
_MOST_CLASSES = 20  # different values of a column of classes


@dataclass(frozen=True)
class Proposal:
    """How a table may be read.

    Attributes:
        name: of the file or data set.
        rows: training rows.
        columns: by name.
        first: the first rows as texts.
        options: columns by the options of `load_task`; {} where the layout is known by itself.
        line: what that makes of it.
        problem: why it makes no task, "" where it does.
    """

    name: str
    rows: int
    columns: tuple[str, ...]
    first: tuple[tuple[str, ...], ...]
    options: Mapping[str, str]
    line: str
    problem: str = ""


def propose(
    name: str, config_name: str | None = None, options: Mapping[str, str] | None = None
) -> Proposal:
    """Return how a file or a hub data set may be read; see `load_task`.

    Args:
        name: a file, a pattern of files, a folder or a hub id.
        config_name: of a hub id, or of a folder of folders, with several configurations.
        options: the columns, where somebody has chosen them.

    Raises:
        TaskError: there is no such file or data set, or it cannot be read.
    """
    headless = headless_columns(name, config_name)
    table = _training_table(name, config_name, [*headless.values()])
    first = tuple(
        tuple(_shown(table[column][at]) for column in table.column_names)
        for at in range(min(_SHOWN, len(table)))
    )
    columns = tuple(table.column_names)

    def proposal(chosen: Mapping[str, str], line: str, problem: str = "") -> Proposal:
        return Proposal(name, len(table), columns, first, chosen, line, problem)

    if options:
        try:
            named = Named(**options)
            table.need(named.columns())
            reader_of(table, named)
        except TaskError as error:
            return proposal(options, "", str(error))
        return proposal(options, f"read as {_in_words(options)}")
    if headless or folder_of(name, config_name) is not None:
        return proposal({}, load_task(name, config_name).describe())  # or it says why not
    try:
        reader = reader_of(table, Named())
    except TaskError as error:
        guess = guessed(table)
        if not guess:
            return proposal({}, "", str(error))
        return proposal(guess, f"proposed: {_in_words(guess)}; look whether it is meant so")
    return proposal({}, "; ".join(reader.notes) or "read by its layout")


def guessed(table: Table) -> dict[str, str]:
    """Return options for a table of no known layout, from its first rows; {}: nothing fits.

    Of several columns of texts the last is the one to write, as people order them; a column of few
    different short values is one of classes, a column of measures one of numbers.
    """
    some = {name: _sample(table, name) for name in table.column_names}
    texts = [name for name, values in some.items() if values and _are_texts(values)]
    few = [name for name, values in some.items() if name not in texts and _are_classes(values)]
    if len(texts) >= 2:
        return {"prompt": texts[0], "completion": texts[-1]}
    if not texts:
        return {}
    for name in table.column_names:
        if name not in texts and some[name] and are_measures(some[name]):
            return {"text": texts[0], "target": name}
    return {"text": texts[0], "label": few[-1]} if few else {"text": texts[0]}


def _training_table(name: str, config_name: str | None, columns: Sequence[Column]) -> Table:
    folder = folder_of(name, config_name)
    if folder is not None:
        return read_folder(folder, folder.name, {}, columns)["training"]
    if is_file_name(name):
        parts = tables.read_splits(name)
        return parts["training"] if parts else tables.read_files(name, columns)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        tables.find_files(name)  # says that there is none
    return tables.read_hub(name, config_name)["training"]


def _sample(table: Table, name: str) -> list[str]:
    """Return a column's first texts; [] of one that holds something else."""
    values = [table[name][at] for at in range(min(_SAMPLE, len(table)))]
    known = [value for value in values if value is not None]
    return [str(value) for value in known] if all(isinstance(v, str) for v in known) else []


def _are_texts(values: Sequence[str]) -> bool:
    """Whether most of them are several words, and differ."""
    several = sum(" " in value.strip() for value in values)
    return several > len(values) / 2 and len(set(values)) > len(values) / 4


def _are_classes(values: Sequence[str]) -> bool:
    return 2 <= len(set(values)) <= min(_MOST_CLASSES, max(2, len(values) // 2))


def _in_words(options: Mapping[str, str]) -> str:
    return ", ".join(f"{option} = {column}" for option, column in options.items())


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"
