"""What is seen of ΔW while it grows, in the views and later from disk, for about 1 % of the time.

One look at the spectra serves both: its price is paid, and limited, once.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

from lora_lab.analysis.live import adapter_spectra
from lora_lab.methods.adalora.adapter import AdaLoraAdapter
from lora_lab.methods.base import Adapter
from lora_lab.methods.combination import Combination
from lora_lab.spectra.update import SiteUpdate
from lora_lab.training.recorder import Recorder
from lora_lab.training.snapshot import Spectra

_SHARE = 100  # a look that took t seconds is not repeated for 100·t
_WATCHED_SECONDS = 0.25  # nobody asks more than 4 times a second
_UNWATCHED_SECONDS = 10.0


class Observer:
    """Copies spectra and factors out of an adapter. Called on the trainer's thread only."""

    def __init__(self, adapter: Adapter, recorder: Recorder) -> None:
        self.adapter = adapter
        self._recorder = recorder
        self._spectra_at = float("-inf")
        # Seconds that the last two looks took. The lesser counts: one that started cold or met a
        # busy machine says little of the next.
        self._spectra_costs = deque([0.0], maxlen=2)
        self._factors_due = float("-inf")
        self._watched: str | None = None
        self._ranks: dict[str, int] = {}
        self._step = -1  # of the latest spectra
        self._copied = ("", -1)  # of the latest factors: the site, and the step

    @torch.no_grad()
    def observe(self, step: int, watch: str | None, now: bool = False) -> dict[str, Any]:
        """Return the snapshot fields that are due, of "spectra", "factors" and "ranks".

        Spectra also go to disk, as far as the recorder wants them.

        Args:
            step: optimizer steps done.
            watch: name of the site that somebody looks at, or None.
            now: due or not, as at a pause and at the end.

        Raises:
            AdapterError: NaN in a factor.
            RunError: the disk does not take the spectra.
        """
        changes: dict[str, Any] = {}
        if not self.adapter.sites:
            return changes  # the method has no ΔW = s·BA to look at
        if (ranks := moving_ranks(self.adapter)) != self._ranks:
            changes["ranks"] = self._ranks = ranks
        clock = time.perf_counter
        start = clock()
        wanted = now or self._recorder.due(step)
        if now or start >= self._next_spectra(watched=watch is not None, recorded=wanted):
            changes["spectra"] = Spectra(step, adapter_spectra(self.adapter))
            self._step = step
            if wanted:
                self._recorder.keep(changes["spectra"])
            self._spectra_at = clock()
            self._spectra_costs.append(self._spectra_at - start)
        start = clock()
        due = start >= self._factors_due or watch != self._watched
        if watch is not None and watch in self.adapter.sites and (now or due):
            changes["factors"] = copy_update(self.adapter, watch, step)
            self._copied = watch, step
            self._factors_due = start + max(_WATCHED_SECONDS, _SHARE * (clock() - start))
        self._watched = watch
        return changes

    def catch_up(self, step: int, watch: str | None) -> dict[str, Any]:
        """Return what was not looked at after the step that a run rests at, as `observe` does.

        A pause may be asked for when a step has been looked at, or not; while the run rests all
        views show that step.
        """
        followed = watch is not None and watch in self.adapter.sites
        behind = self._step < step or (followed and self._copied != (watch, step))
        return self.observe(step, watch, now=True) if behind else {}

    def _next_spectra(self, watched: bool, recorded: bool) -> float:
        least = _WATCHED_SECONDS if watched else _UNWATCHED_SECONDS
        if recorded:
            least = 0.0
        return self._spectra_at + max(least, _SHARE * min(self._spectra_costs))


def moving_ranks(adapter: Adapter) -> dict[str, int]:
    """Return {site name: rank} of what training prunes, {} where nothing does."""
    parts = adapter.adapters if isinstance(adapter, Combination) else (adapter,)
    pruned = [part.ranks for part in parts if isinstance(part, AdaLoraAdapter)]
    return {name: r for own in pruned for name, r in own.items()}


def copy_update(adapter: Adapter, site_name: str, step: int) -> SiteUpdate:
    """Return a float32 copy of one site's ΔW as it is now; see `LowRankUpdate.joined`."""
    site = adapter.sites[site_name]
    return SiteUpdate(site.site, site.update.to_numpy(), step)
