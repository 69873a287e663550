"""What an adapter can hold against what its data has to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.capacity import run_capacity
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class CapacityView(View):
    """The capacity gauge of a run."""

    key: ClassVar[str] = "capacity"
    title: ClassVar[str] = "Capacity"
    question: ClassVar[str] = (
        "Is the adapter large enough for its data? Two bits per parameter against the first "
        "epoch's log-loss."
    )
    terms: ClassVar[tuple[str, ...]] = ("capacity",)
    widest: ClassVar[int] = 720

    def controls(self) -> list[dict[str, Any]]:
        """Return the run, of those that learn a ΔW."""
        return [self.run_choice("sites.json")]

    def wanted(self) -> tuple[Any, ...] | None:
        """Return the run."""
        return super().wanted() if self.values.get("run") else None

    def empty(self) -> str:
        """Say what is missing."""
        return self.no_run(
            "No run is on disk yet: press Start, and its room and its data show here."
        )

    def live(self, snapshot: Snapshot | None) -> Any:
        """Return the step of the run on show, if it is the one that trains."""
        return self.live_run(snapshot)

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Read the run's losses."""
        del before
        watch.tell("reading the run…")
        return Measured(run_capacity(Path(values["run"])))

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the gauge."""
        return figures.capacity_figure(data, theme=theme, width=width)

    def words(self, data: Any) -> str:
        """Say how full it is."""
        return captions.capacity_summary(data)
