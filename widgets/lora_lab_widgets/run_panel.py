"""The heartbeat of the workbench, and the run's controls.

The panel's JavaScript asks at most three times a second, and only while somebody looks; the handler
here reads one immutable `Snapshot`, lets the panels update themselves, and answers by setting one
trait. The trainer's thread never comes near a widget. `MessageThrottle` says how much goes to the
browser.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab.captions.glossary import keys_of
from lora_lab.errors import ConfigError, LoraLabError
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.schedule import schedule_points
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.error_json import MAX_LINE, as_json, from_error
from lora_lab_widgets.form import form_of
from lora_lab_widgets.methods import form_fields
from lora_lab_widgets.panel import PanelWidget, Theme
from lora_lab_widgets.serialize import describe
from lora_lab_widgets.wrong_entries import blamed

if TYPE_CHECKING:
    from lora_lab.tasks.base import Task
    from lora_lab_widgets.planned import Planned
    from lora_lab_widgets.session import Session

EXPLAINED = ("settings", "methods", "metrics")
COMMANDS = ("start", "pause", "resume", "stop", "take", "run_file", "keep", "evaluate")

Beat = Callable[[Snapshot | None, Theme, int], None]
"""What every heartbeat calls: with snapshot, the page's theme, and the width in CSS pixels."""


