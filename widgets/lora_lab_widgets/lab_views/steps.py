"""Effective rank and relative size at every cell of the grid, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.steps import StepMaps, step_maps
from lora_lab.runs.history import read_history
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class StepsView(View):
    """Two maps that move with training, and with a slider over its steps."""

    key: ClassVar[str] = "steps"
    title: ClassVar[str] = "Over steps"
    question: ClassVar[str] = (
        "Where and when does ΔW grow, and how many directions does it take? Drag the slider."
    )
    terms: ClassVar[tuple[str, ...]] = ("effective-rank", "size")
    widest: ClassVar[int] = 1100
    drawn_only: ClassVar[frozenset[str]] = frozenset({"step"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._maps: StepMaps | None = None

    def controls(self) -> list[dict[str, Any]]:
        """Return the run and the step."""
        found = [self.run_choice("spectra.npy")]
        if self._maps is not None:
            marks = [f"step {step}" for step in self._maps.steps.tolist()]
            found.append(self.slider("step", "step", marks))
        return found

    def wanted(self) -> tuple[Any, ...] | None:
        """Return the run."""
        return super().wanted() if self.values.get("run") else None

    def empty(self) -> str:
        """Say what is missing."""
        return self.no_run(
            "No run has kept its spectra yet: press Start, and the maps grow with it."
        )

    def live(self, snapshot: Snapshot | None) -> Any:
        """Return the step of the run on show, if it is the one that trains."""
        return self.live_run(snapshot)

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Read the run's history."""
        del before
        watch.tell("reading the run's history…")
        return Measured(step_maps(read_history(Path(values["run"]))))

    def measured(self, data: Any) -> None:
        """Keep the slider at the end if it is there: it follows training."""
        before, self._maps = self._maps, data
        at_end = before is None or self.values.get("step", 0) >= len(before.steps) - 1
        if at_end:
            self.values["step"] = len(data.steps) - 1

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw both maps at the slider's step."""
        return figures.step_maps_figure(data, self._index(data), theme=theme, width=width)

    def redraw(self, figure: Any, data: Any) -> bool:
        """Move the maps on show to the slider's step."""
        figures.update_step_maps(figure, data, self._index(data))
        return True

    def words(self, data: Any) -> str:
        """Say what the maps show at this step."""
        return captions.step_maps_summary(data, self._index(data))

    def _index(self, data: StepMaps) -> int:
        return int(min(self.values.get("step", 0), len(data.steps) - 1))
