"""What a run keeps of its spectra: at most some hundred steps, spread over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_lab.analysis.live import adapter_spectra
from lora_lab.errors import AdapterError, ModelError, RunError
from lora_lab.methods.base import Adapter
from lora_lab.runs.history import read_sites
from lora_lab.runs.spectra_log import SITES_FILE, SPECTRA_FILE, SpectraLog
from lora_lab.runs.store import RunStore
from lora_lab.training.snapshot import Spectra

MOST_ROWS = 400


class Recorder:
    """Writes `sites.json` and `spectra.npy`.

    Every step is kept until there are `MOST_ROWS`; then every other row goes, and from there on
    only as many steps are kept. So a run that is stopped early has been kept step by step.
    Computing the spectra is the `Observer`'s business, and so is what that may cost. Of a method
    without ΔW = s·BA there is nothing to keep.
    """

    def __init__(self, store: RunStore, adapter: Adapter) -> None:
        self._store = store
        self._adapter = adapter
        self._log: SpectraLog | None = None
        self._widths: dict[str, int] = {}  # singular values at the start; AdaLoRA prunes some
        self._every = 1

    def begin(self, step: int = 0) -> None:
        """Write the sites, and ΔW as it is before the first step.

        Args:
            step: after so many steps, where what was kept before is lost.

        Raises:
            ModelError: NaN in W₀.
            RunError: the disk does not take it.
        """
        if not self._adapter.sites:
            return
        values = self._write_sites()
        log = SpectraLog(self._store.folder / SPECTRA_FILE, sum(self._widths.values()))
        log.append(step, self._row(Spectra(step, values)))
        self._log = log

    def _write_sites(self) -> dict[str, np.ndarray]:
        """Write sites.json as the adapter is now; return its singular values."""
        values = adapter_spectra(self._adapter)
        sites = [
            {
                "name": name,
                "stack": site.site.stack,
                "layer": site.site.layer,
                "role": site.site.role,
                "out_features": site.site.out_features,
                "in_features": site.site.in_features,
                "r": site.r,
                "singular_values": len(values[name]),
                "weight_norm": self._base_norm(name),
                "trainable": sum(p.numel() for p in site.parameters() if p.requires_grad),
            }
            for name, site in self._adapter.sites.items()
        ]
        self._store.write_json(SITES_FILE, {"trainable": self._adapter.trainable, "sites": sites})
        self._widths = {name: len(s) for name, s in values.items()}
        return values

    def _base_norm(self, name: str) -> float:
        try:
            return _norm(self._adapter.base_weight(name), name)
        except AdapterError:  # a quantized layer's that nobody can read: it trains nevertheless
            return 0.0

    @property
    def last_step(self) -> int | None:
        """The latest step whose spectra are kept; None where none are."""
        return None if self._log is None else self._log.steps[-1]

    def resume(self, step: int, before: int, kept: int | None = None) -> list[str]:
        """Go on with the files of a run that ended: rows after so many steps are dropped.

        Damaged files are begun anew: they are a record, and nothing is trained by them.

        Args:
            step: optimizer steps done.
            before: how many of them metrics.jsonl has.
            kept: `last_step` then, where that is known.

        Returns:
            What to say of what was lost.

        Raises:
            RunError: the disk does not take them.
        """
        lost = step - before
        notes = [f"metrics.jsonl lacks {lost} of the {step} steps before"] if lost > 0 else []
        try:
            if self._adapter.sites:
                notes += self._reopen(step, kept)
        except RunError as error:
            self.begin(step)
            notes.append(f"the spectra up to step {step} are lost, and begin anew: {error}")
        return notes

    def _reopen(self, step: int, kept: int | None) -> list[str]:
        path, notes = self._store.folder / SPECTRA_FILE, []
        try:
            self._widths = self._known_widths()
            self._log = SpectraLog.reopen(path, sum(self._widths.values()), step)
        except RunError:
            # What the adapter has now is what it had, unless ranks have been pruned since.
            self._widths = {name: len(s) for name, s in adapter_spectra(self._adapter).items()}
            self._log = SpectraLog.reopen(path, sum(self._widths.values()), step)
            self._write_sites()
            notes = [f"{SITES_FILE} was damaged, and is written anew"]
        steps = self._log.steps
        if not steps:
            raise RunError(f"{path} has no row")
        mean = max(1, round((steps[-1] - steps[0]) / max(1, len(steps) - 1)))
        if len(steps) > MOST_ROWS // 2:
            self._every = mean
        thinned = 2 * mean if len(steps) >= MOST_ROWS // 2 else 0  # since then
        if kept is not None and steps[-1] + thinned < kept:
            notes.append(
                f"the spectra of steps {steps[-1] + 1} to {kept} were damaged, and are lost"
            )
        return notes

    def _known_widths(self) -> dict[str, int]:
        """Return how many singular values of each matrix are kept, as sites.json tells.

        Raises:
            RunError: it is damaged, or tells of other matrices than the adapter's.
        """
        recorded = read_sites(self._store.folder)
        own = [site.site for site in self._adapter.sites.values()]
        if list(map(_place, recorded)) != list(map(_place, own)):
            raise RunError(f"{SITES_FILE} tells of other matrices than the adapter has")
        return {site.name: site.singular_values for site in recorded}

    def due(self, step: int) -> bool:
        """Whether the spectra after so many steps are to be kept."""
        return self._log is not None and step >= self._log.steps[-1] + self._every

    def keep(self, seen: Spectra) -> None:
        """Keep the spectra of one step, due or not; of a step that is there already, nothing.

        Raises:
            RunError: the disk does not take it.
        """
        log = self._log
        if log is None or seen.step <= log.steps[-1]:
            return
        if self.due(seen.step) and len(log.steps) >= MOST_ROWS:
            log.keep_every_other()
            # The mean distance, which is not always twice the old one: looks may be far between.
            self._every = round((log.steps[-1] - log.steps[0]) / (len(log.steps) - 1))
        log.append(seen.step, self._row(seen))

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()

    def _row(self, seen: Spectra) -> np.ndarray:
        return np.concatenate(
            [
                np.pad(s, (0, self._widths[name] - len(s)))
                for name, s in seen.singular_values.items()
            ]
        )


def _place(site: Any) -> tuple[Any, ...]:
    """Return where a matrix stands, and its shape."""
    return site.name, site.stack, site.layer, site.role, site.out_features, site.in_features


def _norm(W: Tensor, name: str) -> float:
    """Return ‖W₀‖_F. Row by row: torch's norm of a large matrix is off by parts in a thousand."""
    kind: Any = torch.promote_types(W.dtype, torch.float32)
    rows = torch.linalg.vector_norm(W, dim=1, dtype=kind)
    norm = float(torch.linalg.vector_norm(rows.cpu().double()))
    if not np.isfinite(norm):
        raise ModelError(f"W₀ of {name} holds NaN or infinite values; load the base model again")
    return norm
