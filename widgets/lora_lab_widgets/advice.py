"""Advice: what to begin with and why, and which layers; it fills the form and the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab.advice.api import Advice, advise, source_of
from lora_lab.advice.layers import WhichLayers, which_layers
from lora_lab.errors import ConfigError, RunError
from lora_lab_widgets.background import Background
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.grid_cells import grid_of
from lora_lab_widgets.panel import MessagePanel, Tick

if TYPE_CHECKING:
    from lora_lab.advice.layers import RankPlan
    from lora_lab.tasks.base import Task
    from lora_lab_widgets.session import Session

PASSES = 4
_MOST_TYPED = 40  # characters of a field
_WORDS = {
    "target_modules": "targets",
    "r": "rank r",
    "lora_alpha": "α",
    "learning_rate": "learning rate",
    "per_device_train_batch_size": "batch",
    "gradient_checkpointing": "recompute blocks",
    "max_length": "max length",
    "num_train_epochs": "epochs",
}
# Fields that earlier advice may have set, and this one has nothing to say of.
_UNSAID = {"gradient_accumulation_steps": 1, "gradient_checkpointing": False}


class CancelledProbeError(Exception):
    """The probe is not wanted any more."""


class AdvicePanel(MessagePanel):
    """What to begin with, each setting with its source; and a probe that proposes ranks.

    Both are worked out on a thread while nothing trains, and reach the browser with the next
    heartbeat. Closed until opened.

    Attributes:
        form: {"open": bool, "memory": text, "parameters": text}; empty: what is free, r = 8.
        advice: {"rows": [[setting, value, finding, source]], "notes", "of": the task}; {} before.
        layers: {"rows", "roles": the grid's, "cells": [[row, role, share of the largest norm, norm,
            r, uniform r]], "line", "notes", "of"}; {} before the first probe.
        busy: what it is at, "" when at rest.
        painted: which plan the grid was given last: "", "proposed" or "uniform".
    """

    module = "advice"
    form = traitlets.Dict().tag(sync=True)
    advice = traitlets.Dict().tag(sync=True)
    layers = traitlets.Dict().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)
    painted = traitlets.Unicode().tag(sync=True)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._job: Background[Advice | WhichLayers] = Background()
        self._advice: Advice | None = None
        self._layers: WhichLayers | None = None
        self._given: tuple[Task, str] | None = None  # (task, memory) of the advice, or its refusal
        self._doing: tuple[str, str] = ("", "")
        self._said, self._cancelled = "", False
        super().__init__(form={"open": False, "memory": "", "parameters": ""})

    def summary(self) -> str:
        """Return the first words of the advice."""
        said = self._advice
        return "no advice yet" if said is None else f"{said.config.method} on {self._doing[0]}"

    def fallback_html(self) -> str:
        """Return the advice as a notebook shows it."""
        return super().fallback_html() if self._advice is None else self._advice._repr_html_()

    def update(self, tick: Tick) -> None:
        """Take what has come in, and start what is due."""
        with self._lock:
            self._take()
            if not self.form["open"]:
                return
            plan = self._session.plan
            task = plan.tasks.get(plan.settings["task"])  # None: it cannot be loaded
            if task is not None and not tick.busy and not self._job.busy:
                self._advise(task, self.form["memory"])
            self.busy = self._said if self._job.busy else ""

    # What is asked for ---------------------------------------------------------------------------

    def _handle(self, content: Mapping[str, Any]) -> None:
        acts: dict[str, Callable[[], None]] = {
            "open": lambda: self._show(open=bool(content.get("value"))),
            "set": lambda: self._set(content),
            "fill": self._fill,
            "probe": lambda: self._probe(content),
            "cancel": self._cancel,
            "paint": lambda: self._paint(str(content.get("plan"))),
        }
        act = acts.get(str(content.get("type")))
        if act is None:
            kind = content.get("type")
            raise ConfigError(f"the advice got an unknown message {kind!r}; reload the page")
        self.set_trait("problem", None)
        act()

    def _show(self, **values: Any) -> None:
        self.form = {**self.form, **values}

    def _set(self, content: Mapping[str, Any]) -> None:
        names = [name for name in ("memory", "parameters") if name in content]
        self._show(**{name: str(content[name]).strip()[:_MOST_TYPED] for name in names})

    def _fill(self) -> None:
        """Take the advice into the form and the grid."""
        if self._advice is None:
            raise RunError("there is no advice yet; wait for it")
        self._session.needs_rest("fill in the advice")
        plan = self._session.plan
        plan.take(self._advice.config, **{**_UNSAID, **self._advice.training})
        self.painted = ""

    def _paint(self, which: str) -> None:
        """Give the grid the ranks of one of the plans."""
        if self._layers is None:
            raise RunError("no layer was probed yet; press Which layers?")
        plans: dict[str, RankPlan] = {
            "proposed": self._layers.proposed,
            "uniform": self._layers.uniform,
        }
        if which not in plans:
            raise ConfigError(f"no plan is called {which!r}; reload the page")
        self._session.needs_rest("change the ranks")
        self._session.plan.take(plans[which].config)
        self.painted = which

    # On a thread ---------------------------------------------------------------------------------

    def _advise(self, task: Task, memory: str) -> None:
        lm, given = self._session.lm, self._given
        if given is not None and given[0] is task and given[1] == memory:
            return  # another task of the same name is another one
        if self._job.start(lambda: advise(lm, task, memory=memory or None)):
            self._given, self._doing = (task, memory), (task.name, memory)
            self._said = "looking at the model, the data and the memory…"

    def _probe(self, content: Mapping[str, Any]) -> None:
        self._set(content)
        self._session.needs_rest("probe its layers")
        session, text = self._session, self.form["parameters"].replace(",", "")
        if text and not text.isdecimal():
            raise ConfigError(f"parameters is {text!r}; give a whole number, such as 500,000")
        lm, task, length = session.lm, session.plan.task, session.plan.settings["max_length"]
        parameters = int(text) if text else None

        def probe() -> WhichLayers:
            with session.live_adapter.alone("layers are being probed"):
                return which_layers(
                    lm,
                    task,
                    parameters=parameters,
                    passes=PASSES,
                    max_length=length,
                    done=self._passed,
                )

        self._cancelled = False
        if not self._job.start(probe):
            raise RunError("the panel is at work still; wait a moment and ask again")
        self._doing = session.plan.settings["task"], ""
        self._said = self.busy = f"probing: {PASSES} backward passes…"

    def _passed(self, count: int) -> None:
        if self._cancelled:
            raise CancelledProbeError
        self._said = f"probing: backward pass {count} of {PASSES}"

    def _cancel(self) -> None:
        self._cancelled = True

    def _take(self) -> None:
        outcome = self._job.take()
        if outcome is None:
            return
        self.busy = ""
        if isinstance(outcome.error, CancelledProbeError):
            return
        if isinstance(outcome.value, Advice):
            self._advice = outcome.value
            self.set_trait("problem", None)
            self.advice = _plain_advice(outcome.value, self._doing[0])
        elif isinstance(outcome.value, WhichLayers):
            self._layers, self.painted = outcome.value, ""
            self.layers = _plain_layers(outcome.value, self._doing[0])
        else:
            self.problem = from_error(outcome.error or RuntimeError("no answer came back"))


def _plain_advice(advice: Advice, task: str) -> dict[str, Any]:
    rows = [
        [_WORDS.get(each.setting, each.setting), each.shown, each.finding, source_of(each)]
        for each in advice.recommendations
    ]
    return {"rows": rows, "notes": list(advice.notes), "of": task, "fits": advice.fits}


def _plain_layers(found: WhichLayers, task: str) -> dict[str, Any]:
    grid, norms = grid_of(found.anatomy), found.gradients.norms
    here = [norms[cell["site"]] for cell in grid["cells"] if cell["site"] in norms]
    most = max(here, default=1.0)  # a head has a norm and no cell
    columns = {role: number for number, role in enumerate(grid["roles"])}
    cells = [
        [
            cell["row"],
            columns[cell["role"]],
            round(norms[name] / most, 3),
            float(f"{norms[name]:.3g}"),
            found.proposed.ranks.get(name, 0),
            found.uniform.ranks.get(name, 0),
        ]
        for cell in grid["cells"]
        if (name := cell["site"]) in norms
    ]
    return {
        "rows": grid["rows"],
        "roles": grid["roles"],
        "cells": cells,
        "line": str(found).partition("\n")[0],
        "notes": found.notes(),
        "of": task,
    }
