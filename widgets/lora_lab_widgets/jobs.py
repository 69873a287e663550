"""What "Analyze ΔW" measures: one thing at a time, on a thread, the newest wish first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.background import Background
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.lab_views import CancelledError, Measured, View, Watch

LIVE_PAUSE = 2.0  # seconds between two looks while training goes on, at least
LIVE_SHARE = 0.02  # of the time that following a run may take, at most
SETTLED = 0.5  # seconds that a slider has to rest before anything is measured for it


@dataclass(frozen=True)
class _Wish:
    view: View
    wanted: tuple[Any, ...]
    live: Any  # of the snapshot at its start
    values: tuple[tuple[str, Any], ...]


class Jobs:
    """Starts what the view on show wants and keeps what came of it.

    Attributes:
        watch: of the measurement under way.
    """

    def __init__(self) -> None:
        self.watch = Watch()
        self._problems: dict[str, dict[str, Any]] = {}
        self._job: Background[Measured] = Background()
        self._doing: _Wish | None = None
        self._following = False  # whether the job only follows training
        self._known: dict[str, tuple[_Wish, Measured]] = {}
        self._refused: _Wish | None = None  # failed or cancelled: not tried again by itself
        self._void: _Wish | None = None  # of an adapter that is gone: what comes is dropped
        self._rest_until = 0.0
        self._settled_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a measurement."""
        return self._doing is not None and not self._following

    def of(self, view: View) -> Measured | None:
        """Return what was measured for a view last."""
        known = self._known.get(view.key)
        return known[1] if known else None

    def answers(self, view: View) -> bool:
        """Return whether what was measured last is what the view's controls ask for now."""
        known = self._known.get(view.key)
        return known is not None and known[0].wanted == view.wanted()

    def problem(self, view: View) -> dict[str, Any] | None:
        """Return why a view's last measurement failed, as the browser shows it."""
        return self._problems.get(view.key)

    def again(self, view: View) -> None:
        """Measure anew at the next update."""
        self._known.pop(view.key, None)
        self._refused = None

    def forget(self) -> None:
        """Drop all that was measured: there is another adapter."""
        self.stop()
        self._known.clear()
        self._problems.clear()
        self._refused = None
        self._void = self._doing

    def cancel(self) -> None:
        """End the measurement under way, and do not begin it again by itself."""
        self.stop()
        self._refused = self._doing

    def stop(self) -> None:
        """End the measurement under way; it begins again when it is wanted again."""
        self.watch.cancelled = True

    def slide(self) -> None:
        """A slider moves: measure nothing until it rests."""
        self._settled_at = time.monotonic() + SETTLED

    def update(self, view: View, snapshot: Snapshot | None) -> bool:
        """Take what has come in, start what is due; return whether there is news to draw."""
        news = self._take()
        wanted = view.wanted()
        if wanted is not None:
            self._pursue(view, _Wish(view, wanted, view.live(snapshot), tuple(view.values.items())))
        elif self._doing is not None:
            self.stop()
        return news

    def _take(self) -> bool:
        outcome, wish = self._job.take(), self._doing
        if outcome is None or wish is None:
            return False
        self._doing = None
        self._rest_until = time.monotonic() + max(LIVE_PAUSE, outcome.seconds / LIVE_SHARE)
        if wish is self._void:
            return True
        if outcome.value is not None:
            # A view that was left meanwhile keeps what came for it.
            self._known[wish.view.key] = wish, outcome.value
            wish.view.measured(outcome.value.data)
            return True
        if not isinstance(outcome.error, CancelledError):
            self._refused = wish
            error = outcome.error or RuntimeError("no answer came back")
            self._problems[wish.view.key] = from_error(error)
        return True

    def _pursue(self, view: View, wish: _Wish) -> None:
        known = self._known.get(view.key)
        fits = known is not None and known[0].wanted == wish.wanted
        complete = known is not None and fits and view.complete(known[1].data)
        moved = known is not None and wish.live is not None and wish.live != known[0].live
        if self._doing is not None:
            if (self._doing.view.key, self._doing.wanted) != (view.key, wish.wanted):
                self.watch.cancelled = True
            return
        now = time.monotonic()
        if complete and not (moved and now >= self._rest_until):
            return
        if not complete and (now < self._settled_at or self._same(wish, self._refused)):
            return
        before = known[1].data if known else None
        values, watch = dict(view.values), Watch()
        if self._job.start(lambda: view.measure(values, before, watch)):
            self.watch, self._doing, self._following = watch, wish, complete
            self._problems.pop(view.key, None)

    @staticmethod
    def _same(wish: _Wish, refused: _Wish | None) -> bool:
        if refused is None:
            return False
        return (wish.view.key, wish.values) == (refused.view.key, refused.values)
