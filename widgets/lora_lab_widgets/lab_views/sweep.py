"""Learning rate × rank over the runs on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.records import final_score, metrics
from lora_lab.analysis.sweep import comparable_runs, group_names, sweep_map
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import metric_of
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
        groups = self._groups()
        options = [(name, str(index)) for index, name in enumerate(group_names(groups))]
        choices = [self.choice("group", "runs", options or [("no run", "")])]
        chosen = groups[int(self.values["group"])] if groups else ()
        scores = _scores(chosen) or {"loss_after": 0}
        names = [(metric_of(name).title, name) for name in scores]
        choices.append(self.choice("metric", "metric", names))
        self.values["ended"] = scores[self.values["metric"]]  # one more, and it is measured anew
        return choices

    def wanted(self) -> tuple[Any, ...] | None:
        """Return group and metric."""
        return super().wanted() if self.values.get("group") else None

    def empty(self) -> str:
        """Say what is missing."""
        return "No run has ended with a score yet: train with a few ranks and learning rates."

    def _groups(self) -> list[tuple[RunRecord, ...]]:
        """Return the runs that one map can show, where there is something to show."""
        return [group for group in comparable_runs(self.records()) if _scores(group)]

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Lay the runs out."""
        del before
        watch.tell("reading the runs…")
        groups = self._groups()
        if int(values["group"]) >= len(groups):
            raise RunError("these runs are not on disk any more; look again")
        return Measured(sweep_map(groups[int(values["group"])], values["metric"]))

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the map."""
        return figures.sweep_figure(data, theme=theme, width=width)

    def words(self, data: Any) -> str:
        """Say which cell is best."""
        return captions.sweep_summary(data)


def _scores(group: Sequence[RunRecord]) -> Counter[str]:
    """Return how many runs of a group ended with each metric."""
    return Counter(
        name
        for record in group
        for name in metrics(record)
        if name.endswith("_after") and final_score(record, name) is not None
    )
