"""Learning rate × rank over the runs on disk."""

from __future__ import annotations

from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.sweep import comparable_runs, sweep_map
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import LOSS, metric_of
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class SweepView(View):
    """A metric of many runs as a map."""

    key: ClassVar[str] = "sweep"
    title: ClassVar[str] = "Sweep"
    question: ClassVar[str] = (
        "Which rank and learning rate did best, over the runs of one model and task on disk?"
    )
    widest: ClassVar[int] = 720

    def controls(self) -> list[dict[str, Any]]:
        """Return the group of runs and the metric."""
        groups = comparable_runs(self.records())
        options = [(_group_label(group), str(index)) for index, group in enumerate(groups)]
        names = {
            name: metric_of(name).title
            for group in groups
            for record in group
            for name in (record.summary or {}).get("metrics", {})
            if name.endswith("_after")
        } or {"loss_after": LOSS.title}
        return [
            self.choice("group", "runs", options or [("no run", "")]),
            self.choice("metric", "metric", [(text, name) for name, text in names.items()]),
        ]

    def wanted(self) -> tuple[Any, ...] | None:
        """Return group and metric."""
        return super().wanted() if self.values.get("group") else None

    def empty(self) -> str:
        """Say what is missing."""
        return "No run is on disk yet: train with a few ranks and learning rates."

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Lay the runs out."""
        del before
        watch.tell("reading the runs…")
        groups = comparable_runs(self.records())
        if int(values["group"]) >= len(groups):
            raise RunError("these runs are not on disk any more; look again")
        return Measured(sweep_map(groups[int(values["group"])], values["metric"]))

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the map."""
        return figures.sweep_figure(data, theme=theme, width=width)

    def words(self, data: Any) -> str:
        """Say which cell is best."""
        return captions.sweep_summary(data)


def _group_label(group: tuple[RunRecord, ...]) -> str:
    config = group[0].config
    model = config.get("model", {}).get("name", "a model")
    task = config.get("task", {}).get("name", "a task")
    return f"{model} · {task} · {len(group)} run{'s' if len(group) != 1 else ''}"
