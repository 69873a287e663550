"""Many runs in a row: what to vary, how far it is, how the cells stand; closed until opened."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import traitlets

from lora_lab._util.format import plural
from lora_lab.analysis.choices import Choices
from lora_lab.budget.forecast import budget
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.runs.records import find_run
from lora_lab.sweeps.cells import Cell, skipped_fields
from lora_lab.sweeps.comparison import Comparison
from lora_lab.sweeps.local import Sweep, SweepSnapshot
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.methods import entries, entry_of
from lora_lab_widgets.panel import MessagePanel, Tick
from lora_lab_widgets.run_files import write_compare_file, write_sweep_file
from lora_lab_widgets.sweep_plan import (
    AXES,
    FieldError,
    SweepTexts,
    cells_of,
    check_stop,
    compared_cells,
    design_of,
    example_layers,
    own_rates,
    read_texts,
)
from lora_lab_widgets.sweep_view import minutes, progress, rows, shown_choices

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab_widgets.session import Session

FIELDS = (*AXES, "stop_at", "name", "compare")
PAUSE = 2.0  # seconds between two messages that bring nothing but another step
_MOST_TYPED = 300  # characters of a field
_UNPLANNED = {"line": "", "bad": False, "field": "", "cells": 0}


class SweepPanel(MessagePanel):
    """A sweep from the workbench, or one that a cell of the notebook has started.

    What was read of the sweep reaches the browser with the next `update`, which the heartbeat
    makes; the sweep's own threads never come near a widget.

    Args:
        session: has the plan that is varied, and starts sweeps.

    Attributes:
        form: {"open": bool, "values": {field of `FIELDS`: text}}.
        plan: {"line": how many cells and how long, or why not; "bad", "field", "cells"}.
        progress: of the sweep on show, {} where none is; see `sweep_view.progress`.
        rows: its cells as they stand; see `sweep_view.rows`.
        run_file: {"path", "commands"} of the sweep file that was written.
        found: {"header", "rows", "words", "notes"} of a comparison that is over, {} otherwise.
        layers: an example of what its field takes, of this model.
    """

    module = "sweep_panel"

    form = traitlets.Dict().tag(sync=True)
    plan = traitlets.Dict().tag(sync=True)
    progress = traitlets.Dict().tag(sync=True)
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    run_file = traitlets.Dict().tag(sync=True)
    found = traitlets.Dict().tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)
    layers = traitlets.Unicode().tag(sync=True)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._drawn: SweepSnapshot | None = None
        self._due = 0.0
        self._stale = False  # the plan has to be made again
        self._comparison: Comparison | None = None  # that the sweep on show is part of
        self._job = session.scorer
        values = {**dict.fromkeys(FIELDS, ""), "name": "sweep"}
        form = {"open": False, "values": values}
        layers = example_layers(session.anatomy)
        super().__init__(form=form, plan=_UNPLANNED, bench=session.bench, layers=layers)
        session.plan.observe(self._replan, "planned")

    def summary(self) -> str:
        """Return how the sweep on show stands."""
        return repr(self.sweep) if self.sweep else "no sweep"

    @property
    def sweep(self) -> Sweep | None:
        """The sweep on show."""
        return cast("Sweep | None", self._session.sweep)

    @property
    def going(self) -> bool:
        """Whether the sweep on show trains."""
        return self.sweep is not None and self.sweep.snapshot.going

    def show(self, sweep: Sweep) -> None:
        """Show a sweep, wherever it was started; the panel opens.

        Raises:
            ConfigError: it is none.
            RunError: the one that is on show still trains.
        """
        if not hasattr(sweep, "snapshot"):
            raise ConfigError(
                f"a {type(sweep).__name__} is no sweep; of a comparison pass one of its .sweeps"
            )
        with self._lock, self.hold_sync():  # one message
            if self.going and sweep is not self.sweep:
                raise RunError("the sweep on show is still training; stop it to show another one")
            self._session.sweep, self._drawn, self._comparison = sweep, None, None
            self.found = {}
            self.form, self._stale = {**self.form, "open": True}, True
            self._show_news()

    def update(self, tick: Tick) -> None:
        """Show what is new of the sweep; quick, and nothing is sent where nothing is."""
        del tick
        with self._lock:
            self._show_news()

    def read(self, texts: Mapping[str, str]) -> tuple[SweepTexts, tuple[Cell, ...]]:
        """Return what was typed, and the cells that it makes of the plan.

        Raises:
            ConfigError, FieldError: a text that cannot be, or a cell that the model cannot use.
        """
        plan = self._session.plan
        typed = read_texts(texts, plan.anatomy, list(entries()))
        cells = compared_cells(typed, plan) if typed.compare else cells_of(typed, plan)
        check_stop(typed, cells)
        for configs in {repr(cell.configs): cell.configs for cell in cells}.values():
            _check(plan.anatomy, as_config(configs), plan.settings["method"])
        return typed, cells

    def _show_news(self) -> None:
        self._score()
        if self.form["open"]:
            if self.sweep is not None:
                self._draw(self.sweep)
            if self._stale:
                self._stale = False
                self.plan = self._planned()

    def _score(self) -> None:
        """Score a comparison whose cells have ended, on a thread, and show what came of it."""
        made = self._comparison
        if (outcome := self._job.take()) is not None:
            self._comparison = None
            if made is None:
                return  # another sweep is on show by now
            if outcome.value is not None:
                self.found = shown_choices(outcome.value)
            elif outcome.error is not None:
                self.set_trait("problem", from_error(outcome.error))
        elif made is not None and self.sweep is not None and not self._job.busy:
            state = self.sweep.snapshot.state
            if state == "done":
                self._job.start(lambda: self._choices(made))
            elif state in ("stopped", "failed"):
                self._comparison = None

    def _choices(self, made: Comparison) -> Choices:
        with self._session.live_adapter.alone("a comparison is being scored"):
            return made.choices()

    def _replan(self, _change: object) -> None:
        self._stale = True  # the cells are counted again at the next `update`

    def _draw(self, sweep: Sweep) -> None:
        seen, now = sweep.snapshot, time.monotonic()
        if seen is not self._drawn:
            before, self._drawn = self._drawn, seen
            self.rows = rows(sweep, seen)
            if before is None or _part(before) != _part(seen):
                self._due = 0.0
            if before is None or not seen.going:
                self._due, self._stale = 0.0, True  # the latest run says how long steps take
        if now >= self._due:
            self._due = now + PAUSE
            self.progress = progress(sweep, seen)

    # What the browser asks -----------------------------------------------------------------------

    def _handle(self, content: Mapping[str, Any]) -> None:
        kind = content.get("type")
        self.set_trait("problem", None)
        if kind == "open":
            self.form = {**self.form, "open": bool(content.get("value"))}
            self._drawn, self._stale = None, True
        elif kind == "set":
            self._take(content.get("values"))
            self._stale = True
        elif kind == "start":
            self._take_shown(content)
            self._start()
        elif kind == "write":
            self._take_shown(content)
            texts, cells = self._cells()
            self.run_file = {}  # so that a file of the same name is told again
            session = self._session
            write = write_compare_file if texts.compare else write_sweep_file
            self.run_file = write(session.plan, cells, texts, session.output_dir)
        elif kind == "stop":
            if self.sweep is None:
                raise RunError("no sweep is on show; press Start first")
            self.sweep.stop()
        elif kind == "keep":
            self._keep(str(content.get("cell", "")))
        else:
            raise ConfigError(f"the sweep panel got an unknown message {kind!r}; reload the page")
        self._show_news()

    def _keep(self, id_: str) -> None:
        """Show what can be done with the adapter of a cell that has ended."""
        sweep = self.sweep
        ended = sweep.snapshot.ended.get(id_) if sweep is not None else None
        if sweep is None or ended is None or not ended.run:
            raise RunError(f"cell {id_[:80]} has left no run; wait for its end")
        self._session.keep(find_run(sweep.folder / ended.run))

    def _take_shown(self, content: Mapping[str, Any]) -> None:
        if "ranks" in content:
            self._session.plan.ranks = content["ranks"]
        self._take(content.get("values"))

    def _take(self, values: Any) -> None:
        given = values if isinstance(values, Mapping) else {}
        if unknown := given.keys() - set(FIELDS):
            raise ConfigError(f"the sweep has no field {min(map(str, unknown))[:40]!r}")
        texts = {field: str(text)[:_MOST_TYPED] for field, text in given.items()}
        self.form = {**self.form, "values": {**self.form["values"], **texts}}

    def _start(self) -> None:
        if self.going:
            raise RunError("the sweep is still training; stop it to start another one")
        self._score()  # what came of an earlier one while no page was open is its own
        texts, cells = self._cells()
        if not texts.compare:
            self.show(self._session.start_sweep(cells, texts.name, texts.asha))
            return
        session = self._session
        made = session.start_comparison(design_of(texts, session.plan), texts.name)
        self.show(next(iter(made.sweeps.values())))
        self._comparison = made

    def _cells(self) -> tuple[SweepTexts, Sequence[Cell]]:
        self.plan = self._planned()
        return self.read(self.form["values"])

    def _planned(self) -> dict[str, Any]:
        values = self.form["values"]
        if values["compare"] != "yes" and not any(values[field].strip() for field in AXES):
            return {**_UNPLANNED, "line": "fill in what to try, values parted by commas"}
        try:
            texts, cells = self.read(values)
        except (ConfigError, TaskError) as error:
            field = error.field if isinstance(error, FieldError) else ""
            return {"line": str(error)[:_MOST_TYPED], "bad": True, "field": field, "cells": 0}
        line = f"{plural(len(cells), 'cell')} × {plural(cells[0].training.max_steps, 'step')}"
        fields = [field for field in AXES if values[field].strip()]
        if not texts.compare and own_rates(fields):
            line += " · each method at its own learning rate"
        if not texts.compare and (skipped := skipped_fields(cells, fields)):
            line += f" · {skipped}"
        if texts.compare:
            methods, half = len({repr(c.configs) for c in cells}), cells[0].training.eval_examples
            line += f" · {plural(methods, 'method')}, each at its own rate by the held-out loss"
            line += f" of {half} examples, and reported on as many others"
        run = self._session.run
        if rate := run.snapshot.steps_per_second if run else None:
            seconds = sum(cell.training.max_steps for cell in cells) / rate
            line += f" · about {minutes(seconds)} of steps, as fast as the latest run"
        return {"line": line, "bad": False, "field": "", "cells": len(cells)}


def _check(anatomy: Anatomy, config: MethodConfig, chosen: str) -> None:
    """Refuse a cell that the model cannot use, and name the text to blame."""
    try:
        budget(anatomy, config, sequence_length=1)
    except ConfigError as error:
        line = entry_of(config).with_remedy(str(error), chosen)
        raise FieldError("r" if line.startswith("rank ") else "method", line) from None


def _part(seen: SweepSnapshot) -> tuple[object, ...]:
    """Return which part of a sweep this is: news of another one are shown at once."""
    return seen.cell, seen.run, seen.going
