"""The line at the top of the workbench: model, method, task, device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab._util.devices import devices_of
from lora_lab.errors import ConfigError
from lora_lab.training.gpu_memory import used_by_others
from lora_lab_widgets.background import Background
from lora_lab_widgets.panel import MessagePanel, Tick

if TYPE_CHECKING:
    import torch

    from lora_lab_widgets.planned import Planned
    from lora_lab_widgets.session import Session

PACE = 15.0  # seconds between two questions to the GPU's driver


class Header(MessagePanel):
    """A title with chips, what shows the pickers, and the device at the right.

    Its style sheet lays the workbench out.

    Args:
        session: has the model and the plan.

    Attributes:
        chips: short texts, such as the model's name and the task's.
        device: where the model runs and in which dtype.
        others: who else has memory of that GPU, and how much; "" where nobody has.
    """

    module = "header"

    chips = traitlets.List(traitlets.Unicode()).tag(sync=True)
    device = traitlets.Unicode().tag(sync=True)
    others = traitlets.Unicode().tag(sync=True)

    def __init__(self, session: Session, **settings: Any) -> None:
        self._session, self._lm = session, session.lm
        self._plan = session.plan
        self._job: Background[str] = Background()
        self._due = 0.0
        super().__init__(**settings)
        self._plan.observe(lambda change: self._show_plan(change["new"]), "planned")
        self._show_plan(self._plan.planned)

    def update(self, tick: Tick) -> None:
        """Show who else is on a GPU, asked now and then on a thread of its own."""
        del tick
        if (outcome := self._job.take()) is not None:
            self.others = outcome.value or ""
        now = time.monotonic()
        if now >= self._due:
            gpus = [device for device in devices_of(self._lm.model) if device.type == "cuda"]
            if gpus:
                self._job.start(lambda: "; ".join(filter(None, map(used_by_others, gpus))))
            self._due = now + PACE

    def _handle(self, content: Mapping[str, Any]) -> None:
        if content.get("type") != "choose":
            raise ConfigError("the header got an unknown message; reload the page")
        self._session.choose()

    def summary(self) -> str:
        """Return the chips."""
        return " · ".join(self.chips)

    def _show_plan(self, planned: Planned) -> None:
        method, numbers = planned.title
        if not method:
            return
        name = planned.settings["task"]
        task = self._plan.tasks.get(name)
        synthetic = " · synthetic" if task is not None and task.synthetic else ""
        chips = [self._lm.card.name, method, f"{name}{synthetic}", numbers]
        self.chips = [chip for chip in chips if chip]
        names = Counter(map(_device_name, devices_of(self._lm.model)))
        each = (f"{count} × {name}" if count > 1 else name for name, count in names.items())
        self.device = f"{' + '.join(each)} · {self._lm.card.dtype}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
