"""Data in, plotly `go.Figure` out; the only folder that imports plotly.

Every figure has an explicit size, a transparent ground and float32 values; a curve has at most 500
points, a map one cell a site or a pair of directions. What a figure shows is said in a sentence or
two by the function of the same name in `lora_lab.captions`, for screen readers and captions. Show
figures with `CONFIG`.
"""

from lora_lab.captions.delta_w import (
    amplification_summary,
    capacity_summary,
    intruder_curve_summary,
    intruder_summary,
    phi_summary,
    spectrum_against_base_summary,
    step_maps_summary,
    sweep_summary,
)
from lora_lab.captions.methods import method_comparison_summary
from lora_lab.captions.run import loss_summary, map_summary, memory_summary, summary
from lora_lab.figures._base import CONFIG, Figure, Theme, plotly_js
from lora_lab.figures.amplification import amplification_figure
from lora_lab.figures.capacity import capacity_figure
from lora_lab.figures.intruders import intruder_curve_figure, intruder_figure
from lora_lab.figures.loss import loss_figure
from lora_lab.figures.maps import effective_rank_figure
from lora_lab.figures.memory import MEMORY_PARTS, memory_figure
from lora_lab.figures.methods import method_comparison
from lora_lab.figures.overlap import overlap_figure, update_overlap
from lora_lab.figures.phi import phi_figure
from lora_lab.figures.spectrum import spectrum_against_base_figure, spectrum_figure, update_spectrum
from lora_lab.figures.step_maps import step_maps_figure, update_step_maps
from lora_lab.figures.sweep import sweep_figure

__all__ = [
    "CONFIG",
    "MEMORY_PARTS",
    "Figure",
    "Theme",
    "amplification_figure",
    "amplification_summary",
    "capacity_figure",
    "capacity_summary",
    "effective_rank_figure",
    "intruder_curve_figure",
    "intruder_curve_summary",
    "intruder_figure",
    "intruder_summary",
    "loss_figure",
    "loss_summary",
    "map_summary",
    "memory_figure",
    "memory_summary",
    "method_comparison",
    "method_comparison_summary",
    "overlap_figure",
    "phi_figure",
    "phi_summary",
    "plotly_js",
    "spectrum_against_base_figure",
    "spectrum_against_base_summary",
    "spectrum_figure",
    "step_maps_figure",
    "step_maps_summary",
    "summary",
    "sweep_figure",
    "sweep_summary",
    "update_overlap",
    "update_spectrum",
    "update_step_maps",
]
