"""The views of "Analyze ΔW", one question a file; `VIEWS` has them in the order of their tabs."""

from lora_lab_widgets.lab_views.amplification import AmplificationView
from lora_lab_widgets.lab_views.base import CancelledError, Measured, Theme, View, Watch
from lora_lab_widgets.lab_views.capacity import CapacityView
from lora_lab_widgets.lab_views.intruders import IntrudersView
from lora_lab_widgets.lab_views.spectrum import SpectrumView
from lora_lab_widgets.lab_views.steps import StepsView
from lora_lab_widgets.lab_views.subspaces import SubspacesView
from lora_lab_widgets.lab_views.sweep import SweepView

VIEWS: tuple[type[View], ...] = (
    SpectrumView,
    SubspacesView,
    AmplificationView,
    StepsView,
    IntrudersView,
    SweepView,
    CapacityView,
)

__all__ = ["VIEWS", "CancelledError", "Measured", "Theme", "View", "Watch"]
