"""The line at the top of the workbench: model, method, task, device."""

from __future__ import annotations

import traitlets

from lora_lab_widgets._base import Panel


class Header(Panel):
    """A title with chips, and the device at the right. Its style sheet lays the workbench out.

    Attributes:
        chips: short texts, such as the model's name and the task's.
        device: where the model runs and in which dtype.
    """

    static_files = ("header",)

    chips = traitlets.List(traitlets.Unicode()).tag(sync=True)
    device = traitlets.Unicode().tag(sync=True)

    def summary(self) -> str:
        """Return the chips."""
        return " · ".join(self.chips)
