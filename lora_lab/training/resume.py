"""Going on with a run that ended before its last step, from what is on disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.anatomy.api import anatomy
from lora_lab.errors import ConfigError, RunError, as_cause
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.targets import is_all_linear, select
from lora_lab.models.classifier import name_classes
from lora_lab.models.entries import CATALOGUE
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel, load_model
from lora_lab.models.places import HUB_ID
from lora_lab.runs import checkpoints, signature
from lora_lab.runs.history import read_history
from lora_lab.runs.records import RecordState, RunRecord, by_checkpoint, find_run, resume_with
from lora_lab.runs.records import list_runs as list_runs  # by way of here, records can resume
from lora_lab.runs.records import runs as runs
from lora_lab.runs.run_file import one_line, read_configs, settings, unlike
from lora_lab.runs.store import RunStore
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task, some
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.families.classification import in_order
from lora_lab.tasks.files import is_file_name
from lora_lab.tasks.load import Data, load_task
from lora_lab.tasks.sources import IN_MEMORY
from lora_lab.training import processes, queue
from lora_lab.training.checks import check
from lora_lab.training.fingerprints import base_fingerprint, task_fingerprints
from lora_lab.training.run import Run
from lora_lab.training.start_from import Start, find_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def resume(
    run: RunRecord | str | os.PathLike[str],
    lm: LoadedModel | PreTrainedModel | None = None,
    task: Task | Data | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    start: bool = True,
    wait_at_exit: bool = True,
    **changes: Any,
) -> Run:
    """Go on with a run from its last checkpoint, in its folder; returns at once.

    On the CPU every loss from there on, and the adapter at the end, are bit for bit those of the
    run left alone. What metrics.jsonl and the spectra have of later steps is dropped; of what else
    is damaged a note tells. A run that was cut off before its first checkpoint begins again.

    It keeps its settings and its data: with others, `train(…, start_from=run)` makes a new run.
    By another number of processes than it was begun by, it takes as many examples a step as before:
    what a process passes at a time, and how often, is changed accordingly.

    Args:
        run: its id, its folder, or what `lora_lab.runs` lists.
        lm: the base model; may be left out where `load_model` had loaded it.
        task: the data; may be left out where `load_task` had loaded it from a name. Folders and
            files are only looked for again where this user's LoRA Lab began the run: a run that
            somebody else handed on has both passed, or both of public names. Rows in memory are
            passed again, and read as they were the first time.
        tokenizer: of a model of your own.
        output_dir: where the folder of that id is.
        start: False leaves the run idle.
        wait_at_exit: see `train`.
        **changes: refused.

    Raises:
        RunError: there is no such run, it is done, it is running, it would fail the same way
            again, the base model or the data are not those that it had, or they are files here
            that a run begun elsewhere names.
        ConfigError: the model is not for such data.
        ModelError, TaskError: the model or the data cannot be loaded any more.
    """
    record, told = by_checkpoint(find_run(run, output_dir))
    _refuse_changes(record, changes)
    processes.from_main(lambda: _check_state(record))  # one looks, for all of them
    _refuse_links(record.folder)
    checkpoint = checkpoints.newest(record.folder)
    methods, training, unopened = _settings_of(record)
    own, data = _as_they_were(record, lm, task, tokenizer)
    made = Run(
        own,
        data,
        tuple(_as_begun(record, own, config) for config in methods),
        training,
        store=RunStore(record.folder, record.config),
        resumes=checkpoint,
        start_from=_start(record) if checkpoint is None else None,
        wait_at_exit=wait_at_exit,
    )
    made.notes += told + checkpoints.passed_over(record.folder, checkpoint) + unopened
    return made.start() if start else made


def _anew(record: RunRecord, *changes: str) -> str:
    """Return the call that makes a new run from the adapter of an old one."""
    return f"ll.train({', '.join(['lm', 'task', f'start_from={record.id!r}', *changes])})"


def _refuse_changes(record: RunRecord, changes: Mapping[str, Any]) -> None:
    TrainingConfig.from_dict(changes)
    for field, value in changes.items():
        raise ConfigError(
            f"a resumed run keeps its settings; {_anew(record, f'{field}={value!r}')} makes a new "
            "run of it"
        )


def _as_they_were(
    record: RunRecord,
    lm: LoadedModel | PreTrainedModel | None,
    task: Task | Data | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[LoadedModel, Task]:
    call = "resume(…, lm=model, tokenizer=tokenizer)"
    own = model_of(record) if lm is None else as_loaded(lm, tokenizer, {}, call)
    data = _as_recorded(record, task if isinstance(task, Task) else task_of(record, task))
    check(own, data)
    _compare(record, own, data)
    return own, data


def _start(record: RunRecord) -> Start | None:
    """Return what a run started from that was cut off before its first checkpoint."""
    sources = record.config.get("sources")
    folder = sources.get("start_from") if isinstance(sources, dict) else None
    if folder is None:
        return None
    if not isinstance(folder, str) or not processes.from_main(
        lambda: signature.verify(record.config)
    ):
        raise RunError(
            f"run {record.id} has no checkpoint yet, and was not begun by your LoRA Lab, so that "
            f"the adapter {one_line(folder)!r} that it starts from is not opened unasked; start a "
            "new run: ll.train(…, start_from=…)"
        )
    return find_start(folder)


def _settings_of(record: RunRecord) -> tuple[Sequence[MethodConfig], TrainingConfig, list[str]]:
    """Return a run's methods, how it trains, and a note where a foreign run's file is left out."""
    methods, training = read_configs(record)
    training = processes.shared_out(training, _begun_by(record))
    name, sources, notes = training.kept_data, record.config.get("sources"), []
    if name is not None and path_in("task", {"name": name}) is not None:
        known = isinstance(sources, dict) and sources.get("kept_data") == name
        if not processes.from_main(lambda: known and signature.verify(record.config)):
            training = training.replace(kept_data=None)
            notes.append(
                f"kept_data={name[:200]!r} is not opened unasked, for the run was not begun by "
                "your LoRA Lab; the loss on it is not measured any more"
            )
    return methods, training, notes


def _begun_by(record: RunRecord) -> int:
    count = record.config.get("processes", 1)
    if not isinstance(count, int) or count < 1:
        where = record.folder / "config.json"
        raise RunError(f"{where} has {one_line(repr(count))} processes; start a new run")
    return count


def _as_begun(record: RunRecord, lm: LoadedModel, config: MethodConfig) -> MethodConfig:
    """Return a config with the targets that it had when its run was begun.

    An earlier "all-linear" left out what lies outside the layers, such as a pooler.
    """
    if not is_all_linear(getattr(config, "target_modules", ())):
        return config
    found = anatomy(lm.model)
    outside = {site.name for site in select(found, "all-linear") if site.layer is None}
    try:
        begun = {site.name for site in read_history(record.folder).sites}
    except RunError:  # it ended before anything was learned
        return config
    if not outside or not begun or begun & outside:
        return config
    return config.replace(target_modules=[site.name for site in found.grid_sites])


def _check_state(record: RunRecord) -> None:
    state = record.state
    if queue.is_queued(record.folder):
        raise RunError(f"run {record.id} waits in the queue here; it starts by itself")
    if state is RecordState.RUNNING:
        raise RunError(f"run {record.id} is running here; its own resume() ends a pause")
    if state is RecordState.ELSEWHERE:
        raise RunError(f"run {record.id} is running in another process; stop it there first")
    if record.problem:
        raise unlike(record, record.problem)
    if state is RecordState.DAMAGED:
        raise RunError(
            f"run {record.id} is damaged: its config.json cannot be read, and no checkpoint has a "
            "copy; load_adapter reads what is in its folder"
        )
    if state is RecordState.DONE:
        raise RunError(
            f"run {record.id} is done; {_anew(record, 'max_steps=…')} makes a new run that goes on "
            "from its adapter"
        )
    summary = record.summary or {}
    if state is RecordState.FAILED and summary.get("repeats"):
        why = one_line(summary.get("problem", "its loss is no number"))
        raise RunError(
            f"run {record.id} failed by itself and would do so again ({why}); call train() with a "
            "lower learning_rate"
        )


def _refuse_links(folder: Path) -> None:
    """A run that somebody handed on may not have us write anywhere but into its folder."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise RunError(f"{path} is a link; copy the run's folder with its files, then resume")


