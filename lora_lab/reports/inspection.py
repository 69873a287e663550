"""What an inspection found, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab import captions
from lora_lab.analysis.amplify import SiteAmplification
from lora_lab.analysis.capacity import Capacity
from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders
from lora_lab.analysis.overlaps import OverlapMap, Side
from lora_lab.analysis.site_view import SiteView
from lora_lab.analysis.spectrum import SpectrumView
from lora_lab.analysis.steps import StepMaps
from lora_lab.analysis.sweep import SweepMap
from lora_lab.analysis.table import Analysis
from lora_lab.redaction import shown_redacted


@shown_redacted
@dataclass(frozen=True)
class Inspection:
    """An adapter looked into. What was not asked for, or has no base to stand against, is empty.

    Attributes:
        name: of the adapter.
        subtitle: what it was compared with.
        config: its adapter_config.json; empty for loralib's.
        analysis: ΔW of every site.
        parameters: the numbers in the factors.
        notes: what is not shown, or had to be assumed; one line each.
        details: the names of the sites that are shown on their own.
        sides: of the singular vectors that φ compares at `details`.
        amplifications: Table 7's row of every site.
        intruders: of every site, or of the strongest where all would take too long.
        curve: the losses while those intruders are scaled.
        spectra: ΔW's spectrum beside W₀'s, of `details`.
        lone_spectra: ΔW's spectrum alone, where there is no base.
        base_overlaps: φ of ΔW and W₀, of `details`.
        overlaps: φ of this ΔW and the other adapter's, of every site that both have.
        steps: effective rank and relative size over the run's steps.
        capacity: what the run's adapter can hold, against its data.
        sweep: a metric over the ranks and learning rates of many runs.
    """

    name: str
    subtitle: str
    config: Mapping[str, Any]
    analysis: Analysis
    parameters: int
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    sides: tuple[Side, ...] = ("input",)
    amplifications: tuple[SiteAmplification, ...] = ()
    intruders: tuple[SiteIntruders, ...] = ()
    curve: IntruderCurve | None = None
    spectra: tuple[SpectrumView, ...] = ()
    lone_spectra: tuple[SiteView, ...] = ()
    base_overlaps: tuple[OverlapMap, ...] = ()
    overlaps: tuple[OverlapMap, ...] = ()
    steps: StepMaps | None = None
    capacity: Capacity | None = None
    sweep: SweepMap | None = None

    @property
    def shown_overlaps(self) -> tuple[OverlapMap, ...]:
        """The φ maps of `details`, against the other adapter."""
        return tuple(overlap for overlap in self.overlaps if overlap.site in self.details)

    def summaries(self) -> list[str]:
        """Return what the figures show, a sentence or two each."""
        sentences = []
        if self.amplifications:
            sentences.append(captions.amplification_summary(self.amplifications))
        if self.intruders:
            sentences.append(captions.intruder_summary(self.intruders))
        if self.curve is not None:
            sentences.append(captions.intruder_curve_summary(self.curve))
        sentences += [captions.spectrum_against_base_summary(view) for view in self.spectra]
        sentences += [captions.phi_summary(o) for o in (*self.base_overlaps, *self.shown_overlaps)]
        if self.steps is not None:
            sentences.append(captions.step_maps_summary(self.steps, len(self.steps.steps) - 1))
        if self.capacity is not None:
            sentences.append(captions.capacity_summary(self.capacity))
        if self.sweep is not None:
            sentences.append(captions.sweep_summary(self.sweep))
        return sentences

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.subtitle}", *(f"note: {note}" for note in self.notes)]
        return "\n".join([*parts, "", str(self.analysis), *(f"\n{s}" for s in self.summaries())])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; what is not a number is null.

        `sites` is a list with a row each: "name", "layer", "role", "r", "singular_values",
        "effective_rank", "stable_rank", "frobenius_norm"; with a base also "amplification",
        "random_amplification", Table 7's "weight_norm", "along_delta", "along_own",
        "along_random", "random_level", and "intruders" where they were looked for; against another
        adapter "overlap" with φ of the first directions, of all, and the random level of that.
        """
        data = self.analysis.to_json()
        rows = {row["name"]: row for row in data["sites"]}
        for triple in self.amplifications:
            fields = ("weight_norm", "along_delta", "along_own", "along_random", "random_level")
            rows[triple.name] |= {field: float(getattr(triple, field)) for field in fields}
        for intruders in self.intruders:
            rows[intruders.name]["intruders"] = intruders.count
        for overlap in self.overlaps:
            if overlap.side != "input":
                continue
            rows[overlap.site]["overlap"] = {
                "first": float(overlap.values[0, 0]),
                "all": float(overlap.values[-1, -1]),
                "random": float(overlap.random[-1, -1]),
            }
        data |= {"parameters": self.parameters, "notes": list(self.notes)}
        if self.steps is not None:
            data["steps"] = self.steps.steps.tolist()
        if self.capacity is not None:
            data["capacity"] = {"bits": self.capacity.bits, "data_bits": self.capacity.data_bits}
        if self.sweep is not None:
            r, rate = self.sweep.best
            data["sweep"] = {"metric": self.sweep.metric, "r": r, "learning_rate": rate}
        return data
