"""The ranks that AdaLoRA moves while it trains, as the rank grid shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from lora_lab.training.run import Run
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.panel import Tick

PAUSE = 1.0  # seconds between two looks, at least: each is a message


class LiveRanks:
    """Tells which ranks of a run are to be shown, where they changed.

    The final ranks stay on show when the run is over, until there is another plan: they are what
    the run has found. The grid has a button that shows the painted plan meanwhile.
    """

    def __init__(self) -> None:
        self._run = ""  # whose ranks are on show
        self._cleared = ""  # the run whose ranks are not wanted any more
        self._shown: Mapping[str, int] | None = None
        self._final = False
        self._due = 0.0

    def news(self, tick: Tick) -> tuple[Mapping[str, int], str] | None:
        """Return {site: rank} and of what moment they are; None while nothing new is due."""
        run, snapshot = tick.run, tick.snapshot
        if run is None or snapshot is None or not snapshot.ranks or run.id == self._cleared:
            return None
        if run.id != self._run:
            self._run, self._shown, self._due = run.id, None, 0.0
        final, now = snapshot.state.final, time.monotonic()
        changed = snapshot.ranks != self._shown or final != self._final
        if not changed or not (final or now >= self._due):
            return None
        self._shown, self._final, self._due = snapshot.ranks, final, now + PAUSE
        return snapshot.ranks, _words(snapshot, run, final)

    def clear(self) -> None:
        """Tell no more of the run on show: the plan has changed."""
        self._cleared = self._run


def _words(snapshot: Snapshot, run: Run, final: bool) -> str:
    assert snapshot.ranks is not None
    start = next((config.init_r for config in run.configs if hasattr(config, "init_r")), None)
    budget = f"budget {sum(snapshot.ranks.values())}"
    of = "" if start is None else f" of {start * len(snapshot.ranks)}"
    moment = "final ranks" if final else "live ranks"
    return f"{moment}, step {snapshot.step}, {budget}{of}"