def model_of(record: RunRecord) -> LoadedModel:
    """Load the base model of a run, as it was loaded for it.

    Raises:
        RunError: it was a model of the user's own, or a folder here that a foreign run names.
        ModelError: it cannot be loaded any more.
    """
    source = _source(record, "model")
    if source is None:
        name = _known_name(record, "model")
        raise RunError(
            f"run {record.id} trained {name}, a model of your own; pass it: resume(…, lm)"
        )
    labels, device = source.get("labels") or [], source.get("device") or "auto"
    # A run that does not tell had a loaded head's outputs named in the order of its task.
    told = not labels or _class_order(record) is not None
    lm = load_model(
        source["name"],
        device="cpu" if device == "cpu" else "auto",
        dtype=source.get("dtype") or "auto",
        labels=(labels or None) if told else None,
        num_labels=source.get("num_labels") if told else len(labels),
    )
    if not told:
        name_classes(lm.model.config, labels)
    return lm


def task_of(record: RunRecord, data: Data | None) -> Task:
    """Load the data of a run, as they were loaded for it.

    Args:
        record: the run's.
        data: rows or a name that stand in for those that it names.

    Raises:
        RunError: they were made by hand, or are files here that a foreign run names.
        TaskError: they cannot be loaded any more.
    """
    source = _source(record, "task")
    if source is None:
        if data is not None:
            return load_task(data)
        name = _known_name(record, "task")
        raise RunError(
            f"run {record.id} trained on {name}, a task of your own; pass it: resume(…, task=…)"
        )
    memory = source.pop(IN_MEMORY, ())
    if data is not None:
        source["name"] = data
    if set(memory) - ({"name"} if data is not None else set()):
        what = "task=load_task(…, validation=…)" if len(memory) > 1 else "task=rows"
        raise RunError(
            f"run {record.id} trained on rows in memory ({_known_name(record, 'task')}), which no "
            f"run keeps; pass them again: resume(…, {what})"
        )
    return load_task(**source)


