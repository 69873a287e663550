"""Going on with a run that ended before its last step, from what is on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.plain import method_from_dict
from lora_lab.runs import checkpoints, signature
from lora_lab.runs.fingerprints import base_fingerprint, data_fingerprint
from lora_lab.runs.records import RecordState, RunRecord, find_run
from lora_lab.runs.run_file import settings
from lora_lab.training import processes
from lora_lab.training.checks import check
from lora_lab.training.config import TrainingConfig

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.training.run import Run


def resume(
    run: RunRecord | str | os.PathLike[str],
    lm: LoadedModel | None = None,
    task: Task | None = None,
    *,
    output_dir: str | os.PathLike[str] = "runs",
    start: bool = True,
) -> Run:
    """Go on with a run from its last checkpoint, in its folder; returns at once.

    On the CPU every loss from there on, and the adapter at the end, are bit for bit those of the
    run left alone. What metrics.jsonl and the spectra have of later steps is dropped. A run that
    was cut off before its first checkpoint begins again.

    By another number of processes than it was begun by, it takes as many examples a step as before:
    what a process passes at a time, and how often, is changed accordingly.

    Args:
        run: its id, its folder, or what `lora_lab.runs` lists.
        lm: the base model; may be left out where `load_model` had loaded it.
        task: the data; may be left out where `load_task` had loaded it. Folders and files are
            only looked for again where this user's LoRA Lab began the run: a run that somebody
            else handed on has both passed, or both of public names.
        output_dir: where the folder of that id is.
        start: False leaves the run idle.

    Raises:
        RunError: there is no such run, it is done, it is running, it would fail the same way
            again, the base model or the data are not those that it had, or they are files here
            that a run begun elsewhere names.
        ConfigError: the model is not for such data.
        ModelError, TaskError: the model or the data cannot be loaded any more.
    """
    from lora_lab.runs.store import RunStore
    from lora_lab.training.run import Run

    record = find_run(run, output_dir)
    processes.from_main(lambda: _check_state(record))  # looking takes the lock for a moment
    _refuse_links(record.folder)
    checkpoint = checkpoints.newest(record.folder)
    methods, training = read_configs(record)
    training = processes.shared_out(training, _begun_by(record))
    lm = lm or _load_model(record)
    task = task or _load_task(record)
    check(lm, task)
    _compare(record, lm, task)
    made = Run(
        lm,
        task,
        methods[0] if len(methods) == 1 else methods,
        training,
        store=RunStore(record.folder),
        resumes=checkpoint,
    )
    return made.start() if start else made


def model_source(lm: LoadedModel, task: Task) -> dict[str, Any] | None:
    """Return what `load_model` needs to load a model again; None of one that the user gave."""
    card = lm.card
    if card.source == "given":
        return None
    name = str(Path(card.name).expanduser().resolve()) if card.source == "folder" else card.name
    source: dict[str, Any] = {"name": name, "dtype": card.dtype}
    source["device"] = card.device.partition(":")[0]
    return source | task.head


def read_configs(record: RunRecord) -> tuple[tuple[MethodConfig, ...], TrainingConfig]:
    """Return a run's configs, from its config.json.

    Raises:
        RunError: a class or a field that is none of ours.
    """
    where = record.folder / "config.json"
    try:
        training = TrainingConfig.from_dict(record.config["training"])
        methods = tuple(map(method_from_dict, record.config["configs"]))
        if not methods:
            raise ConfigError("it names no method")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{where} cannot be gone on from: {_one_line(error)}; start a new run"
        ) from error
    return methods, training


def _begun_by(record: RunRecord) -> int:
    count = record.config.get("processes", 1)
    if not isinstance(count, int) or count < 1:
        where = record.folder / "config.json"
        raise RunError(f"{where} has {_one_line(repr(count))} processes; start a new run")
    return count


def _check_state(record: RunRecord) -> None:
    state = record.state
    if state is RecordState.RUNNING:
        raise RunError(f"run {record.id} is running here; its own resume() ends a pause")
    if state is RecordState.ELSEWHERE:
        raise RunError(f"run {record.id} is running in another process; stop it there first")
    if state is RecordState.DONE:
        raise RunError(f"run {record.id} is done; call train() for a new run")
    summary = record.summary or {}
    if state is RecordState.FAILED and summary.get("repeats"):
        why = _one_line(summary.get("problem", "its loss is no number"))
        raise RunError(
            f"run {record.id} failed by itself and would do so again ({why}); call train() with a "
            "lower learning_rate"
        )


def _refuse_links(folder: Path) -> None:
    """A run that somebody handed on may not have us write anywhere but into its folder."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise RunError(f"{path} is a link; copy the run's folder with its files, then resume")


def _load_model(record: RunRecord) -> LoadedModel:
    from lora_lab.models.load import load_model

    source = _source(record, "model")
    if source is None:
        name = _known_name(record, "model")
        raise RunError(
            f"run {record.id} trained {name}, a model of your own; pass it: resume(…, lm)"
        )
    device = source.get("device") or "auto"
    return load_model(
        source["name"],
        device="cpu" if device == "cpu" else "auto",
        dtype=source.get("dtype") or "auto",
        labels=source.get("labels"),
    )


def _load_task(record: RunRecord) -> Task:
    from lora_lab.tasks.load import load_task

    source = _source(record, "task")
    if source is None:
        name = _known_name(record, "task")
        raise RunError(
            f"run {record.id} trained on {name}, a task of your own; pass it: resume(…, task=…)"
        )
    load: Any = load_task
    return load(**source)


def _compare(record: RunRecord, lm: LoadedModel, task: Any) -> None:
    """Refuse another base model, or other data, than the run had."""
    known = record.config.get("fingerprints")
    if not isinstance(known, dict):
        raise RunError(
            f"run {record.id} is of an earlier version, which did not note what goes on from it "
            "needs; start a new run"
        )
    if known.get("data") != data_fingerprint(task):
        raise RunError(
            f"the training examples of {task.name} are not those of run {record.id} any more; put "
            "the data back as they were, or start a new run"
        )
    if known.get("base") != base_fingerprint(lm.model):
        card = record.config.get("model")
        dtype = card.get("dtype") if isinstance(card, dict) else None
        raise RunError(
            f"{lm.card.name} ({lm.card.dtype}) is not the base model of run {record.id}, which was "
            f"{_known_name(record, 'model')} ({_one_line(dtype)}) with other weights; load that one"
        )


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
            f"{record.folder / 'config.json'}: {_one_line(error)}; start a new run"
        ) from error
    path = signature.path_in(what, source)
    if path is not None and not processes.from_main(lambda: signature.verify(record.config)):
        pass_it = {"model": "lm=load_model(…)", "task": "task=load_task(…)"}[what]
        raise RunError(
            f"run {record.id} was not begun by your LoRA Lab, so that {path[:200]!r}, which it "
            f"names as its {what}, is not opened unasked; look at it, then resume(…, {pass_it})"
        )
    return source


def _known_name(record: RunRecord, what: str) -> str:
    known = record.config.get(what)
    return _one_line(known.get("name", "something")) if isinstance(known, dict) else "something"


def _one_line(said: object) -> str:
    """Return what a run's files say, as much of it as belongs into a line."""
    text = " ".join(str(said).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_LONGEST = 300  # letters
