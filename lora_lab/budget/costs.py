"""A plan's costs beside full fine-tuning's: as data, as JSON, and as people read them."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

from lora_lab._util.format import (
    format_bytes,
    format_change,
    format_count,
    format_ratio,
    format_share,
)
from lora_lab._util.tables import Table

_PARTS = ("weights", "gradients", "optimizer", "activations")


@dataclass(frozen=True)
class Memory:
    """The peak of a training step by part, in bytes.

    Attributes:
        weights: the model's, and the adapter's.
        gradients: of all that is trained, as the optimizer is given them: in float32.
        optimizer: its state, such as Adam's two moments, and float32 masters of what is trained in
            half precision.
        activations: what the peak needs beyond the other three. Gradients do not exist during the
            forward pass, so activations fill their room first, and count here only above it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_json(self) -> dict[str, int]:
        """Return the parts and their total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Budget:
    """A plan's cost beside full fine-tuning's. Bytes and counts are whole numbers.

    Attributes:
        parameters_total: of the base model, tied weights once.
        parameters_trainable: with LoRA Σ r(in + out) over the sites (Hu et al., 2022, section 5.1).
        checkpoint_bytes: tensor bytes of what is saved; of LoRA float32, in PEFT's format.
        full_checkpoint_bytes: tensor bytes of the whole model in its dtype.
        full: memory of full fine-tuning.
        adapted: memory of this plan.
        approximate: whether the activations are an estimate (counts are always exact).
        settings: what was assumed, for people: "batch 8 × 128 tokens, AdamW, float32".
        method: the paper's name of it, such as "LoRA+PE".
        notes: what people should know besides.
        longest: of a run's plan, whose sequences these are: "103 tokens, the longest example".
        expected: of a run's plan, this plan's memory at the longest batch that its steps draw,
            where that is shorter than the longest possible; `full` and `adapted` are at most.
        expected_longest: how long that is, for people.
    """

    parameters_total: int
    parameters_trainable: int
    checkpoint_bytes: int
    full_checkpoint_bytes: int
    full: Memory
    adapted: Memory
    approximate: bool
    settings: str
    method: str = "LoRA"
    notes: tuple[str, ...] = ()
    longest: str = ""
    expected: Memory | None = None
    expected_longest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the keys that `lora-lab budget --json` promises, and a few more."""
        found: dict[str, Any] = {
            "method": self.method,
            "parameters": {
                "total": self.parameters_total,
                "trainable": self.parameters_trainable,
            },
            "checkpoint_bytes": self.checkpoint_bytes,
            "full_checkpoint_bytes": self.full_checkpoint_bytes,
            "memory": {"full": self.full.to_json(), "adapted": self.adapted.to_json()},
            "approximate": self.approximate,
            "settings": self.settings,
            "notes": list(self.notes),
        }
        if self.longest:
            found["longest"] = self.longest
        if self.expected is not None:
            found["memory"]["expected"] = self.expected.to_json()
            found["expected_longest"] = self.expected_longest
        return found

    def __str__(self) -> str:
        return "\n".join([self._headline(), "", str(self._table()), "", *self._notes()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self._notes())
        title = f"<b>{html.escape(self._headline())}</b>"
        return f"<div>{title}{self._table()._repr_html_()}{notes}</div>"

    def _headline(self) -> str:
        return (
            f"{self.method}: trainable {format_count(self.parameters_trainable)} of "
            f"{format_count(self.parameters_total)} "
            f"({format_share(self.parameters_trainable, self.parameters_total)}); "
            f"checkpoint {format_bytes(self.checkpoint_bytes)}, "
            f"{format_ratio(self.full_checkpoint_bytes, self.checkpoint_bytes)} smaller; "
            f"peak memory {format_change(self.adapted.total, self.full.total)}"
        )

    def _table(self) -> Table:
        def cells(name: str, memory: Memory) -> tuple[str, ...]:
            told = {part: format_bytes(v) for part, v in memory.to_json().items()}
            if memory.gradients and not memory.activations:
                told["activations"] = "within gradients"
            return (name, *told.values())

        parts = (*_PARTS, "total")
        plan = "this plan" if self.expected is None else "this plan, at most"
        rows = [cells("full fine-tuning", self.full), cells(plan, self.adapted)]
        if self.expected is not None:
            rows.append(cells("this plan, expected", self.expected))
        return Table(("", *parts), tuple(rows), frozenset(parts))

    def forecast_text(self) -> str:
        """Return what the peak is to be, for which batch: "" where nobody has said whose it is."""
        if not self.longest:
            return ""
        most = f"at most {format_bytes(self.adapted.total)} (longest batch: {self.longest})"
        if self.expected is None:
            return most
        expected = format_bytes(self.expected.total)
        return f"{most}; expected {expected} ({self.expected_longest})"

    def _notes(self) -> list[str]:
        notes = [
            self.settings,
            *filter(None, [self.forecast_text()]),
            "activations: what the peak needs above the gradients, which only come as they go",
        ]
        if self.approximate:
            notes.append(
                "activations are an estimate: the tests do not measure this model and method"
            )
        return [*notes, *self.notes]
