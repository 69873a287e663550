"""Intruder dimensions, and what scaling them by λ does to the task and to the base model's text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lora_lab import captions, figures
from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders, find_intruders
from lora_lab.analysis.losses import Losses
from lora_lab.analysis.scaled_intruders import intruder_curve
from lora_lab.tasks.base import Task
from lora_lab.tasks.prompts import Example
from lora_lab_widgets.lab_views.base import CancelledError, Measured, Theme, Values, View, Watch

SITES, CURVE = "sites", "curve"
EXAMPLES = 16  # held-out examples that the task's loss is taken over
FIRST = (0.0, 0.25, 0.5, 0.75, 1.0)  # measured at once; others when the slider comes to them
LAMBDAS = tuple(round(0.05 * i, 2) for i in range(21))


@dataclass(frozen=True)
class Found:
    """The intruders of one moment, and the curve as far as it is measured."""

    asked: tuple[int, float]  # top_k and ε
    step: int
    rows: tuple[SiteIntruders, ...]
    curve: IntruderCurve | None = None


class IntrudersView(View):
    """Strong directions of W₀ + ΔW that W₀ does not know, and a slider that takes them away."""

    key: ClassVar[str] = "intruders"
    title: ClassVar[str] = "Intruders"
    question: ClassVar[str] = (
        "Has training put strong directions into W₀ + ΔW that W₀ does not have, and what "
        "do they do?"
    )
    terms: ClassVar[tuple[str, ...]] = ("intruder",)
    widest: ClassVar[int] = 1100
    drawn_only: ClassVar[frozenset[str]] = frozenset({"show", "lambda"})

    _kept: tuple[Task | Sequence[Example], Losses] | None = None

    def controls(self) -> list[dict[str, Any]]:
        """Return top k, ε, which of the two figures, and λ for the second."""
        shown = [("every matrix", SITES), ("scaled by λ", CURVE)]
        counts = [(f"top {k}", str(k)) for k in (10, 5, 20, 50)]
        limits = [(f"ε = {e}", str(e)) for e in (0.5, 0.4, 0.6, 0.7, 0.8, 0.9)]
        hint = "a direction whose largest |cos| with W₀'s is below ε is an intruder"
        found = [
            self.choice("show", "show", shown),
            self.choice("top_k", "directions", counts, "of W₀ + ΔW, the strongest"),
            self.choice("epsilon", "below", limits, hint),
        ]
        if self.values["show"] == CURVE:
            self.values.setdefault("lambda", len(LAMBDAS) - 1)
            marks = [f"λ = {factor:.2f}" for factor in LAMBDAS]
            found.append(self.slider("lambda", "intruders scaled by", marks))
        return found

    def wanted(self) -> tuple[Any, ...] | None:
        """Return what is looked for."""
        return super().wanted() if self.live_adapter.adapter is not None else None

    def complete(self, data: Any) -> bool:
        """Return whether λ's losses are known, where they are asked for."""
        if self.values["show"] == SITES or not any(row.count for row in data.rows):
            return True
        return _losses(data.curve, self._factor(self.values)) is not None

    def empty(self) -> str:
        """Say what is missing."""
        return self.live_adapter.nothing

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Find the intruders; for the curve, measure the losses while training rests."""
        watch.tell("waiting for the next step…")
        asked = int(values["top_k"]), float(values["epsilon"])
        if values["show"] == SITES:
            step, sites = self.live_adapter.copy()
            return Measured(Found(asked, step, self._find(sites, asked, watch)), step)
        with self.live_adapter.alone("ΔW is being measured"), self.live_adapter.in_force():
            step, sites = self.live_adapter.copy()
            found = before
            if found is None or (found.asked, found.step) != (asked, step):
                found = Found(asked, step, self._find(sites, asked, watch))
            if not any(row.count for row in found.rows):
                return Measured(found, step)  # the curve would be flat
            asked_for = self._factor(values)
            factors = (asked_for,) if found.curve else sorted({*FIRST, asked_for})
            found = dataclasses.replace(found, curve=self._curve(found, factors, watch))
        return Measured(found, step)

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw every site, or the curve with λ marked."""
        if self.values["show"] == SITES or data.curve is None:
            return figures.intruder_figure(data.rows, theme=theme, width=width)
        figure = figures.intruder_curve_figure(data.curve, theme=theme, width=width)
        factor = self._factor(self.values)
        for axis in ("", "2"):
            figure.add_shape(
                name="lambda",
                type="line",
                x0=factor,
                x1=factor,
                xref=f"x{axis}",
                y0=0,
                y1=1,
                yref=f"y{axis} domain",
                line={"color": figure.layout.font.color, "width": 1},
            )
        return figure

    def redraw(self, figure: Any, data: Any) -> bool:
        """Move the mark to λ."""
        if data.curve is None:
            return False
        for shape in figure.layout.shapes:
            if shape.name == "lambda":
                shape.x0 = shape.x1 = self._factor(self.values)
        return True

    def words(self, data: Any) -> str:
        """Say how many there are, or what λ does."""
        if self.values["show"] == SITES:
            return captions.intruder_summary(data.rows)
        if data.curve is None:
            nothing = "Nothing to scale: raise ε, or look at more directions."
            return f"{captions.intruder_summary(data.rows)} {nothing}"
        factor = self._factor(self.values)
        losses = _losses(data.curve, factor)
        here = (
            f"task loss {losses[0]:.3f}, on the base model's text {losses[1]:.3f} nats per token."
            if losses
            else "not measured yet."
        )
        return f"λ = {factor:.2f}: {here} {captions.intruder_curve_summary(data.curve)}"

    def _find(
        self, sites: Sequence[Any], asked: tuple[int, float], watch: Watch
    ) -> tuple[SiteIntruders, ...]:
        weight = watch.counting(self.live_adapter.base_weight, len(sites), "W₀'s directions")
        return find_intruders(sites, weight, top_k=asked[0], epsilon=asked[1])

    def _curve(self, found: Found, factors: Sequence[float], watch: Watch) -> IntruderCurve:
        text = "training rests: measuring the losses"
        watch.tell(text)
        examples = self.live_adapter.examples(EXAMPLES)
        curve = intruder_curve(
            self.live_adapter.lm,
            examples,
            found.rows,
            factors=factors,
            losses=self._texts(examples, watch),
            should_stop=lambda: watch.cancelled,
            on_progress=lambda done, total: watch.tell(text, done, total),
        )
        if watch.cancelled:
            raise CancelledError
        return curve if found.curve is None else _joined(found.curve, curve)

    def _texts(self, examples: Task | Sequence[Example], watch: Watch) -> Losses:
        """Return what the losses are taken over, kept: the base model writes its text once."""
        if self._kept is None or self._kept[0] != examples:
            made = Losses(self.live_adapter.lm, examples, None, lambda: watch.cancelled)
            if not made.ready:
                raise CancelledError
            self._kept = examples, made
        return self._kept[1]

    def _factor(self, values: Values) -> float:
        return LAMBDAS[int(values.get("lambda", len(LAMBDAS) - 1))]


def _losses(curve: IntruderCurve | None, factor: float) -> tuple[float, float] | None:
    """Return the two losses at λ, None where it is not measured."""
    if curve is None:
        return None
    at = np.flatnonzero(np.isclose(curve.factors, factor))
    return (float(curve.task_losses[at[0]]), float(curve.base_losses[at[0]])) if len(at) else None


def _joined(one: IntruderCurve, other: IntruderCurve) -> IntruderCurve:
    """Return both curves' points as one, in the order of λ."""
    factors = np.concatenate([one.factors, other.factors])
    order = np.argsort(factors)
    return dataclasses.replace(
        one,
        factors=factors[order],
        task_losses=np.concatenate([one.task_losses, other.task_losses])[order],
        base_losses=np.concatenate([one.base_losses, other.base_losses])[order],
    )
