"""Going on from a kept adapter: it is put on the bench's model, or a run starts from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_lab._util.files import user_path
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.locate import holds_adapter, locate_adapter
from lora_lab.checkpoint.loralib_models import load_loralib
from lora_lab.errors import AdapterError, ConfigError, LoraLabError, RunError
from lora_lab.methods.combined import as_config
from lora_lab.runs.run_file import read_configs
from lora_lab.training.api import train
from lora_lab.training.late_scores import score_end
from lora_lab.training.resume import task_of
from lora_lab.training.snapshot import RunState
from lora_lab_widgets.decoding_fields import task_to_train
from lora_lab_widgets.kept import Kept, kept_folder, refuse_other_base
from lora_lab_widgets.live_adapter import ADAPTER
from lora_lab_widgets.resume import chosen_configs, chosen_parts, is_of

if TYPE_CHECKING:
    from lora_lab.methods.config import MethodConfig
    from lora_lab.runs.records import RunRecord
    from lora_lab.tasks.base import Task
    from lora_lab.training.evaluate import Evaluated
    from lora_lab.training.run import Run
    from lora_lab_widgets.session import Session

Show = Callable[[], None]
USING = "another adapter is being put on the model"
SCORING = "a run is being scored on the model"


def cannot_use(session: Session, kept: Kept) -> str:
    """Return why an adapter is not put on the model; "" where it can be."""
    if kept.run is not None:
        if kept.run.is_attached:
            return "it is on the model"
        return "" if kept.run.state.final else f"run {kept.id} is {kept.run.state}; stop it first"
    known = kept.record or kept.place
    if known is None or kept is session.used:
        return "it is on the model"
    if kept.record is None or session.used is None:
        return ""  # what lies at a place may be another one by now
    return "it is on the model" if session.used.source == kept.source else ""


def cannot_continue(kept: Kept) -> str:
    """Return why no run starts from an adapter; "" where one can."""
    if kept.run is not None:
        state = kept.run.state
        return "" if state.final else f"run {kept.id} is {state}: Resume goes on with it"
    if kept.record is None and kept.place is None:
        return "it is on the model alone; save it and load it first"
    if kept.place is not None and not kept.place.is_dir():
        return "no run starts from a file of loralib's; save it as PEFT's and load that"
    return ""


def used(session: Session, kept: Kept) -> Show:
    """Put an adapter from disk on the model, in the place of the latest run's; on a thread.

    Returns:
        What shows it on the bench, for the thread that serves the browser.

    Raises:
        RunError: it is on the model, or of another base.
        AdapterError: it cannot be read.
    """
    if why := cannot_use(session, kept):
        raise RunError(why)
    kept = kept.on_disk()
    latest = session.run
    task: Task | None = None
    if kept.record is not None:
        refuse_other_base(kept.record, session.lm)
        place = locate_adapter(kept.record.folder).path
        task = _task_of(session, kept.record)
    else:
        assert kept.place is not None
        place = kept.place
    with session.live_adapter.alone(USING) as model:
        load = load_loralib if place.is_file() else load_adapter
        adapter = load(model, place, ADAPTER)
    config = adapter.config
    if kept.record is not None:
        with contextlib.suppress(RunError):
            config = as_config(read_configs(kept.record)[0])

    def show() -> None:
        session.needs_rest("use another adapter")
        if session.run is not latest:
            raise RunError("another run has begun meanwhile; press it again to use this adapter")
        session.show_used(kept, _chosen(session, config, task), task)

    return show


def continued(session: Session, kept: Kept) -> Run:
    """Return a new run that starts from an adapter on disk, idle; on a thread.

    Raises:
        RunError, ConfigError, AdapterError: as `train`.
    """
    if why := cannot_continue(kept):
        raise RunError(why)
    plan = session.plan
    settings = plan.typed()
    origin = kept.run.folder if kept.run is not None else kept.record or kept.place
    return train(
        session.lm,
        task_to_train(plan, settings),
        output_dir=session.output_dir,
        start=False,
        start_from=origin,
        **plan.training(settings),
    )


def begin(session: Session, run: Run) -> None:
    """Start a run that `continued` made; what it trains becomes the plan.

    Raises:
        RunError: something else trains by now.
    """

    def show() -> None:
        with contextlib.suppress(ConfigError):  # a method without fields here
            session.plan.take(chosen_configs(run))

    try:
        session.needs_model("start another run")
        session.begin(run, show)
    except Exception:
        if run.state is RunState.IDLE:
            run.store.discard()  # it has begun nothing
        raise


def scored(session: Session, kept: Kept, say: Callable[[str], None]) -> Evaluated:
    """Score what a run that was stopped has learned, and note it in its folder; on a thread.

    Raises:
        RunError, TaskError, AdapterError: as `score_end`.
    """
    of = kept.run or kept.record
    assert of is not None
    say("scoring what was learned…")
    task = None
    if kept.record is not None:
        refuse_other_base(kept.record, session.lm)
        task = _task_of(session, kept.record)
    with session.live_adapter.alone(SCORING):
        return score_end(of, session.lm, task)


def adapter_at(typed: object) -> Kept:
    """Return the adapter of a folder or file that somebody typed.

    Raises:
        AdapterError: there is none.
    """
    text = str(typed or "").strip()
    if not text or "\0" in text:
        raise AdapterError("type the folder that holds an adapter: its adapter_config.json")
    place = user_path(text, AdapterError).absolute()
    found = locate_adapter(place)
    if found.run is not None:
        return kept_folder(found.run)
    if not (place.is_file() or holds_adapter(place)):
        raise AdapterError(
            f"there is no adapter in {place}; name the folder that holds adapter_config.json"
        )
    return Kept("", f"the adapter {place.name}", place=place)


def _chosen(session: Session, config: MethodConfig, task: Task | None) -> MethodConfig:
    has_head = bool((task or session.plan.task).head)
    return as_config(chosen_parts(session.lm.model, config.parts, has_head=has_head))


def _task_of(session: Session, record: RunRecord) -> Task | None:
    """Return the data that a run learned, as its adapter is asked; None: they are not here."""
    known = record.config.get("fingerprints") or {}
    own = next((task for task in session.plan.tasks.values() if is_of(task, known)), None)
    if own is not None:
        return own
    try:
        return task_of(record, None)
    except LoraLabError:
        return None
