"""What the panels of one workbench share: the plan, the run and the sweep, and what starts them."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import traitlets

from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.turns import turn_of
from lora_lab.redaction import redacted
from lora_lab.sweeps.comparison import Comparison
from lora_lab.sweeps.local import Sweep
from lora_lab.training.api import train
from lora_lab.training.run import Run
from lora_lab_widgets.answers import answers, asked_as
from lora_lab_widgets.background import Background
from lora_lab_widgets.decoding_fields import decoding_values, task_to_train
from lora_lab_widgets.grid_cells import first_of
from lora_lab_widgets.live_adapter import ADAPTER, LiveAdapter, over, resting
from lora_lab_widgets.message_throttle import MessageThrottle
from lora_lab_widgets.methods import max_length_of
from lora_lab_widgets.panel import Theme, Tick
from lora_lab_widgets.plan import PlanModel
from lora_lab_widgets.plot import PlotlyScript
from lora_lab_widgets.resume import chosen_configs, resumed_run, write_report
from lora_lab_widgets.run_files import write_run_file
from lora_lab_widgets.training_fields import training_values

if TYPE_CHECKING:
    from lora_lab.analysis.choices import Choices
    from lora_lab.methods.config import MethodConfig
    from lora_lab.runs.records import RunRecord
    from lora_lab.sweeps.asha import AshaConfig
    from lora_lab.sweeps.cells import Cell
    from lora_lab.sweeps.design import Design
    from lora_lab.tasks.base import Task
    from lora_lab.training.snapshot import Snapshot
    from lora_lab_widgets.kept import Kept

_ASKED = "the model is being asked"
Started = TypeVar("Started", Sweep, Comparison)


class Session(traitlets.HasTraits):
    """The context that every panel is built from. Panels know it, and not each other.

    Args:
        plan: what is planned.
        output_dir: where the runs' folders go.

    Attributes:
        run: the latest run, None before the first, and while an adapter is `used`; observe it.
        used: the adapter from disk that was put on the model in the place of the latest run's.
        sweep: the one on show, None before the first.
        site: the adapted site that is looked at, "" for none; set it with `look_at`.
        lm, anatomy: the model, and its anatomy.
        choose: shows the pickers of model and data, or puts them away.
        keep: shows what can be done with a run's adapter; None: with the latest one's.
        evaluate: scores what the latest run, which was stopped, has learned.
        at_work: what is done with the bench's model that no run may begin beside; "" at rest.
        live_adapter: what may be read of the model's adapter, whether or not it trains.
        throttle: of the heartbeat's messages.
        bench: names this workbench on a page that shows several.
        plotly: plotly.js, which its figures share.
        scorer: scores comparisons that have been trained, on the model.
    """

    run = traitlets.Any()
    sweep = traitlets.Any()
    site = traitlets.Unicode()

    def __init__(self, plan: PlanModel, output_dir: Path) -> None:
        super().__init__()
        self.plan = plan
        self.lm, self.anatomy = plan.lm, plan.anatomy
        self.output_dir = output_dir
        self.choose: Callable[[], None] = lambda: None
        self.keep: Callable[[RunRecord | None], None] = lambda _: None
        self.evaluate: Callable[[], None] = lambda: None
        self.at_work: Callable[[], str] = lambda: ""
        self.live_adapter = LiveAdapter(self)
        self.throttle = MessageThrottle()
        self.bench = uuid.uuid4().hex
        self.plotly = PlotlyScript()
        self.scorer: Background[Choices] = Background()
        self.used: Kept | None = None
        self.observe(lambda _: self.watch(), "site")

    def __repr__(self) -> str:
        return redacted(f"<Session of {self.lm.card.name}, runs in {self.output_dir}>")

    @property
    def scoring(self) -> bool:
        """Whether a comparison is being scored on the model, whoever looks on."""
        return self.scorer.works

    @property
    def training_sweep(self) -> Sweep | None:
        """The sweep that trains this model now."""
        sweep: Sweep | None = self.sweep
        own = sweep is not None and sweep.lm.model is self.lm.model and sweep.snapshot.going
        return sweep if own else None

    def tick(self, snapshot: Snapshot | None, theme: Theme, width: int) -> Tick:
        """Return what a heartbeat tells the panels; a sweep's new cell becomes the run on show."""
        sweep = self.training_sweep
        cell = sweep.snapshot.run if sweep else None
        if cell is not None and cell is not self.run:
            self.used, self.run, snapshot = None, cell, cell.snapshot
        state = None if snapshot is None else snapshot.state
        return Tick(
            snapshot,
            self.run,
            theme,
            width,
            busy=sweep is not None or (state is not None and not resting(state)),
            open=sweep is not None or (state is not None and not over(state)),
            settled=snapshot is not None and snapshot.step >= 2,
        )

    def needs_rest(self, what: str) -> None:
        """Refuse what cannot be done while something trains, or has the model for itself.

        Raises:
            RunError: it does.
        """
        if self.scoring:
            raise RunError(f"a comparison is being scored on the model; {what} when it is over")
        if at_work := self.at_work():
            raise RunError(f"{at_work}; {what} when that is over")
        if sweep := self.training_sweep:
            raise RunError(f"the sweep {sweep.folder.name} is training; stop it to {what}")
        if self.run is not None and not over(self.run.state):
            raise RunError(f"run {self.run.id} is {self.run.state}; stop it to {what}")

    def needs_model(self, what: str) -> None:
        """Refuse a run that would wait for the model, and the page with it: somebody has it now.

        Raises:
            RunError: somebody has it, or something trains.
        """
        self.needs_rest(what)
        if used := turn_of(self.lm.model).what:
            raise RunError(f"{used}; {what} when that is over")

    # Runs and sweeps -----------------------------------------------------------------------------

    def start(self, settings: Mapping[str, Any]) -> None:
        """Train what is planned, with these values of the settings."""
        self.needs_rest("start another run")
        plan, folder = self.plan, self.output_dir
        config, task = plan.config, task_to_train(plan, settings)
        training = plan.training(settings)
        self.begin(train(self.lm, task, config, output_dir=folder, start=False, **training))

    def command(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Do what a button of the run panel asks; return the run file that was written, if any."""
        if name == "start":
            self.needs_model("start another run")
            self.start(settings)
        elif name == "run_file":
            return write_run_file(self.plan, settings, self.output_dir)
        elif name == "stop" and (sweep := self.training_sweep):
            sweep.stop()  # between two cells there is no run to stop
        elif self.run is None:
            raise RunError(f"there is no run to {name}; press Start first")
        elif name == "take":
            self._take_proposal()
        elif name == "keep":
            self.keep(None)
        elif name == "evaluate":
            self.keep(None)
            self.evaluate()
        else:
            {"pause": self.run.pause, "resume": self.run.resume, "stop": self.run.stop}[name]()
        return None

    def resume(self, record: RunRecord) -> Run:
        """Return the run that goes on with one on disk, idle; takes a while."""
        return resumed_run(record, self.lm, self.plan.tasks.values())

    def go_on(self, run: Run) -> None:
        """Go on with a run that was read from disk; what it trains becomes the plan."""
        self.needs_model(f"resume run {run.id}")
        shown = {**training_values(run.training), **decoding_values(), "task": run.task.name}

        def show() -> None:
            with self.plan.hold_trait_notifications():
                self.plan.add_task(run.task)
                with contextlib.suppress(ConfigError):  # a method without fields here
                    self.plan.take(chosen_configs(run), **shown)

        self.begin(run, show)

    def show_used(self, kept: Kept, config: MethodConfig, task: Task | None) -> None:
        """Show an adapter that was put on the model: what it has becomes the plan.

        Args:
            kept: the adapter.
            config: its method's, as a person chose it.
            task: the data that it learned, where they are known.
        """
        with self.throttle.turn(), self.plan.hold_trait_notifications():
            self.used, self.run = kept, None
            if task is not None:
                self.plan.add_task(task)
                self.plan.merge({"task": task.name})
            with contextlib.suppress(ConfigError):  # a method without fields here
                self.plan.take(config)

    def report(self, record: RunRecord) -> Path:
        """Write a run's report; return its path."""
        return write_report(record, self.run)

    def start_sweep(self, cells: Sequence[Cell], name: str, asha: AshaConfig | None) -> Sweep:
        """Start the sweep of these cells in a folder of this name."""
        self.needs_rest("start a sweep")
        folder = self.output_dir.expanduser().resolve() / name
        return _started(Sweep(self.lm, task_to_train(self.plan), cells, folder, asha))

    def start_comparison(self, design: Design, name: str) -> Comparison:
        """Start the comparison of this design in a folder of this name."""
        self.needs_rest("start a comparison")
        folder = self.output_dir.expanduser().resolve()
        return _started(Comparison.of(self.lm, task_to_train(self.plan), design, folder, name))

    def begin(self, run: Run, show: Callable[[], None] | None = None) -> None:
        """Start a run; what is shown of it is changed first, and goes to the browser together."""
        with warnings.catch_warnings():
            # That the last run's adapter goes is what Start means here.
            warnings.filterwarnings("ignore", f"adapter '{ADAPTER}' was attached already")
            started = run.start()
        with self.throttle.turn():
            try:
                if show is not None:
                    show()
            finally:
                self.used, self.run = None, started

    def _take_proposal(self) -> None:
        """Take the settings that would have fitted into memory."""
        problem = self.run.snapshot.failure
        if problem is None or not problem.proposal:
            raise RunError("no settings are proposed; change them by hand")
        self.plan.take_training(problem.proposal)

    # Looking -------------------------------------------------------------------------------------

    @traitlets.validate("site")
    def _one_site(self, proposal: Any) -> str:
        """A cell of routed experts stands for the first of them."""
        return first_of(self.anatomy, proposal["value"])

    def look_at(self, site: str) -> None:
        """Look at a site, if it has an adapter."""
        adapter, site = self.live_adapter.adapter, first_of(self.anatomy, site)
        if adapter is not None and site in adapter.sites:
            self.site = site

    def watch(self) -> None:
        """Have the run hand out the factors of the site that is looked at."""
        adapter = self.run.adapter if self.run is not None else None
        if adapter is not None and self.site in adapter.sites:
            self.run.watch = self.site

    @property
    def asked_task(self) -> Task:
        """The task whose framing a typed prompt gets."""
        adapter = self.live_adapter
        return asked_as(adapter.task(), self.lm, adapter.latest is not None)

    def answer(
        self, prompt: str, max_new_tokens: int, say: Callable[[str], None] = lambda _: None
    ) -> tuple[str, str | None]:
        """Return the base model's answer and the adapted one's; on a thread.

        Args:
            prompt: what was typed.
            max_new_tokens: of each answer.
            say: told what goes on.
        """
        longest_text = max_length_of(self.plan.settings)
        say("waiting for the next step…")
        with self.live_adapter.alone(_ASKED), self.live_adapter.in_force() as name:
            say("answering…")
            return answers(self.lm, self.asked_task, prompt, max_new_tokens, longest_text, name)


def _started(made: Started) -> Started:
    with warnings.catch_warnings():
        # That the last run's adapter goes is what Start means here.
        warnings.filterwarnings("ignore", f"the sweep takes the adapter '{ADAPTER}' off")
        made.start()
    return made
