"""What the figures show, in one or two sentences: for screen readers and captions."""

from lora_lab.summaries.laboratory import (
    amplification_summary,
    capacity_summary,
    intruder_curve_summary,
    intruder_summary,
    phi_summary,
    spectrum_against_base_summary,
    step_maps_summary,
    sweep_summary,
)
from lora_lab.summaries.methods import method_comparison_summary
from lora_lab.summaries.run import loss_summary, map_summary, memory_summary, summary

__all__ = [
    "amplification_summary",
    "capacity_summary",
    "intruder_curve_summary",
    "intruder_summary",
    "loss_summary",
    "map_summary",
    "memory_summary",
    "method_comparison_summary",
    "phi_summary",
    "spectrum_against_base_summary",
    "step_maps_summary",
    "summary",
    "sweep_summary",
]