def _as_recorded(record: RunRecord, task: Any) -> Task:
    """Return a task with its classes in the order that they had when the run was begun.

    Earlier versions sorted those, too, that have an order of their own; F1 is the second one's.
    """
    begun = record.config.get("task")
    before = begun.get("labels") if isinstance(begun, dict) else None
    now = getattr(task, "labels", None)
    if now is None or not isinstance(before, list) or sorted(map(str, before)) != sorted(now):
        return task
    return dataclasses.replace(task, labels=tuple(map(str, before)))


def _compare(record: RunRecord, lm: LoadedModel, task: Any) -> None:
    """Refuse another base model, or other data, than the run had."""
    known = record.config.get("fingerprints")
    if not isinstance(known, dict):
        raise RunError(
            f"run {record.id} is of an earlier version, which did not note what goes on from it "
            "needs; start a new run"
        )
    now = task_fingerprints(task)
    for key, examples in (("data", "training"), ("held_out", "held-out")):
        before = known.get(key)
        if before != now[key] and (before is not None or key == "data"):
            raise RunError(
                f"the {examples} examples of {task.name} are not those of run {record.id} any "
                f"more; put the data back as they were, or {_anew(record)} makes a new run from "
                "its adapter"
            )
    order = _class_order(record)
    if order is not None and order != (here := in_order(lm.model.config, task.labels)):
        raise RunError(
            f"the head of {lm.card.name} has the classes in the order {one_line(some(here))}, and "
            f"in run {record.id} it was {one_line(some(order))}; load it with labels in that order"
        )
    if known.get("base") != base_fingerprint(lm.model):
        card = record.config.get("model")
        dtype = card.get("dtype") if isinstance(card, dict) else None
        raise RunError(
            f"{lm.card.name} ({lm.card.dtype}) is not the base model of run {record.id}, which was "
            f"{_known_name(record, 'model')} ({one_line(dtype)}) with other weights; load that one"
        )


def _class_order(record: RunRecord) -> list[str] | None:
    """Return a run's classes in the order of its head's outputs; None where it does not tell."""
    task = record.config.get("task")
    order = task.get("classes") if isinstance(task, dict) else None
    return [str(name) for name in order] if isinstance(order, list) else None


def _source(record: RunRecord, what: str) -> dict[str, Any] | None:
    """Return the arguments of a run's loader; None: it was made by hand.

    Raises:
        RunError: they cannot be, or name a path of this machine in a run that came from elsewhere.
    """
    sources = record.config.get("sources")
    if not isinstance(sources, dict) or sources.get(what) is None:
        return None
    try:
        source = settings(sources, what)
    except ConfigError as error:
        raise RunError(
            f"{record.folder / 'config.json'}: {one_line(error)}; start a new run"
        ) from as_cause(error)
    memory = source.get(IN_MEMORY) or ()
    path = path_in(what, {name: value for name, value in source.items() if name not in memory})
    if path is not None and not processes.from_main(lambda: signature.verify(record.config)):
        pass_it = {"model": "lm=load_model(…)", "task": "task=load_task(…)"}[what]
        raise RunError(
            f"run {record.id} was not begun by your LoRA Lab, so that {path[:200]!r}, which it "
            f"names as its {what}, is not opened unasked; look at it, then resume(…, {pass_it})"
        )
    return source


def path_in(what: str, source: Mapping[str, Any]) -> str | None:
    """Return a path of this machine that a "model"'s or "task"'s source names; None: only names.

    A name of the catalogue, an embedded task and a hub id are no paths, unless a folder or a file
    here is called so.
    """
    for part in ("validation", "test"):
        given = source.get(part)
        if given is not None and ("/" in str(given) or is_file_name(given)):  # no split's name
            return _first(given)
    if "name" not in source:  # rows in memory
        return None
    if isinstance(source["name"], list):
        return _first(source["name"])
    name = str(source["name"])
    if name in (CATALOGUE if what == "model" else EMBEDDED):
        return None
    plain = HUB_ID.fullmatch(name) and not is_file_name(name) and not Path(name).exists()
    return None if plain else name


def _first(files: str | list[str]) -> str:
    return str(files[0]) if isinstance(files, list) and files else str(files)


def _known_name(record: RunRecord, what: str) -> str:
    known = record.config.get(what)
    return one_line(known.get("name", "something")) if isinstance(known, dict) else "something"


resume_with(resume)
