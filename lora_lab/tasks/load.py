"""`load_task`: a task by its name, from files, from the hub, or from rows in memory."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from lora_lab._util.files import user_path
from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.cards import carded
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.decoding import Decoding, decoded
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.families.regression import RegressionTask
from lora_lab.tasks.files import FORMATS, is_a_folder, is_file_name
from lora_lab.tasks.files import title as file_title
from lora_lab.tasks.folders import configurations, first_training_file, folder_of, read_folder
from lora_lab.tasks.glue import cola_columns, scored_as_glue
from lora_lab.tasks.kinds import Named, reader_of
from lora_lab.tasks.layouts import NO_TEMPLATE
from lora_lab.tasks.memory import InMemory, is_in_memory, kind_of, read_memory, read_part
from lora_lab.tasks.prompts import GenerationTask
from lora_lab.tasks.reading import make_task
from lora_lab.tasks.sources import remembering

if TYPE_CHECKING:
    from lora_lab.tasks.table import Column

Data = Any  # a name, or rows in memory


class Options(TypedDict, total=False):
    """What `load_task` takes beside columns, whatever the task."""

    validation: Data
    test: Data
    encoding: str | None
    sep: str | None
    field: str | None
    train: str | None
    decoding: Decoding | Mapping[str, Any] | None
    seed: int
    max_steps: int | None
    batch_size: int


# Of what is no literal mypy knows nothing: without columns it is a task of prompts to it.
@overload
def load_task(name: Literal["mini-nli", "mini-rating"], *, seed: int = 0) -> ClassificationTask: ...
@overload
def load_task(
    name: Data,
    config_name: str | None = None,
    *,
    prompt: Column | None = None,
    completion: Column | None = None,
    template: str | None = None,
    **options: Unpack[Options],
) -> GenerationTask: ...
@overload
def load_task(
    name: Data,
    config_name: str | None = None,
    *,
    text: Column,
    **options: Unpack[Options],
) -> LanguageModelingTask: ...
@overload
def load_task(
    name: Data,
    config_name: str | None = None,
    *,
    text: Column,
    label: Column,
    pair: Column | None = None,
    **options: Unpack[Options],
) -> ClassificationTask: ...
@overload
def load_task(
    name: Data,
    config_name: str | None = None,
    *,
    text: Column,
    target: Column,
    pair: Column | None = None,
    **options: Unpack[Options],
) -> RegressionTask: ...
@remembering
def load_task(
    name: Data,
    config_name: str | None = None,
    *,
    prompt: Column | None = None,
    completion: Column | None = None,
    template: str | None = None,
    text: Column | None = None,
    label: Column | None = None,
    target: Column | None = None,
    pair: Column | None = None,
    validation: Data = None,
    test: Data = None,
    encoding: str | None = None,
    sep: str | None = None,
    field: str | None = None,
    train: str | None = None,
    decoding: Decoding | Mapping[str, Any] | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    batch_size: int = 8,
) -> Task:
    """Load a task: prompt → completion; text → class, of `label`; text → number, of `target`.

    Where no column is named, chats and the layouts of `tasks.layouts` are recognized.

    Args:
        name: "mini-e2e", … (made here); a file, several, a pattern ("train-*.csv"), a folder of
            `save_to_disk` or with files called train, dev and test; a hub id; or rows in memory,
            read at once: dicts, (prompt, completion), a DataFrame, Dataset, DatasetDict, or stream.
        config_name: of a hub id, or of a folder of folders, such as "mnli".
        prompt: the column that the model reads, or a format of columns, "{instruction}\\n{input}",
            in which an empty column is written as nothing ({{ and }} are braces).
        completion: the column that it learns to write, or such a format.
        template: what stands around a prompt: "chat" (the model's chat template), "plain", or a
            text with {prompt} in it; by default "{prompt}\\n", or nothing where rows have a blank.
        text: the column of the text that is read; alone, all of it is learned. Columns without
            names are given by their numbers, from 0; what is nested by its path, "answer.text".
        label, target, pair: the columns of its class, or its number, and of a second text.
        validation, test: held-out rows, as `name`, or one of the data set's splits ("dev_matched";
            of WebNLG "test_unseen"). By default whole prompts or texts are held out.
        encoding, sep: of files; by default UTF-8 or what a mark says, and "," ";" tab or "|".
        field: where rows stand in a .json, "data.paragraphs"; each has what stands above, too.
        train: the split to train on, of a data set that calls none "train".
        decoding: how answers that are scored are written, {"num_beams": 4}; by default greedily.
        seed: of what an embedded task makes, or of the held-out part.
        max_steps, batch_size: of a stream so many rows are taken as that many steps reach.

    Raises:
        TaskError, ConfigError: what cannot be read, or makes no task.
    """
    named = Named(prompt, completion, text, label, target, pair)
    reading, held_out = _reading(encoding, sep, field), {"validation": validation, "test": test}
    own = {"config_name": config_name, "train": train}
    if not is_in_memory(name) and str(name) in EMBEDDED:
        _refuse_file_options(str(name), **named.options(), **held_out, **reading, **own)
        return _embedded(str(name), seed, template, decoding)
    rows = _rows(max_steps, batch_size)
    task = _of_data(name, held_out, named, rows, own, template, seed, **reading)
    return task if decoding is None else decoded(task, decoding)


def _embedded(name: str, seed: int, template: str | None, decoding: Any) -> Task:
    entry = EMBEDDED[name]
    made = _framed(entry.make(seed), template)
    return carded(made if decoding is None else decoded(made, decoding), entry.card)


def _of_data(
    name: Data,
    held_out: Mapping[str, Data],
    named: Named,
    rows: int | None,
    own: Mapping[str, str | None],
    template: str | None,
    seed: int,
    **reading: Any,
) -> Task:
    """Make a task of files, of the hub's data, or of rows in memory."""
    if not named.options():
        named = Named(**headless_columns(name, own["config_name"]))
    title, found = _read(name, held_out, named, rows, own, **reading)
    reader = reader_of(found.parts["training"], named, template)
    reader.notes += found.notes
    in_memory = is_in_memory(name)
    secrets = in_memory or not is_file_name(name) or tables.has_splits(name)
    without = ("test",) if held_out["test"] is None and not in_memory else ()
    task = make_task(title, reader, found.parts, seed, secrets, without)
    return scored_as_glue(task, name, own["config_name"])


