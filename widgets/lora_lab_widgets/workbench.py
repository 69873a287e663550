"""The workbench: the panels put together, on one model, one plan and one run at a time."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from lora_lab._util.warn import warn
from lora_lab.anatomy.types import Anatomy
from lora_lab.budget.costs import Budget
from lora_lab.budget.forecast import budget
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.models.load import LoadedModel
from lora_lab.redaction import redacted
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.local import Sweep
from lora_lab.tasks.base import Task
from lora_lab.tasks.load import Data
from lora_lab.training.run import Run
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.advice import AdvicePanel
from lora_lab_widgets.cell_line import CellLine
from lora_lab_widgets.chooser import Chooser
from lora_lab_widgets.data_look import DataLook
from lora_lab_widgets.defaults import first_training
from lora_lab_widgets.delta_w import DeltaW
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.header import Header
from lora_lab_widgets.history import History
from lora_lab_widgets.keep import Keep
from lora_lab_widgets.laboratory import Laboratory
from lora_lab_widgets.marimo_page import MarimoPage
from lora_lab_widgets.opening import Opened, planned
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
    "savings": Savings.of,
    "grid": RankGrid.of,
    "panel": RunPanel,
    "delta_w": DeltaW,
    "advice": AdvicePanel,
    "data_look": DataLook,
    "laboratory": Laboratory,
    "try_it": TryIt.of,
    "keep": Keep,
    "sweep_panel": SweepPanel,
    "history": History,
}
"""{attribute of the workbench: what makes the panel}. A new panel is one more entry: a widget with
`update(tick)`. The first two stand at the top, the next three beside each other; the others stand
below, in this order."""

FEW = 12  # layers that leave room below them


class Workbench:
    """Choose a method, paint ranks, see what they cost, train, and watch ΔW grow.

    >>> Workbench()                          # pick a model and data; nothing is loaded before
    >>> wb = Workbench("smollm2-135m")
    >>> wb                                   # the last line of a cell shows it
    >>> wb.config                            # the config that it shows; may be set
    >>> wb.config = ll.BitFitConfig()        # any method's, or a list of them: the paper's LoRA+PE
    >>> wb.run                               # the latest run; wb.run.pause() works from any cell
    >>> wb.watch(ll.sweep(wb.lm, wb.task, grid={"r": [1, 4, 16]}))  # shows a sweep of your own

    Args:
        model: a catalogue name, hub id or folder, what `load_model` returns, or a model of your
            own, then with its `tokenizer`. Without a model, task and config the pickers are shown.
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

    plan: PlanModel
    session: Session
    lm: LoadedModel
    anatomy: Anatomy
    header: Header
    grid: RankGrid
    savings: Savings
    panel: RunPanel
    advice: AdvicePanel
    data_look: DataLook
    delta_w: DeltaW
    laboratory: Laboratory
    try_it: TryIt
    keep: Keep
    sweep_panel: SweepPanel
    history: History

    def __init__(
        self,
        model: str | Path | LoadedModel | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        task: Task | Data | None = None,
        config: Configs | None = None,
        output_dir: str | Path = "runs",
        **settings: Any,
    ) -> None:
        TrainingConfig.from_dict(settings)  # refuses what cannot be
        self._settings, why = first_training(settings)
        if why:
            warn(why)
        self._output_dir, self._config = Path(output_dir), config
        self.panels: dict[str, Panel] = {}
        self._pairs: dict[str, ipywidgets.VBox] = {}
        self.errors: dict[str, PanelError] = {}  # under the panels that could not be updated
        self.chooser = Chooser(_Bench(self), self._output_dir / "uploads")
        self._top = ipywidgets.VBox([self.chooser])
        self.box = ipywidgets.VBox([self._top])
        for widget in (self._top, self.box):
            widget.add_class("ll-panel")
        self.box.add_class("ll-workbench")
        if model is None and tokenizer is None and task is None and config is None:
            with CellLine() as line:
                line.tell("importing transformers")
                self.chooser.show(True)
        else:
            self.open(model, tokenizer, task=task, config=config)

    def open(
        self,
        model: str | Path | LoadedModel | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        task: Task | Data | None = None,
        config: Configs | None = None,
    ) -> None:
        """Show another model, or other data, in the place of what is on show; see the class.

        What is left out stays as it is on show. The runs that were made stay on disk.

        Raises:
            RunError: something trains.
            ModelError, TaskError, ConfigError: as the class; what is on show stays.
        """
        shown = self._on_show
        with CellLine("interrupt the kernel (■) to cancel") as line:
            try:
                if shown is not None:
                    self._needs_rest("open another model")
                plan = planned(shown, self._settings, (model, tokenizer), task, config, line.tell)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("cancelled: nothing was opened") from None
            self._open_in_place(plan)

    def _open_in_place(self, plan: PlanModel) -> None:
        """Make the panels of a plan, and put them in the place of those on show."""
        session = Session(plan, self._output_dir)
        session.choose = lambda: self.chooser.show(not self.chooser.shown)
        panels = {name: make(session) for name, make in PANELS.items()}
        # Made now, to be put in place when needed: marimo knows no widget that is made while a
        # message is answered.
        pairs = {name: _with_error(panel) for name, panel in panels.items()}
        before = [*self._pairs.values(), *self.box.children[1:]]
        before += [self.session.plotly] if self._on_show else []
        self.plan, self.session, self.lm, self.anatomy = plan, session, plan.lm, plan.anatomy
        self.panels, self._pairs, self.errors = panels, pairs, {}
        vars(self).update(panels)
        self.panel.beat = self._beat
        header, *others = panels.values()
        self._top.children = [header, self.chooser]
        self.box.children = [self._top, *self._layout(others)]
        _close(before)

    def _needs_rest(self, what: str) -> None:
        self.session.needs_rest(what)
        self.keep.needs_rest(what)

    @property
    def _on_show(self) -> PlanModel | None:
        return vars(self).get("plan")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in (*PANELS, "plan", "session", "lm", "anatomy"):
                why = "nothing is open yet; choose a model in it, or call wb.open(…)"
                raise ConfigError(f"wb.{name}: {why}")
            raise AttributeError(f"a Workbench has no attribute {name!r}")

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
    def budget(self) -> Budget | None:
        """What the plan on show will cost, for the batch that the page says; None without a plan.

        >>> print(wb.budget)
        """
        return self.plan.planned.budget

    @property
    def code(self) -> str:
        """What "copy as Python" copies; where the settings make no plan, why not."""
        return self.plan.planned.code or self.plan.planned.line

    @property
    def task(self) -> Task:
        """The task that the run panel has picked."""
        return self.plan.task

    @property
    def run(self) -> Run | None:
        """The latest run, None before the first."""
        return self.session.run if self._on_show else None

    def start(self) -> Run:
        """Train what is on show; the same as the Start button. Returns the run."""
        self.session.start(self.plan.typed())
        assert self.run is not None
        return self.run

    @property
    def sweep(self) -> Sweep | None:
        """The sweep on show."""
        return self.sweep_panel.sweep if self._on_show else None

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
        if self._on_show is None:
            return "<Workbench: nothing is open yet>"
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
        if self._on_show is None:
            return "<p><b>LoRA Lab</b> · run the cell to choose a model and data</p>"
        run = f"<p>{html.escape(repr(self.run))}</p>" if self.run else ""
        title = f"<p><b>LoRA Lab</b> · {html.escape(self.lm.card.name)}</p>"
        plan = html.escape(self._summary())
        grid = f"<p>{plan}</p>" if self.grid.inert else self.grid.fallback_html()
        return redacted(title + grid + self.savings.fallback_html() + run)

    # How the panels hang together ----------------------------------------------------------------

    def _layout(self, panels: Sequence[Panel]) -> list[Panel]:
        """Return what stands below the header: savings, what belongs on one screen, the others."""
        savings, grid, panel, delta_w, *others = panels
        columns = ipywidgets.Box([grid, panel, delta_w])
        columns.add_class("ll-columns")
        columns.add_class("ll-panel")
        if len(self.anatomy.rows) <= FEW:
            columns.add_class("ll-few")
        return [savings, columns, *others]

    def _display_(self) -> MarimoPage:
        self.chooser.here = False
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
            boxes = (self.box, self._top, self.box.children[2])
            box = next(box for box in boxes if panel in box.children)
            box.children = [both if each is panel else each for each in box.children]
            self.errors[name] = error
        return self.errors[name]


def _with_error(panel: Panel) -> ipywidgets.VBox:
    both = ipywidgets.VBox([panel, PanelError()])
    both.add_class("ll-panel")
    return both


def _close(widgets: Iterable[Any]) -> None:
    """Close widgets with all that is in them: the kernel's list of widgets would keep them."""
    for widget in widgets:
        _close(getattr(widget, "children", ()))
        widget.close()


class _Bench:
    """What the chooser may do with its workbench."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    def on_show(self) -> PlanModel | None:
        return self._workbench._on_show

    def asked(self) -> tuple[Configs | None, Mapping[str, Any]]:
        plan = self.on_show()
        if plan is None:
            return self._workbench._config, self._workbench._settings
        return plan.planned.config, plan.training()

    def needs_rest(self) -> None:
        if self.on_show() is not None:
            self._workbench._needs_rest("open another model or other data")

    def take(self, opened: Opened) -> None:
        if opened.plan is not None:
            self._workbench._open_in_place(opened.plan)
            return
        plan = self._workbench.plan
        plan.add_task(opened.task)
        plan.merge({"task": opened.task.name})
