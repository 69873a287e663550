"""The workbench: the panels put together, on one model, one plan and one run at a time."""

from __future__ import annotations

import contextlib
import html
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from lora_lab.anatomy.api import anatomy
from lora_lab.budget.forecast import budget
from lora_lab.checkpoint.saving import save_adapter
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.base import Adapter
from lora_lab.models.load import LoadedModel
from lora_lab.runs.snapshot import Snapshot
from lora_lab.sweeps.local import Sweep
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.load import load_task
from lora_lab.training.config import TrainingConfig
from lora_lab.training.run import Run, train
from lora_lab_widgets._answers import answers
from lora_lab_widgets._dry_runs import DryRuns
from lora_lab_widgets._live_ranks import LiveRanks
from lora_lab_widgets._plan_on_show import PlanOnShow
from lora_lab_widgets._plans import Plans
from lora_lab_widgets._prices import REPRICED, Prices
from lora_lab_widgets._recipes import written
from lora_lab_widgets._resuming import chosen_configs, idle_again, write_report
from lora_lab_widgets._sweeps import Sweeps
from lora_lab_widgets.defaults import example_prompt, first_config, loaded, task_choice
from lora_lab_widgets.delta_w import NOTHING_YET, DeltaW
from lora_lab_widgets.header import Header
from lora_lab_widgets.history import History
from lora_lab_widgets.laboratory import Laboratory
from lora_lab_widgets.live_adapter import ADAPTER, LiveAdapter, over, resting
from lora_lab_widgets.rank_grid import RankGrid
from lora_lab_widgets.run_panel import TRAINING, RunPanel
from lora_lab_widgets.savings import Savings
from lora_lab_widgets.try_it import TryIt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Configs = MethodConfig | Sequence[MethodConfig]


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
        task: the name of an embedded task, or what `load_task` returned.
        config: of any method, or a list of them, to show first; by default LoRA on the paper's q
            and v at r=8.
        output_dir: where the runs' folders go.
        **settings: fields of `TrainingConfig`. Those that the run panel shows (max_steps,
            learning_rate, seed …) are its first values; the others hold for every run.

    Raises:
        ModelError, TaskError, ConfigError: as `load_model`, `load_task` and the configs do.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel | PreTrainedModel = "smollm2-135m",
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        task: str | Task = "mini-e2e",
        config: Configs | None = None,
        output_dir: str | Path = "runs",
        **settings: Any,
    ) -> None:
        given = load_task(task) if isinstance(task, str) else task
        self.lm = loaded(model, tokenizer, given)
        self.run: Run | None = None
        self._output_dir = Path(output_dir)
        self._tasks: dict[str, Task] = {given.name: given}
        self._shown_adapter: Adapter | None = None
        self.anatomy = anatomy(self.lm.model)
        self._plans = Plans(self.anatomy)
        # What LoRA shows first stays painted under a method that has no ranks.
        chosen, painted = self._plans.take((first_config(self.anatomy),))
        if config is not None:
            first = _listed(config)
            budget(self.anatomy, first, sequence_length=1)  # refuses what the model cannot use
            values, ranks = self._plans.take(first)
            chosen, painted = {**chosen, **values}, painted if ranks is None else ranks

        TrainingConfig.from_dict(settings)  # refuses what does not exist or cannot work
        shown = {name: value for name, value in settings.items() if name in TRAINING}
        self._unshown = {name: value for name, value in settings.items() if name not in shown}

        bench = uuid.uuid4().hex  # a page may show the notebooks of several kernels
        self.grid = RankGrid.from_anatomy(self.anatomy, painted, bench=bench)
        self.savings = Savings(bench=bench)
        self._prices = Prices(self.lm, self.anatomy, self._plans, self.savings, lambda: self.task)
        self.panel = RunPanel(
            read=lambda: self.run.snapshot if self.run else None,
            on_command=self._command,
            settings={**chosen, **shown},
            tasks=task_choice(given),
            paint=self._paint,
            bench=bench,
        )
        self.header = Header()
        self._plan = PlanOnShow(
            self.lm.card,
            self.anatomy,
            self._plans,
            self._prices,
            panel=self.panel,
            grid=self.grid,
            savings=self.savings,
            header=self.header,
            device=lambda: self.lm.model.device,
            synthetic=lambda name: name in self._tasks and self._tasks[name].synthetic,
        )
        self._live_ranks = LiveRanks(self.grid)
        self._sweeps = Sweeps(
            self.lm,
            self.anatomy,
            self._plans,
            self._output_dir,
            settings=lambda: self.panel.settings,
            training=self._training,
            painted=lambda: self.grid.ranks,
            task=lambda: self.task,
            run=lambda: self.run,
            needs_rest=self._needs_rest,
            paint=self._paint,
            bench=bench,
        )
        self.sweep_panel = self._sweeps.panel
        live_adapter = LiveAdapter(
            self.lm, lambda: self.run, lambda: self.task, sweep=lambda: self._sweeps.own
        )
        self._live_adapter = live_adapter
        self._dry_runs = DryRuns(self.savings, self._plan.dry_run)
        self.delta_w = DeltaW(self.anatomy, live_adapter.factors, live_adapter.base_weight)
        self.laboratory = Laboratory(live_adapter, self.anatomy, self._output_dir)
        self.history = History(
            self._output_dir,
            run=lambda: self.run,
            resume=lambda record: idle_again(record, self.lm, self._tasks.values()),
            begin=self._go_on_with,
            report=lambda record: write_report(record, self.run, self.anatomy),
        )
        self.try_it = TryIt(
            self._answer, prompt=example_prompt(given), writes=family_of(given, self.lm).writes
        )
        self.box = self._layout()

        self.grid.observe(lambda _: self._replan(), "ranks")
        self.grid.observe(lambda change: self._look_at(change["new"]), "selected")
        self.delta_w.observe(lambda change: self._watch(change["new"]), "selected")
        self.panel.observe(self._settings_changed, "settings")
        self.panel.on_tick(self._tick)
        self._prices.update(self.panel.settings)
        self._replan()
        self._show_adapter()

    # What people use from Python -----------------------------------------------------------------

    @property
    def config(self) -> MethodConfig | tuple[MethodConfig, ...]:
        """The config that the workbench shows, or the configs of a combination.

        Setting it chooses the method, and repaints the grid where the method has ranks.

        Raises:
            ConfigError: nothing is painted, a setting cannot be, or a new config does not fit the
                model.
        """
        configs = self._plan.configs()
        return configs[0] if len(configs) == 1 else configs

    @config.setter
    def config(self, config: Configs) -> None:
        self._needs_rest("change the plan")
        configs = _listed(config)
        budget(self.anatomy, configs)
        values, painted = self._plans.take(configs)
        self._live_ranks.clear()
        self._plan.put(values, painted)
        self._prices.update(self.panel.settings)
        self._replan()

    @property
    def task(self) -> Task:
        """The task that the run panel has picked."""
        return self._task(self.panel.settings["task"])

    def start(self) -> Run:
        """Train what is on show; the same as the Start button. Returns the run."""
        self._start(self.panel.settings)
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
        """Save the trained adapter, in PEFT's format where it has one; see `save_adapter`."""
        with self._live_adapter.at_rest():
            return save_adapter(self.lm.model, folder, ADAPTER)

    def __repr__(self) -> str:
        run = f", {self.run!r}" if self.run else ""
        return f"<Workbench {self.lm.card.name}: {self._plan.summary()}{run}>"

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
        plan = html.escape(self._plan.summary())
        grid = f"<p>{plan}</p>" if self.grid.inert else self.grid.fallback_html()
        return title + grid + self.savings.fallback_html() + run

    # How the panels hang together ----------------------------------------------------------------

    def _layout(self) -> ipywidgets.VBox:
        upper = ipywidgets.Box([self.grid, ipywidgets.VBox([self.savings, self.panel])])
        upper.add_class("ll-columns")
        views = [self.delta_w, self.laboratory, self.try_it, self.sweep_panel, self.history]
        box = ipywidgets.VBox([self.header, upper, *views])
        for widget in (box, upper, upper.children[1]):
            widget.add_class("ll-panel")
        box.add_class("ll-workbench")
        return box

    def _tick(self, snapshot: Snapshot | None, theme: str, width: int) -> None:
        """One heartbeat: hand the snapshot to every view."""
        if self._follow_sweep() and self.run:
            snapshot = self.run.snapshot
        sweeping = self._sweeps.own is not None
        busy = sweeping or (snapshot is not None and not resting(snapshot.state))
        if self.grid.locked != busy:
            self.grid.locked = busy
        # Adam's moments come with the first step, and count from the second on.
        settled = snapshot is not None and snapshot.step >= 2
        self.savings.measure(snapshot.memory if snapshot else None, settled=settled)
        self._live_ranks.update(snapshot, self.run)
        self.header.update(self.lm.model.device)
        self._dry_runs.update(quiet=not busy)
        self.delta_w.update(snapshot, theme, width)
        self.laboratory.update(snapshot, theme, width)
        self.try_it.update()
        self.sweep_panel.update()
        self.history.update(snapshot)
        if self._live_adapter.attached is not self._shown_adapter:  # a queued run has begun
            self._show_adapter()

    def _paint(self, ranks: dict[str, int]) -> None:
        """Take the ranks that the page shows; the grid's own message may still be on its way."""
        if ranks != self.grid.ranks:
            self.grid.ranks = ranks

    def _command(self, name: str, settings: dict[str, Any]) -> None:
        if name == "start":
            self._start(settings)
        elif name == "recipe":
            self.panel.recipe = written(
                self.lm,
                self._task(settings["task"]),
                self._plan.configs(),
                self._training(settings),
                self._output_dir,
            )
        elif name == "stop" and (sweep := self._sweeps.own):
            sweep.stop()  # between two cells there is no run to stop
        elif self.run is None:
            raise RunError(f"there is no run to {name}; press Start first")
        else:
            {
                "pause": self.run.pause,
                "resume": self.run.resume,
                "stop": self.run.stop,
                "take": self._take_proposal,
            }[name]()

    def _training(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: settings[name] for name in TRAINING} | self._unshown

    def _start(self, settings: dict[str, Any]) -> None:
        self._needs_rest("start another run")
        training = self._training(settings)
        config, task = self.config, self._task(settings["task"])
        run = train(self.lm, task, config, output_dir=self._output_dir, start=False, **training)
        self._begin(run)

    def _follow_sweep(self) -> bool:
        """Have the run of the cell that trains on show, as any run; return whether it is new."""
        sweep = self._sweeps.own
        run = sweep.snapshot.run if sweep else None
        if run is None or run is self.run:
            return False
        self.run = run
        self._live_ranks.clear()
        self.savings.note_other(f"cell {run.id}")
        return True

    def _take_proposal(self) -> None:
        """Take the settings that would have fitted into memory."""
        problem = self.run.snapshot.failure if self.run else None
        if problem is None or not problem.proposal:
            raise RunError("no settings are proposed; change them by hand")
        self._set_training(problem.proposal)

    def _set_training(self, values: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in values.items() if name in TRAINING}
        self._unshown |= {name: value for name, value in values.items() if name not in shown}
        self.panel.settings = {**self.panel.settings, **shown}

    def _go_on_with(self, run: Run) -> None:
        """Go on with a run that was read from disk; what it trains comes on show."""
        self._needs_rest(f"resume run {run.id}")
        task = run.task
        self._begin(run)
        self._tasks[task.name] = task
        if task.name not in self.panel.tasks:
            self.panel.tasks = [*self.panel.tasks, task.name]
        training = run.training.to_dict()
        shown = {name: training[name] for name in TRAINING} | {"task": task.name}
        with contextlib.suppress(ConfigError):  # a method without fields here
            values, painted = self._plans.take(chosen_configs(run))
            self._plan.put({**values, **shown}, painted)
        self._prices.forget_tasks()
        self._prices.update(self.panel.settings)
        self._replan()
        self.savings.note_run()

    def _begin(self, run: Run) -> None:
        with warnings.catch_warnings():
            # That the last run's adapter goes is what Start means here.
            warnings.filterwarnings("ignore", f"adapter '{ADAPTER}' was attached already")
            self.run = run.start()
        with self.panel.in_turn():
            self.grid.locked = True  # first: nothing can be painted from now on
            self._live_ranks.clear()
            self.savings.note_run()
            self._show_adapter()

    def _replan(self) -> None:
        if self._plan.show():
            self.sweep_panel.replan()

    def _settings_changed(self, change: Any) -> None:
        old, new = change["old"], change["new"]
        changed = {name for name in new if old.get(name) != new[name]}
        if "method" in changed:
            self._live_ranks.clear()
        if changed & REPRICED:
            self._prices.update(self.panel.settings)
        if "task" in changed:
            self.try_it.writes = family_of(self.task, self.lm).writes
            if self.task.validation:
                self.try_it.prompt = example_prompt(self.task)
        self._replan()

    def _look_at(self, site: str) -> None:
        if site in self.delta_w.ranks:
            self.delta_w.selected = site

    def _watch(self, site: str) -> None:
        self.laboratory.follow(site)
        if self.run is not None and self.run.adapter and site in self.run.adapter.sites:
            self.run.watch = site

    def _show_adapter(self) -> None:
        """Point the ΔW view at the adapter that the model has now."""
        self._shown_adapter = self._live_adapter.attached
        adapter = self._live_adapter.adapter
        if adapter is not None:
            self.delta_w.show({name: site.r for name, site in adapter.sites.items()})
        else:
            self.delta_w.show({}, self._live_adapter.nothing if self.run else NOTHING_YET)
        self.laboratory.refresh()
        self._watch(self.delta_w.selected)

    # What the views ask for; called on threads of their own --------------------------------------

    def _answer(self, prompt: str, max_new_tokens: int) -> tuple[str, str | None]:
        self.try_it.say("waiting for the next step…")
        longest_text = int(self.panel.settings["max_length"])
        with self._live_adapter.at_rest():
            self.try_it.say("answering…")
            return answers(self.lm, self.task, prompt, max_new_tokens, longest_text)

    def _needs_rest(self, what: str) -> None:
        if sweep := self._sweeps.own:
            raise RunError(f"the sweep {sweep.folder.name} is training; stop it to {what}")
        if self.run is not None and not over(self.run.state):
            raise RunError(f"run {self.run.id} is {self.run.state}; stop it to {what}")

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = load_task(name)
        return self._tasks[name]


def _listed(config: Configs) -> tuple[MethodConfig, ...]:
    return tuple(config) if isinstance(config, Sequence) else (config,)