def headless_columns(name: Data, config_name: str | None) -> dict[str, int]:
    """Return the columns of CoLA's official files, which have no line of names; {} of others."""
    path = first_training_file(name, config_name)
    return {} if path is None else cola_columns(path)


def _reading(encoding: str | None, sep: str | None, field: str | None) -> dict[str, str | None]:
    reading = {"encoding": encoding, "sep": sep, "field": field}
    for option, text in reading.items():
        if not isinstance(text, (str, NoneType)):
            raise TaskError(f"{option} is {text!r}; it must be a text")
    return reading


def _rows(max_steps: int | None, batch_size: int) -> int | None:
    """Return how many rows so many steps take; None: nobody has said."""
    for option, count in (("max_steps", max_steps), ("batch_size", batch_size)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise TaskError(f"{option} is {count!r}; it must be a whole number of at least 1")
    return None if max_steps is None else max_steps * batch_size


def as_task(given: Any, max_steps: int = -1, batch_size: int = 8) -> Task:
    """Return a task: the one that is given, or what `load_task` makes of a name or of rows."""
    if isinstance(given, Task):
        return given
    if is_in_memory(given):
        steps = max_steps if max_steps > 0 else None  # epochs of a stream have no end
        return load_task(given, max_steps=steps, batch_size=batch_size)
    return load_task(given)


def _read(
    name: Data,
    held_out: Mapping[str, Data],
    named: Named,
    rows: int | None,
    own: Mapping[str, str | None],
    **reading: Any,
) -> tuple[str, InMemory]:
    """Return a task's name, and the tables of its parts."""
    files = [given for given in (name, *held_out.values()) if not is_in_memory(given)]
    if not any(given is not None for given in files) and any(reading.values()):
        raise TaskError(f"{kind_of(name)} has no encoding, sep or field; those are for files")
    config_name, splits = own["config_name"], _splits(held_out, own["train"])
    folder = folder_of(name, config_name)
    is_hub = not is_in_memory(name) and not is_file_name(name)
    if config_name is not None and not is_hub and folder is None:
        raise TaskError(f"config_name={config_name!r} is for a hub id; leave it out")
    if is_in_memory(name):
        title, found = kind_of(name), read_memory(name, rows, splits)
    elif folder is not None:
        title = user_path(name, TaskError).resolve().name
        title += f", {config_name}" if config_name else ""
        parts = read_folder(folder, title, splits, named.columns(), **reading)
        given = {part for part in held_out if held_out[part] is not None and part not in splits}
        found = InMemory({part: table for part, table in parts.items() if part not in given})
    elif is_file_name(name):
        title, found = file_title(name), InMemory(tables.read_splits(name, splits))
        if not found.parts:
            _refuse_splits(title, splits, held_out)
            found = InMemory({"training": tables.read_files(name, named.columns(), **reading)})
    elif _may_be_of_the_hub(str(name)):
        others = {part: given for part, given in held_out.items() if part not in splits}
        _refuse_file_options(str(name), **others, **reading)
        title = f"{name}, {config_name}" if config_name else str(name)
        return title, InMemory(tables.read_hub(str(name), config_name, splits))
    else:
        raise TaskError(_unknown(str(name), config_name))
    for part, given in held_out.items():
        if given is None or part in splits:
            continue
        if part in found.parts:
            raise TaskError(f"{title} brings its own {part} rows; leave out {part}=")
        if is_in_memory(given):
            more = read_part(given, part)
        else:
            more = InMemory({part: tables.read_files(given, named.columns(), **reading)})
        found = InMemory({**found.parts, **more.parts}, found.notes + more.notes)
    return title, found


def _splits(held_out: Mapping[str, Data], train: str | None) -> dict[str, str]:
    """Return {part: the split of the data set's own that was named for it}."""
    named = {
        part: given
        for part, given in held_out.items()
        if isinstance(given, str) and "/" not in given and not is_file_name(given)
    }
    return named if train is None else {"training": train, **named}


def _refuse_splits(title: str, splits: Mapping[str, str], held_out: Mapping[str, Data]) -> None:
    """Refuse splits of a file, which has none: it may be another file's name, mistyped."""
    for part, given in splits.items():
        if part in held_out:
            tables.find_files(given)  # says that there is none
        raise TaskError(f"{title} is a file and has no splits; leave out train={given!r}")


def _framed(task: Task, template: str | None) -> Task:
    if template is None:
        return task
    if not isinstance(task, GenerationTask):
        raise TaskError(f"{task.name}: {NO_TEMPLATE}")
    return dataclasses.replace(task, template=template)


def _may_be_of_the_hub(name: str) -> bool:
    local = name.startswith((".", "/", "~")) or user_path(name, TaskError).is_dir()
    return name.count("/") == 1 and not local


def _unknown(name: str, config_name: str | None) -> str:
    folder = user_path(name, TaskError)
    if folder.is_dir():
        sets = configurations(folder)
        if not sets:
            return is_a_folder(folder)
        lacks = f"no {config_name!r}, but " if config_name else ""
        return f"{name} has {lacks}{', '.join(sets)}; load one, load_task({name!r}, {sets[0]!r})"
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(EMBEDDED)}"
    return (
        f"no task is called {name!r}; {hint} (or give a {', '.join(FORMATS)} file, or a "
        "hub id of the form owner/name)"
    )


def _refuse_file_options(name: str, **options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise TaskError(
            f"{name} brings its own parts; leave out {' and '.join(given)}, or give a file as the "
            "first argument"
        )
