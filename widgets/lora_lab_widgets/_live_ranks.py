"""The ranks that AdaLoRA moves while it trains, shown in the rank grid."""

from __future__ import annotations

import time
from collections.abc import Mapping

from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.runs.snapshot import Snapshot
from lora_lab.training.run import Run
from lora_lab_widgets.rank_grid import RankGrid

PAUSE = 1.0  # seconds between two looks, at least: each is a message


class LiveRanks:
    """Hands the ranks of a run's snapshots to the grid, where they changed.

    The final ranks stay on show when the run is over, until there is another plan: they are what
    the run has found. The grid has a button that shows the painted plan meanwhile.

    Args:
        grid: where they are shown.
    """

    def __init__(self, grid: RankGrid) -> None:
        self._grid = grid
        self._run = ""  # whose ranks are on show
        self._cleared = ""  # the run whose ranks are not wanted any more
        self._shown: Mapping[str, int] | None = None
        self._final = False
        self._due = 0.0

    def update(self, snapshot: Snapshot | None, run: Run | None) -> None:
        """Show what is new; quick, and nothing is sent when nothing is.

        Args:
            snapshot: of the run.
            run: which says with how many triplets it started.
        """
        if run is None or snapshot is None or not snapshot.ranks or run.id == self._cleared:
            return
        if run.id != self._run:
            self._run, self._shown, self._due = run.id, None, 0.0
        final, now = snapshot.state.final, time.monotonic()
        news = snapshot.ranks != self._shown or final != self._final
        if not news or not (final or now >= self._due):
            return
        self._shown, self._final, self._due = snapshot.ranks, final, now + PAUSE
        self._grid.show_live(snapshot.ranks, _words(snapshot, run, final))

    def clear(self) -> None:
        """Show the plan again: it has changed."""
        self._cleared = self._run
        if self._grid.live:
            self._grid.live = {}


def _words(snapshot: Snapshot, run: Run, final: bool) -> str:
    assert snapshot.ranks is not None
    start = next(c.init_r for c in run.configs if isinstance(c, AdaLoraConfig))
    budget, full = sum(snapshot.ranks.values()), start * len(snapshot.ranks)
    moment = "final ranks" if final else "live ranks"
    return f"{moment}, step {snapshot.step}, budget {budget} of {full}"
