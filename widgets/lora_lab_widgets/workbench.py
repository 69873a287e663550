"""The workbench: the panels put together, on one model, one plan and one run at a time."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from lora_lab.budget.forecast import budget
from lora_lab.configs import MethodConfig
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel
from lora_lab.redaction import redacted
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.local import Sweep
from lora_lab.tasks.base import Task
from lora_lab.tasks.load import Data, as_task
from lora_lab.training.run import Run
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.advice import AdvicePanel
from lora_lab_widgets.data_look import DataLook
from lora_lab_widgets.delta_w import DeltaW
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.header import Header
from lora_lab_widgets.history import History
from lora_lab_widgets.laboratory import Laboratory
from lora_lab_widgets.marimo_page import MarimoPage
from lora_lab_widgets.panel import Panel, PanelError, Theme
from lora_lab_widgets.plan import Configs, PlanModel
from lora_lab_widgets.rank_grid import RankGrid
from lora_lab_widgets.run_panel import RunPanel
from lora_lab_widgets.savings import Savings
from lora_lab_widgets.session import Session
from lora_lab_widgets.sweep_panel import SweepPanel
from lora_lab_widgets.try_it import TryIt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PANELS: dict[str, Callable[[Session], Panel]] = {
    "header": Header,
    "grid": RankGrid.of,
    "savings": Savings.of,
    "panel": RunPanel,
    "advice": AdvicePanel,
    "data_look": DataLook,
    "delta_w": DeltaW,
    "laboratory": Laboratory,
    "try_it": TryIt.of,
    "sweep_panel": SweepPanel,
    "history": History,
}
"""{attribute of the workbench: what makes the panel}. A new panel is one more entry: a widget with
`update(tick)`. Those after the first four stand below each other, in this order."""


class Workbench:
    """Choose a method, paint ranks, see what they cost, train, and watch ΔW grow.

    >>> wb = Workbench("smollm2-135m")
    >>> wb                                   # the last line of a cell shows it
    >>> wb.config                            # the config that it shows; may be set
    >>> wb.config = ll.BitFitConfig()        # any method's, or a list of them: the paper's LoRA+PE
    >>> wb.run                               # the latest run; wb.run.pause() works from any cell
    >>> wb.watch(ll.sweep(wb.lm, wb.task, grid={"r": [1, 4, 16]}))  # shows a sweep of your own

    Args:
        model: a catalogue name, hub id or folder, what `load_model` returns, or a model of your
            own, then with its `tokenizer`.
        tokenizer: of a model of your own.
        task: a task, or what `load_task` takes: a name, a file, rows in memory. Of a stream as
            many rows are taken as `max_steps` reach.
        config: of any method, or a list of them, to show first; by default LoRA on the paper's q
            and v at r=8.
        output_dir: where the runs' folders go.
        **settings: fields of `TrainingConfig`. Those that the run panel shows (max_steps,
            learning_rate, seed …) are its first values; the others hold for every run.

    Raises:
        ModelError, TaskError, ConfigError: as `load_model`, `load_task` and the configs do.
    """

    header: Header
    grid: RankGrid
    savings: Savings
    panel: RunPanel
    advice: AdvicePanel
    data_look: DataLook
    delta_w: DeltaW
    laboratory: Laboratory
    try_it: TryIt
    sweep_panel: SweepPanel
    history: History

    def __init__(
        self,
        model: str | Path | LoadedModel | PreTrainedModel = "smollm2-135m",
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        task: Task | Data = "mini-e2e",
        config: Configs | None = None,
        output_dir: str | Path = "runs",
        **settings: Any,
    ) -> None:
        training = TrainingConfig.from_dict(settings)
        given = as_task(task, training.max_steps, training.step_size)
        lm = as_loaded(model, tokenizer, given.head, "Workbench(model, tokenizer)")
        self.plan = PlanModel(lm, given, config, settings)
        self.session = Session(self.plan, Path(output_dir))
        self.lm, self.anatomy = self.plan.lm, self.plan.anatomy
        self.panels = {name: make(self.session) for name, make in PANELS.items()}
        vars(self).update(self.panels)
        self.errors: dict[str, PanelError] = {}  # under the panels that could not be updated
        # Made now, to be put in place when needed: marimo knows no widget that is made while a
        # message is answered.
        self._pairs = {name: _with_error(panel) for name, panel in self.panels.items()}
        self.panel.beat = self._beat
        self.box = self._layout()

    @property
    def config(self) -> MethodConfig:
        """The config that the workbench shows, or the configs of a combination.

        Setting it chooses the method, and repaints the grid where the method has ranks.

        Raises:
            ConfigError: nothing is painted, a setting cannot be, or a new config does not fit the
                model.
        """
        return self.plan.config

    @config.setter
    def config(self, config: Configs) -> None:
        self.session.needs_rest("change the plan")
        budget(self.anatomy, config)
        self.grid.show_painted()
        self.plan.take(config)

    @property
    def task(self) -> Task:
        """The task that the run panel has picked."""
        return self.plan.task

    @property
    def run(self) -> Run | None:
        """The latest run, None before the first."""
        run: Run | None = self.session.run
        return run

    def start(self) -> Run:
        """Train what is on show; the same as the Start button. Returns the run."""
        self.session.start(self.plan.typed())
        assert self.run is not None
        return self.run

    @property
    def sweep(self) -> Sweep | None:
        """The sweep on show."""
        return self.sweep_panel.sweep

    def watch(self, sweep: Sweep) -> Sweep:
        """Show a sweep that was started in a cell; returns it.

        Raises:
            RunError: the sweep on show still trains.
        """
        self.sweep_panel.show(sweep)
        return sweep

    def save(self, folder: str | Path) -> Path:
        """Save the latest run's adapter, in PEFT's format where it has one; see `Run.save`.

        Before the first run it is the model's own, which `load_adapter` or `attach` put there. What
        adapter the folder had is replaced, with a warning where it was not this one.

        Raises:
            AdapterError, RunError: there is none.
        """
        return self.session.live_adapter.save(Path(folder))

    def __repr__(self) -> str:
        run = f", {self.run!r}" if self.run else ""
        return redacted(f"<Workbench {self.lm.card.name}: {self._summary()}{run}>")

    def _summary(self) -> str:
        """Return the plan in a few words."""
        planned = self.plan.planned
        if planned.is_lora or planned.config is None:
            return self.grid.summary()
        return " · ".join(filter(None, planned.title))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {
            "text/plain": repr(self),
            "text/html": self.fallback_html(),
            "application/vnd.jupyter.widget-view+json": view,
        }

    def fallback_html(self) -> str:
        """Return what GitHub and other places without widgets show: the plan and its price."""
        run = f"<p>{html.escape(repr(self.run))}</p>" if self.run else ""
        title = f"<p><b>LoRA Lab</b> · {html.escape(self.lm.card.name)}</p>"
        plan = html.escape(self._summary())
        grid = f"<p>{plan}</p>" if self.grid.inert else self.grid.fallback_html()
        return redacted(title + grid + self.savings.fallback_html() + run)

    # How the panels hang together ----------------------------------------------------------------

    def _layout(self) -> ipywidgets.VBox:
        header, grid, savings, panel, *others = self.panels.values()
        columns = ipywidgets.Box([grid, ipywidgets.VBox([savings, panel])])
        columns.add_class("ll-columns")
        box = ipywidgets.VBox([header, columns, *others])
        for widget in (box, columns, columns.children[1]):
            widget.add_class("ll-panel")
        box.add_class("ll-workbench")
        return box

    def _display_(self) -> MarimoPage:
        return MarimoPage(root=self.box)

    def _beat(self, snapshot: Snapshot | None, theme: Theme, width: int) -> None:
        """One heartbeat: bring every panel up to date, whatever befalls another."""
        tick = self.session.tick(snapshot, theme, width)
        for name, panel in self.panels.items():
            problem = None
            try:
                panel.update(tick)
            except Exception as error:
                remedy = "this panel could not be updated; the others and the run go on"
                problem = from_error(error, remedy)
            if problem or name in self.errors:
                self._error_under(name).set_trait("problem", problem)

    def _error_under(self, name: str) -> PanelError:
        """Return the place under a panel for what went wrong in it, shown from now on."""
        if name not in self.errors:
            both = self._pairs[name]
            panel, error = both.children
            columns = self.box.children[1]
            boxes = (self.box, columns, columns.children[-1])
            box = next(box for box in boxes if panel in box.children)
            box.children = [both if each is panel else each for each in box.children]
            self.errors[name] = error
        return self.errors[name]


def _with_error(panel: Panel) -> ipywidgets.VBox:
    both = ipywidgets.VBox([panel, PanelError()])
    both.add_class("ll-panel")
    return both