class RunPanel(PanelWidget):
    """Settings, Start/Pause/Resume/Stop, progress, live loss, memory, and errors with their remedy.

    Messages may arrive on the main thread or on a subshell's: every handler is quick, idempotent
    and safe to call from several threads at once. The browser's side never writes a trait itself;
    it sends messages, so there is one writer a trait.

    Args:
        session: has run and plan, and does the commands: "take" is what an out-of-memory proposes,
            "run_file" the run file for other machines, "keep" shows what can be done with what was
            learned, "evaluate" scores what a run that was stopped has learned. A `LoraLabError`
            that it raises is shown in the red strip; the clock goes on.

    Attributes:
        beat: called at every tick.
        settings: of the next run, of all methods; those of the chosen one are shown.
        fields: how the settings are shown: {"name", "label", "help", "part": "method" or
            "training", "start": its value at first, "ticked", "wide", "more": it stands behind
            "more", "options" to choose}.
        methods: [{"name", "text", "fields": the settings that it has before "more", "terms": of
            the glossary}].
        plan: {"schedule": [[step, share of the peak learning rate]],
            "line": what the method does, or why it cannot; "bad": whether it cannot;
            "automatic": {setting: what it is where nothing is typed};
            "wrong": {setting: why it cannot be}; "more": the settings that it has behind "more";
            "rates": {method: the learning rate that it brings}, "rate": where that comes from;
            "best_by": [[metric, its label]], by which evaluations are the best;
            "loss_unit", "terms": the task's, and what of the glossary explains its metrics}.
        run_file: {"path": of the run file that was written, "commands": what trains it elsewhere}.
        notes: what the run has to say beside its numbers, a line each.
        bench: whose grid's ranks come with a command.
    """

    module = "run_panel"
    terms = ("interval", *(key for kind in EXPLAINED for key in keys_of(kind).values()))

    snapshot = traitlets.Dict(read_only=True).tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    tasks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    fields = traitlets.List(traitlets.Dict()).tag(sync=True)
    methods = traitlets.List(traitlets.Dict()).tag(sync=True)
    plan = traitlets.Dict().tag(sync=True)
    run_file = traitlets.Dict().tag(sync=True)
    notes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)
    clock = traitlets.Unicode(read_only=True).tag(sync=True)  # views of one panel share one clock

    def __init__(self, session: Session, **settings: Any) -> None:
        self._session, self._plan = session, session.plan
        self.beat: Beat = lambda *_: None
        self._updating = threading.Lock()  # one thread at a time works on the views
        # One thread at a time writes the traits; again by the same, from an observer of one.
        self._answering = threading.RLock()
        self._refused: dict[str, Any] | None = None  # the problem of the latest command
        self._refused_in: tuple[str, str] = ("", "")  # the run and the state it arose in
        self._taken: tuple[str, str] | None = None  # the run whose proposal was taken
        self._broken: dict[str, Any] | None = None  # the latest heartbeat's problem
        self._unread: dict[str, Any] | None = None  # why the run could not be read
        self._seen: Snapshot | None = None
        self._answerer = 0  # the thread that answers a message right now
        self._due: set[str] = set()  # traits that changed since the last answer
        self._noting = threading.Lock()
        # The first message has all of it: a page draws from that one.
        plan = self._of_plan(self._plan.planned)
        super().__init__(**{"bench": session.bench, "fields": form_fields(), **plan, **settings})
        self._plan.observe(lambda change: self._show_plan(change["new"]), "planned")
        self.observe(lambda change: setattr(self._plan, "settings", change["new"]), "settings")
        self._answer("", self._look())
        self.on_msg(self._receive)

    @traitlets.default("snapshot")
    def _no_run_yet(self) -> dict[str, Any]:
        return {"seq": "", **describe(None), "problem": None}

    @traitlets.default("clock")
    def _own_clock(self) -> str:
        return uuid.uuid4().hex

    def summary(self) -> str:
        """Return the run's state in a few words."""
        shown = self.snapshot
        if not shown["run_id"]:
            return "no run yet"
        return f"{shown['run_id']} {shown['state']} step {shown['step']}/{shown['total_steps']}"

    def send_state(self, key: Any = None) -> None:
        """Send traits to the browser, each with the next answer.

        A command may change settings, plan and run_file, and all of it is to be one message.
        """
        if key is None or not hasattr(self, "_due"):  # asked for all of it, or still being built
            super().send_state(key)
            return
        names = {key} if isinstance(key, str) else set(key)
        with self._noting:
            self._due |= names
            if threading.get_ident() != self._answerer:
                return
            names, self._due = self._due, set()
        super().send_state(names)

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        self._handle(content)

    def _handle(self, content: Mapping[str, Any]) -> None:
        """Do what a message of the browser asks, and answer with one snapshot."""
        kind = content.get("type")
        snapshot = self._look()
        try:
            if kind == "tick":
                self._update_panels(snapshot, content)
            elif kind == "settings":
                self._merge(content.get("settings") or {})
                self._refused = None
            elif kind == "command":
                self._command(content)
                snapshot = self._look()
                self._refused = None
            else:
                raise ConfigError(f"the run panel got an unknown message {kind!r}; reload the page")
        except Exception as error:
            self._refuse(error, snapshot)
        self._answer(str(content.get("seq", "")), snapshot)

    def _look(self) -> Snapshot | None:
        try:
            run = self._session.run
            self._seen = run.snapshot if run is not None else None
            used = self._session.used
            notes = run.notes if run else [f"in use: {used.words}"] if used else []
            self.notes = [note[:MAX_LINE] for note in notes[:MAX_NOTES]]
            self._unread = None
        except Exception as error:
            self._unread = from_error(error, "the run could not be read; it may still go on")
        return self._seen

    def _update_panels(self, snapshot: Snapshot | None, content: Mapping[str, Any]) -> None:
        # A tick that meets another one still at work only answers: the panels are up to date soon.
        if not self._updating.acquire(blocking=False):
            return
        try:
            theme: Theme = "dark" if content.get("theme") == "dark" else "light"
            with self._session.throttle.turn():
                self.beat(snapshot, theme, int(content.get("width") or 0))
            self._broken = None
        except Exception as error:
            self._broken = from_error(error, "the panels could not be updated; the run goes on")
        finally:
            self._updating.release()

    def _command(self, content: Mapping[str, Any]) -> None:
        name = str(content.get("name"))
        if name not in COMMANDS:
            raise ConfigError(f"no command {name!r}; use one of {', '.join(COMMANDS)}")
        self._merge(content.get("settings") or {})
        if "ranks" in content:
            self._plan.ranks = content["ranks"]
        typed = name in ("start", "run_file")
        settings = self._plan.typed() if typed else dict(self._plan.settings)
        run_file = self._session.command(name, settings)
        if run_file is not None:
            self.run_file = run_file
        if name == "take":
            self._taken = _moment(self._seen)

    def _merge(self, changes: Mapping[str, Any]) -> None:
        with self._answering:
            self._plan.merge(changes)

    def _show_plan(self, planned: Planned) -> None:
        for name, value in self._of_plan(planned).items():
            setattr(self, name, value)

    def _of_plan(self, planned: Planned) -> dict[str, Any]:
        plan: dict[str, Any] = {"line": planned.line, "bad": bool(planned.error)}
        if planned.entry is not None:
            plan["automatic"] = planned.automatic
        plan["schedule"] = self._schedule(planned.settings)
        task = self._plan.task_called(planned.settings["task"])
        plan |= {"loss_unit": task.loss_unit, "terms": _terms(task)}
        plan |= form_of(self._plan, planned)
        tasks, methods = self._plan.task_names, self._plan.choices()
        return {"settings": planned.settings, "tasks": tasks, "methods": methods, "plan": plan}

    def _schedule(self, settings: Mapping[str, Any]) -> list[list[float]]:
        """Return the learning rate's way over the steps; [] while they are no numbers."""
        with contextlib.suppress(LoraLabError, TypeError):
            training = TrainingConfig.from_dict(self._plan.training(settings))
            training = training.for_examples(len(self._plan.task_called(settings["task"]).train))
            return [[step, round(share, 4)] for step, share in schedule_points(training)]
        return []

    def _refuse(self, error: Exception, snapshot: Snapshot | None) -> None:
        problem = from_error(error)
        problem["field"] = blamed(problem["message"].partition(" ")[0], self.settings)
        problem["message"] = self._plan.in_words(problem["message"])
        self._refused_in = _moment(snapshot)
        self._refused = problem

    def _answer(self, seq: str, snapshot: Snapshot | None) -> None:
        with self._answering:
            # What was refused is over when the run has moved on.
            if self._refused_in != _moment(snapshot):
                self._refused = None
            of_run = as_json(snapshot.failure) if snapshot and snapshot.failure else None
            if of_run and self._taken == _moment(snapshot):
                of_run.update(proposal="", remedy=_TAKEN)
            problem = self._refused or of_run or self._unread or self._broken
            self._answerer = threading.get_ident()
            try:
                self.set_trait("snapshot", {"seq": seq, **describe(snapshot), "problem": problem})
            finally:
                self._answerer = 0


MAX_NOTES = 30
_TAKEN = "what was proposed is in the settings: press Start"


def _terms(task: Task) -> list[str]:
    known = keys_of("metrics")
    return list(dict.fromkeys(known[each.name] for each in task.metrics if each.name in known))


def _moment(snapshot: Snapshot | None) -> tuple[str, str]:
    return (snapshot.run_id, snapshot.state) if snapshot else ("", "")
