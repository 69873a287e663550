"""What the views see of ΔW while it grows, at a price of at most about 1 % of the time."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lora_lab.adapters import LoraAdapter
from lora_lab.analysis import adapter_spectra
from lora_lab.runs.snapshot import Factors, Spectra

_SHARE = 100  # a look that took t seconds is not repeated for 100·t
_WATCHED_SECONDS = 0.25  # nobody asks more than 4 times a second
_UNWATCHED_SECONDS = 10.0


class Observer:
    """Copies spectra and factors out of an adapter. Called on the trainer's thread only."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter
        self._spectra_at = float("-inf")
        # Seconds that the last two looks took. The lesser counts: one that started cold or met a
        # busy machine says little of the next.
        self._spectra_costs = deque([0.0], maxlen=2)
        self._factors_due = float("-inf")
        self._watched: str | None = None

    def look(self, step: int, watch: str | None, now: bool = False) -> dict[str, Any]:
        """Return the snapshot fields that are due: "spectra", "factors", or neither.

        Args:
            step: optimizer steps done.
            watch: name of the site that somebody looks at, or None.
            now: due or not, as at a pause and at the end.
        """
        changes: dict[str, Any] = {}
        clock = time.perf_counter
        start = clock()
        if now or start >= self._next_spectra(watched=watch is not None):
            changes["spectra"] = Spectra(step, adapter_spectra(self.adapter))
            self._spectra_at = clock()
            self._spectra_costs.append(self._spectra_at - start)
        start = clock()
        due = start >= self._factors_due or watch != self._watched
        if watch in self.adapter.sites and (now or due):
            changes["factors"] = copy_factors(self.adapter, watch, step)
            self._factors_due = start + max(_WATCHED_SECONDS, _SHARE * (clock() - start))
        self._watched = watch
        return changes

    def _next_spectra(self, watched: bool) -> float:
        least = _WATCHED_SECONDS if watched else _UNWATCHED_SECONDS
        return self._spectra_at + max(least, _SHARE * min(self._spectra_costs))


def copy_factors(adapter: LoraAdapter, site_name: str, step: int) -> Factors:
    """Return a copy of one site's A and B as they are now, float32."""
    site = adapter.sites[site_name]
    A = site.A.detach().float().cpu().numpy().copy()
    B = site.B.detach().float().cpu().numpy().copy()
    return Factors(step=step, site=site_name, A=A, B=B, scale=site.scale)
