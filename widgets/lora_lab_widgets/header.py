"""The line at the top of the workbench: model, method, task, device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab.training.gpu_memory import used_by_others
from lora_lab_widgets._background import Background
from lora_lab_widgets.panel import PanelWidget

if TYPE_CHECKING:
    import torch

PACE = 15.0  # seconds between two questions to the GPU's driver


class Header(PanelWidget):
    """A title with chips, and the device at the right. Its style sheet lays the workbench out.

    Attributes:
        chips: short texts, such as the model's name and the task's.
        device: where the model runs and in which dtype.
        others: who else has memory of that GPU, and how much; "" where nobody has.
    """

    module = "header"

    chips = traitlets.List(traitlets.Unicode()).tag(sync=True)
    device = traitlets.Unicode().tag(sync=True)
    others = traitlets.Unicode().tag(sync=True)

    def __init__(self, **settings: Any) -> None:
        self._job: Background[str] = Background()
        self._due = 0.0
        super().__init__(**settings)

    def update(self, device: torch.device) -> None:
        """One heartbeat: show who else is on a GPU, asked now and then on a thread of its own."""
        if (outcome := self._job.take()) is not None:
            self.others = outcome.value or ""
        now = time.monotonic()
        if device.type == "cuda" and now >= self._due:
            self._job.start(lambda: used_by_others(device))
            self._due = now + PACE

    def summary(self) -> str:
        """Return the chips."""
        return " · ".join(self.chips)
