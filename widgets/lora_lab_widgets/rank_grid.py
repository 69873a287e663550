"""The rank grid: a transformer as layer × role, and a rank to paint on every matrix."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import traitlets

from lora_lab._util.tables import Table
from lora_lab.anatomy.roles import STANDARD_ROLES
from lora_lab.errors import RunError
from lora_lab_widgets.grid_cells import checked_ranks, grid_of
from lora_lab_widgets.live_ranks import LiveRanks
from lora_lab_widgets.panel import MessagePanel, Tick

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab_widgets.plan import Planned
    from lora_lab_widgets.session import Session


class RankGrid(MessagePanel):
    """Rows are layers, columns are roles; a cell shows its rank as number and color.

    Click, drag or type to change ranks. While painting, the browser alone is at work: it tells
    the other panels of its `bench` through the document event ``lora-lab:ranks`` (detail: bench,
    ranks), and Python hears one change of `ranks` when the pointer is lifted. What is started in
    the page brings the ranks along that it shows, as that change may wait for a busy kernel.

    Args:
        needs_rest: called with what is to be done before ranks change; raises where they cannot.

    Attributes:
        rows: labels of the layers, top to bottom: "0", "1" … or "enc 0", "dec 0" …; below them
            "outside" where the model has linear layers there.
        roles: labels of the columns.
        cells: one dict a matrix: row (index), role, site (its name), shape [out, in], max_rank;
            experts: how many a cell has, where they share one tensor. The rank is each expert's.
        ranks: {site name: rank}; a site that is not named is frozen. Zeros are left out.
        rank: the brush's rank.
        selected: name of the site last clicked or focused, "" before that.
        locked: read-only, because a run trains with these ranks, or rests and goes on with them.
        inert: why nothing can be painted, as the method has no ranks; "" where it has. The grid is
            pale then, and the keyboard passes it by.
        live: {"ranks": [one a cell], "text": of what moment} of ranks that training moves; {}
            when there are none. They stand in the place of `ranks`, which are not lost.
        bytes_per_parameter: of the trained parameters, for the price shown at a cell.
        head: how many parameters of a head the task has trained beside any ranks.
        code: what "copy as Python" copies; "" hides the button. Change it with `set_code`.
        coded_ranks: the ranks that `code` was made for; copying waits until they are those shown.
        bench: name shared by the panels of one workbench.
    """

    module = "rank_grid"
    terms = STANDARD_ROLES

    rows = traitlets.List(traitlets.Unicode()).tag(sync=True)
    roles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    cells = traitlets.List(traitlets.Dict()).tag(sync=True)
    ranks = traitlets.Dict().tag(sync=True)
    rank = traitlets.Int(8, min=1).tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)
    locked = traitlets.Bool(False).tag(sync=True)
    inert = traitlets.Unicode().tag(sync=True)
    live = traitlets.Dict().tag(sync=True)
    bytes_per_parameter = traitlets.Int(4, min=1).tag(sync=True)
    head = traitlets.Int(0, min=0).tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    coded_ranks = traitlets.Dict().tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)

    def __init__(self, needs_rest: Callable[[str], None] = lambda _: None, **settings: Any) -> None:
        self._needs_rest = needs_rest
        self._live_ranks = LiveRanks()
        super().__init__(**settings)

    @classmethod
    def of(cls, session: Session) -> Self:
        """Make the grid of a workbench: its ranks are the plan's."""
        plan = session.plan
        needs_rest = session.needs_rest
        grid = cls.from_anatomy(
            session.anatomy, plan.ranks, bench=session.bench, needs_rest=needs_rest
        )
        grid._show_plan(plan.planned, plan.planned)
        grid.observe(lambda change: setattr(plan, "ranks", change["new"]), "ranks")
        grid.observe(lambda change: setattr(session, "site", change["new"]), "selected")
        plan.observe(lambda change: grid._show_plan(change["old"], change["new"]), "planned")
        session.observe(lambda change: grid._begin(change["new"] is not None), "run")
        return grid

    @classmethod
    def from_anatomy(
        cls, anatomy: Anatomy, ranks: Mapping[str, int] | None = None, **settings: Any
    ) -> Self:
        """Make the grid of a model.

        Args:
            anatomy: what `lora_lab.anatomy` returns.
            ranks: {site name: rank}.
            settings: other attributes of the panel.

        Raises:
            ConfigError: when `ranks` names no site of the model, or a rank does not fit its site.
        """
        return cls(**grid_of(anatomy), ranks=dict(ranks or {}), **settings)

    def show_anatomy(self, anatomy: Anatomy, ranks: Mapping[str, int] | None = None) -> None:
        """Show another model, in one message to the browser; its undo history starts afresh."""
        grid = grid_of(anatomy)
        checked = checked_ranks(dict(ranks or {}), grid["cells"])
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in grid.items():
                self.set_trait(name, value)
            self.selected = ""
            self.live = {}
            self.ranks = checked

    def update(self, tick: Tick) -> None:
        """Lock until what trains has ended, and show the ranks that it moves."""
        self.locked = tick.open
        if news := self._live_ranks.news(tick):
            self.show_live(*news)

    def show_painted(self) -> None:
        """Show the painted ranks again, in the place of those that training has left."""
        self._live_ranks.clear()
        self.live = {}

    def _begin(self, training: bool) -> None:
        self.locked = training  # first: nothing can be painted from now on
        self.show_painted()

    def _show_plan(self, before: Planned, planned: Planned) -> None:
        if before.settings["method"] != planned.settings["method"]:
            self.show_painted()
        self.head = sum(map(math.prod, planned.price.table.get("whole", ())))
        self.ranks = planned.ranks
        self.set_code(planned.code)
        if planned.entry is not None:
            self.inert = planned.instead

    def set_code(self, code: str) -> None:
        """Say what "copy as Python" copies for the present `ranks`."""
        # Two messages, as both are long where every matrix has a rank of its own. The code first:
        # a copy waits for the ranks.
        self.code = code
        self.coded_ranks = dict(self.ranks)

    def show_live(self, ranks: Mapping[str, int], text: str) -> None:
        """Show ranks that training moves, in the place of the painted ones.

        Args:
            ranks: {site name: rank}; what is not named has none.
            text: of what moment they are.
        """
        # By place, not by name: this goes to the browser again and again.
        self.live = {"ranks": [ranks.get(cell["site"], 0) for cell in self.cells], "text": text}

    @traitlets.validate("ranks")
    def _check_ranks(self, proposal: Any) -> dict[str, int]:
        ranks = checked_ranks(proposal["value"], self.cells)
        if ranks != self.ranks:
            self._needs_rest("change the ranks")
        return ranks

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take what a page has changed; ranks that cannot be now are set right on the page."""
        if sync_data.get("ranks", self.ranks) != self.ranks:
            try:
                self._needs_rest("change the ranks")
            except RunError:
                self.send_state("ranks")
                sync_data = {name: sync_data[name] for name in sync_data if name != "ranks"}
        super().set_state(sync_data)

    def summary(self) -> str:
        """Return how many matrices have a rank, and which ranks there are."""
        used = sorted(set(self.ranks.values()))
        ranks = f", r {' '.join(map(str, used))}" if used else ""
        return f"{len(self.ranks)} of {len(self.cells)} matrices{ranks}"

    def fallback_html(self) -> str:
        """Return the grid as a plain table of numbers."""
        at = {(cell["row"], cell["role"]): cell["site"] for cell in self.cells}

        def number(row: int, role: str) -> str:
            site = at.get((row, role))
            return "–" if site is None else str(self.ranks.get(site, ""))

        rows = (
            (label, *(number(n, role) for role in self.roles)) for n, label in enumerate(self.rows)
        )
        table = Table(("layer", *self.roles), tuple(rows), frozenset(self.roles))
        caption = f"LoRA ranks, layer × role: {html.escape(self.summary())}"
        return f"<div>{caption}</div>{table._repr_html_()}"
