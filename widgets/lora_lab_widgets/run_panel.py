"""The heartbeat of the workbench, and the run's controls.

The panel's JavaScript asks at most three times a second, and only while somebody looks; the handler
here reads one immutable `Snapshot`, lets the views update themselves, and answers by setting one
trait. The trainer's thread never comes near a widget. `MessageThrottle` says how much goes to the
browser.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import traitlets

from lora_lab.errors import ConfigError
from lora_lab.runs.snapshot import Snapshot
from lora_lab.training.config import TrainingConfig
from lora_lab_widgets._problems import as_json, from_error
from lora_lab_widgets.message_throttle import MessageThrottle
from lora_lab_widgets.methods import METHODS, WHOLE, choices, default_values, typed
from lora_lab_widgets.panel import PanelWidget
from lora_lab_widgets.serialize import describe

TRAINING = (
    "max_steps",
    "per_device_train_batch_size",
    "learning_rate",
    "max_length",
    "seed",
)
"""The fields of `TrainingConfig` that the panel shows."""
COMMANDS = ("start", "pause", "resume", "stop", "take", "recipe")

View = Callable[[Snapshot | None, str, int], None]
"""What `RunPanel.on_tick` takes: called with (snapshot, "light" or "dark", width in CSS pixels)."""


def default_settings(task: str = "") -> dict[str, Any]:
    """Return the settings that the panel knows, under the field names of the configs."""
    training = TrainingConfig()
    return {
        "task": task,
        **{name: getattr(training, name) for name in TRAINING},
        **default_values(),
    }


class RunPanel(PanelWidget):
    """Settings, Start/Pause/Resume/Stop, progress, live loss, memory, and errors with their mend.

    Messages may arrive on the main thread or on a subshell's: every handler is quick, idempotent
    and safe to call from several threads at once. The browser's side never writes a trait itself;
    it sends messages, so there is one writer a trait.

    Args:
        read: returns the run's current snapshot, None before the first run.
        on_command: called with (one of `COMMANDS`, settings): "take" is what an out-of-memory
            proposes, "recipe" the run file for other machines. A `LoraLabError` that it raises is
            shown in the red strip; the clock goes on.
        settings: values that differ from `default_settings`.
        tasks: the names to choose from.
        paint: takes {site: rank}, the ranks that the page's grid shows as a command is given.

    Attributes:
        settings: of the next run, of all methods; those of the chosen one are shown.
        methods: [{"name", "text", "fields": the settings that it has}].
        plan: {"line": what the method does, or why it cannot; "bad": whether it cannot;
            "automatic": {setting: what it is where nothing is typed}}.
        recipe: {"path": of the run file that was written, "commands": what trains it elsewhere}.
        bench: whose grid's ranks come with a command.

    Raises:
        ConfigError: when `settings` has a name that the panel does not show.
    """

    module = "run_panel"

    snapshot = traitlets.Dict(read_only=True).tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    tasks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    methods = traitlets.List(traitlets.Dict()).tag(sync=True)
    plan = traitlets.Dict().tag(sync=True)
    recipe = traitlets.Dict().tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)
    clock = traitlets.Unicode(read_only=True).tag(sync=True)  # views of one panel share one clock

    def __init__(
        self,
        read: Callable[[], Snapshot | None],
        on_command: Callable[[str, dict[str, Any]], None],
        *,
        settings: Mapping[str, Any] | None = None,
        tasks: Sequence[str] = (),
        paint: Callable[[dict[str, int]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self._read = read
        self._on_command = on_command
        self._paint = paint
        self._views: list[View] = []
        self._throttle = MessageThrottle()
        self._updating = threading.Lock()  # one thread at a time works on the views
        # One thread at a time writes the traits; again by the same, from an observer of one.
        self._answering = threading.RLock()
        self._refused: dict[str, Any] | None = None  # the problem of the latest command
        self._refused_in: tuple[str, str] = ("", "")  # the run and the state it arose in
        self._taken: tuple[str, str] | None = None  # the run whose proposal was taken
        self._broken: dict[str, Any] | None = None  # a view's problem in the latest update
        self._unread: dict[str, Any] | None = None  # why the run could not be read
        self._seen: Snapshot | None = None
        self._answerer = 0  # the thread that answers a message right now
        self._due: set[str] = set()  # traits that changed since the last answer
        self._noting = threading.Lock()
        start = default_settings(tasks[0] if tasks else "")
        start.update(_known(settings or {}, start))
        kwargs = {"methods": choices(start, None), **kwargs}
        super().__init__(settings=start, tasks=list(tasks), **kwargs)
        self.set_trait("clock", self.model_id or f"panel-{id(self)}")
        self._answer("", self._look())
        self.on_msg(self._receive)

    def on_tick(self, view: View) -> None:
        """Call `view(snapshot, theme, width)` at every tick; adding the same one twice is once."""
        if view not in self._views:
            self._views.append(view)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let what a start changes in the views reach the browser as at a tick: throttled."""
        with self._throttle.collect():
            yield
        self._throttle.deliver()

    def summary(self) -> str:
        """Return the run's state in a few words."""
        shown = self.snapshot
        if not shown["run_id"]:
            return "no run yet"
        return f"{shown['run_id']} {shown['state']} step {shown['step']}/{shown['total_steps']}"

    def send_state(self, key: Any = None) -> None:
        """Send traits to the browser, each with the next answer.

        A command may change settings, plan and recipe, and all of it is to be one message.
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
                self._update_views(snapshot, content)
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
            self._seen = self._read()
            self._unread = None
        except Exception as error:
            self._unread = from_error(error, "the run could not be read; it may still go on")
        return self._seen

    def _update_views(self, snapshot: Snapshot | None, content: Mapping[str, Any]) -> None:
        # A tick that meets another one still at work only answers: the views are up to date soon.
        if not self._updating.acquire(blocking=False):
            return
        try:
            theme = "dark" if content.get("theme") == "dark" else "light"
            width = int(content.get("width") or 0)
            broken = None
            with self.in_turn():
                for view in tuple(self._views):
                    try:
                        view(snapshot, theme, width)
                    except Exception as error:
                        remedy = "a view of the workbench failed; the run goes on"
                        broken = from_error(error, remedy)
            self._broken = broken
        finally:
            self._updating.release()

    def _command(self, content: Mapping[str, Any]) -> None:
        name = str(content.get("name"))
        if name not in COMMANDS:
            raise ConfigError(f"no command {name!r}; use one of {', '.join(COMMANDS)}")
        self._merge(content.get("settings") or {})
        if self._paint is not None and "ranks" in content:
            self._paint(content["ranks"])
        typed = name in ("start", "recipe")
        self._on_command(name, _typed(self.settings) if typed else dict(self.settings))
        if name == "take":
            self._taken = _moment(self._seen)

    def _merge(self, changes: Mapping[str, Any]) -> None:
        with self._answering:
            self.settings = {**self.settings, **_known(changes, self.settings)}

    def _refuse(self, error: Exception, snapshot: Snapshot | None) -> None:
        problem = from_error(error)
        first = re.match(r"\w*", problem["message"])
        problem["field"] = first[0] if first and first[0] in self.settings else ""
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


_TAKEN = "what was proposed is in the settings: press Start"


def _moment(snapshot: Snapshot | None) -> tuple[str, str]:
    return (snapshot.run_id, snapshot.state) if snapshot else ("", "")


def _known(changes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    for name in changes:
        if name not in settings:
            raise ConfigError(f"no setting {name!r}; the panel has {', '.join(settings)}")
    return dict(changes)


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as numbers, whole ones as int; the configs check the ranges later.

    Raises:
        ConfigError: on what is no number, as the browser may send any text. What other methods
            than the chosen one would need is not looked at.
    """
    chosen = METHODS.get(settings["method"])
    names = (*TRAINING, *(chosen.fields if chosen else ()))
    whole = {*TRAINING, *WHOLE} - {"learning_rate"}
    return {**settings, **typed(settings, names, whole)}
