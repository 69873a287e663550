"""What the painted plan saves against full fine-tuning: forecast, dry run and measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import traitlets

from lora_lab._util.format import format_bytes, format_change, format_count
from lora_lab.budget.costs import Budget, Memory
from lora_lab.budget.evaluate import evaluate_price
from lora_lab.budget.reading import MemoryReading, differing_part
from lora_lab_widgets.dry_runs import DryRuns
from lora_lab_widgets.panel import PanelWidget, Tick

if TYPE_CHECKING:
    from lora_lab.training.run import Run
    from lora_lab_widgets.planned import Planned
    from lora_lab_widgets.session import Session

PARTS = ("weights", "gradients", "optimizer", "activations")

Plan = Mapping[str, int] | str
"""{site: rank} of LoRA; of another method a text that no other plan has, "" where it has none."""


class Savings(PanelWidget):
    """Trainable parameters, checkpoint, and memory as stacked bars on one scale.

    The browser computes LoRA's closed form from `price` and the ranks. It hears the document's
    "lora-lab:ranks" events ({bench, ranks}) while ranks are being painted, so that the bars move
    without a message to Python. Other methods come priced, as `totals`. Where a dry run of just
    that plan is known, its bytes stand in for the closed form's, and the row says so.

    Attributes:
        price: what `lora_lab.budget.price_table` returns. A new one forgets dry runs and the plan
            of the last run: both were for other settings.
        ranks: {site name: rank}.
        totals: the price of another method's plan; {}: the plan is LoRA of `ranks`. Change it with
            `show` and `show_ranks`.
        bench: which grid's events to listen to.
        measured: {"kind", "current", "peak"} and the peak's four parts, in bytes, and "settled",
            whether whole steps have been measured; {} before a run measures.
        run_ranks, run_key: the plan that `measured` is of: LoRA's ranks, or else the text that
            stands for it; both empty when that was for other settings.
        difference: which part of the forecast the measurement contradicts, "" when none.
        dry_run: {"full": parts, "plan": parts, "ranks" and "key": the plan's}, as far as known.
        note: what goes on in the background, or why there is no dry run.
        settings_text: the subtitle; empty: made from the price's own settings.
        lengths: {"most": for which batch the price is, "drawn": which is the longest that these
            steps draw, "share": what the plan takes of its price at that one}; "drawn" is "" and
            "share" 1 where they draw the longest example, or one as long.
    """

    module = "savings"

    price = traitlets.Dict().tag(sync=True)
    ranks = traitlets.Dict().tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)
    totals = traitlets.Dict().tag(sync=True)
    measured = traitlets.Dict().tag(sync=True)
    run_ranks = traitlets.Dict().tag(sync=True)
    run_key = traitlets.Unicode().tag(sync=True)
    difference = traitlets.Unicode().tag(sync=True)
    dry_run = traitlets.Dict().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    settings_text = traitlets.Unicode().tag(sync=True)
    lengths = traitlets.Dict().tag(sync=True)

    def __init__(self, **settings: Any) -> None:
        self._other: Budget | None = None  # what `totals` shows
        self._dry_runs: DryRuns | None = None
        self._drew = ""  # what the steps of the latest plan draw; it stands while there is none
        super().__init__(**settings)

    @classmethod
    def of(cls, session: Session) -> Self:
        """Make the savings of a workbench's plan; dry runs correct them while nothing trains."""
        plan, panel = session.plan, cls(bench=session.bench)

        def begin(run: Run | None) -> None:
            if run is not None and session.training_sweep is not None:
                panel.note_other(f"cell {run.id}")
            elif run is not None:  # None: an adapter from disk is in use, and nothing trains
                panel.note_run()

        panel._dry_runs = DryRuns(panel, lambda shown: plan.dry_run(full=shown is None))
        panel._show_plan(plan.planned)
        plan.observe(lambda change: panel._show_plan(change["new"]), "planned")
        session.observe(lambda change: begin(change["new"]), "run")
        return panel

    def update(self, tick: Tick) -> None:
        """Show what the run takes, and what a dry run has found."""
        self.measure(tick.snapshot.memory if tick.snapshot else None, settled=tick.settled)
        if self._dry_runs is not None:
            self._dry_runs.update(quiet=not tick.busy)

    def _show_plan(self, planned: Planned) -> None:
        self.price, self.settings_text = planned.price.table, planned.price.text
        self.ranks = planned.ranks
        if planned.is_lora:
            self.show_ranks()
        else:
            self.show(repr(planned.config), planned.cost)
        self.lengths = self._lengths(planned)

    def _lengths(self, planned: Planned) -> dict[str, Any]:
        cost = planned.budget
        if cost is None:
            return {}
        share = cost.expected.total / cost.adapted.total if cost.expected else 1.0
        return {"most": cost.longest, "drawn": cost.expected_longest, "share": round(share, 4)}

    @property
    def plan(self) -> Plan:
        """The plan on show."""
        if self.totals:
            return str(self.totals["key"])
        return {name: r for name, r in self.ranks.items() if r}

    @property
    def budget(self) -> Budget | None:
        """The plan's budget in closed form; None before a price is set, and without a plan."""
        return self._other if self.totals else self._budget(self.ranks)

    def show(self, key: str, budget: Budget | None) -> None:
        """Show a plan of another method than LoRA.

        Args:
            key: a text that no other plan has; "" without a plan.
            budget: its price; None: this plan cannot be.
        """
        self._other = budget
        if budget is None:
            self.totals = {"key": "", "trainable": 0}
            return
        self.totals = {
            "key": key,
            "trainable": budget.parameters_trainable,
            "checkpoint": budget.checkpoint_bytes,
            "memory": {part: getattr(budget.adapted, part) for part in PARTS},
            "approximate": budget.approximate,
            "notes": list(budget.notes),
        }

    def show_ranks(self) -> None:
        """Show LoRA of `ranks`."""
        self._other, self.totals = None, {}

    def note_run(self) -> None:
        """Take note that what will be measured is of the plan on show."""
        plan = self.plan
        with self.hold_trait_notifications():
            self.run_ranks = {} if isinstance(plan, str) else dict(plan)
            self.run_key = plan if isinstance(plan, str) else ""

    def note_other(self, key: str) -> None:
        """Take note that what will be measured is of another plan than any on show."""
        with self.hold_trait_notifications():
            self.run_ranks = {}
            self.run_key = key

    def knows(self, plan: Plan) -> bool:
        """Return whether the dry run of a plan is known."""
        return "plan" in self.dry_run and _plan_of(self.dry_run) == plan

    def forecast(self, plan: Plan) -> Memory | None:
        """Return what a plan is expected to take: by its dry run, else by the closed form."""
        if self.knows(plan):
            return Memory(**self.dry_run["plan"])
        if isinstance(plan, str):
            shown = self._other if plan and plan == self.plan else None
            return shown.adapted if shown else None
        budget = self._budget(plan)
        return budget.adapted if budget and budget.parameters_trainable else None

    def measure(self, reading: MemoryReading | None, *, settled: bool) -> None:
        """Show what a run took, and which part of its forecast that contradicts.

        Args:
            reading: the run's, None without one.
            settled: whether the optimizer's state has come, so that the peak is a step's.
        """
        measured: dict[str, Any] = {}
        difference = ""
        if reading is not None:
            measured = {"kind": reading.kind, "settled": settled, **_bytes(reading)}
            most = self.forecast(self.run_key or self.run_ranks) if settled else None
            difference = _difference(self._drawn(most), reading) if most else ""
        with self.hold_trait_notifications():
            self.measured = measured
            self.difference = difference

    def _drawn(self, most: Memory) -> Memory:
        """Return the forecast of the batches that are drawn, of that of the longest possible."""
        kept = most.total - most.activations
        total = round(most.total * self.lengths.get("share", 1.0))
        return replace(most, activations=max(0, total - kept))

    def learn(self, plan: Plan | None, memory: Memory) -> None:
        """Take a dry run's memory: of full fine-tuning (`plan` None), or of a plan."""
        parts = {part: getattr(memory, part) for part in PARTS}
        if plan is None:
            self.dry_run = {**self.dry_run, "full": parts}
            return
        named = {"ranks": {}, "key": plan} if isinstance(plan, str) else {"ranks": dict(plan)}
        self.dry_run = {**self.dry_run, "plan": parts, "key": "", **named}

    def summary(self) -> str:
        """Return the plan's size and saving in a few words."""
        budget = self.budget
        if budget is None:
            return "no plan" if self.price else "no model"
        if not budget.parameters_trainable:
            return "no rank painted"
        return (
            f"{format_count(budget.parameters_trainable)} of "
            f"{format_count(budget.parameters_total)} trainable, peak memory "
            f"{format_change(budget.adapted.total, budget.full.total)}"
        )

    def fallback_html(self) -> str:
        """Return the budget's table."""
        budget = self.budget
        return super().fallback_html() if budget is None else budget._repr_html_()

    @traitlets.observe("price")
    def _repriced(self, _change: object) -> None:
        self.dry_run, self.run_ranks = {}, {}
        self.difference = self.note = self.run_key = ""

    @traitlets.observe("lengths")
    def _redrawn(self, change: Any) -> None:
        drew = change["new"].get("drawn", self._drew)
        if drew != self._drew:
            self.run_ranks, self.run_key = {}, ""  # those steps drew other examples
        self._drew = drew

    def _budget(self, ranks: Mapping[str, int]) -> Budget | None:
        if not self.price:
            return None
        # Ranks of the model before, while ranks and price are being replaced one after the other.
        known = {name: r for name, r in ranks.items() if name in self.price["sites"]}
        return evaluate_price(self.price, known)


def _plan_of(known: Mapping[str, Any]) -> Plan:
    return str(known["key"]) or dict(known["ranks"])


def _difference(expected: Memory, reading: MemoryReading) -> str:
    """Say by how much a run missed its forecast, and where; "" when it did not."""
    part = differing_part(expected, reading)
    if not part:
        return ""
    change = format_change(reading.peak, expected.total)
    line = f"measured {change} against the forecast"
    if part not in PARTS:
        return line
    measured, forecast = getattr(reading, part), getattr(expected, part)
    return (
        f"{line}; most in the {part}: {format_bytes(measured)} where "
        f"{format_bytes(forecast)} were expected"
    )


def _bytes(reading: MemoryReading) -> dict[str, int]:
    return {name: getattr(reading, name) for name in ("current", "peak", *PARTS)}
