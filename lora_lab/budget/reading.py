"""What a training step took, part by part, and where a forecast was off."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab._util.format import format_bytes, format_change
from lora_lab.budget.costs import Budget, Memory


@dataclass(frozen=True)
class MemoryReading:
    """Bytes in use, now and at the peak, and what kind of bytes they are.

    The parts are those of `budget.Memory` and add up to the peak; a reading of which only the peak
    is known has them all zero.

    Attributes:
        current: bytes in use now.
        peak: the most bytes seen in use at once.
        kind: such as "CUDA memory", see `Hardware.memory`.
        weights: of the peak, what the model's parameters, buffers and adapter take.
        gradients: of all that is trained.
        optimizer: its state.
        activations: what the peak needs beyond the other three; on a GPU that includes what its
            libraries allocate for themselves.
        devices: (name, bytes now, bytes at its peak) of each, where a model computes on several.
    """

    current: int
    peak: int
    kind: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    devices: tuple[tuple[str, int, int], ...] = ()


def measured_text(plan: Budget, reading: MemoryReading) -> str:
    """Return what a run took, beside what it was to take.

    Below the longest possible batch is as it should be; what is expected it should meet.
    """
    line = f"measured peak {format_bytes(reading.peak)} ({reading.kind})"
    expected = plan.adapted if plan.expected is None else plan.expected
    change = format_change(reading.peak, expected.total)
    return f"{line}, {change} against {'the forecast' if plan.expected is None else 'expected'}"


def differing_part(predicted: Memory, measured: MemoryReading, tolerance: float = 0.05) -> str:
    """Return the part in which a forecast and a measurement differ the most.

    Args:
        predicted: `budget`'s or a dry run's.
        measured: a meter's reading.
        tolerance: how much of the measured peak the forecast may be off.

    Returns:
        "weights", "gradients", "optimizer" or "activations"; "peak" where the reading has no
        parts; "" where the totals are within the tolerance.
    """
    if abs(predicted.total - measured.peak) <= tolerance * measured.peak:
        return ""
    parts = ("weights", "gradients", "optimizer", "activations")
    if not any(getattr(measured, part) for part in parts):
        return "peak"
    return max(parts, key=lambda part: abs(getattr(predicted, part) - getattr(measured, part)))
