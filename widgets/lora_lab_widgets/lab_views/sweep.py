"""Many runs on disk: rank × learning rate, methods over their rates, and what scores cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

from lora_lab import captions, figures
from lora_lab.analysis.methods import comparable_methods, compare_methods, method_group_names
from lora_lab.analysis.pareto import Against, pareto_points
from lora_lab.analysis.records import final_score, metrics
from lora_lab.analysis.sweep import SweepMap, comparable_runs, group_names, sweep_map
from lora_lab.captions.comparisons import AGAINST
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import metric_of
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch

_MAP, _RATES = "map", "rates"
_SHOWN = (
    ("rank × learning rate", _MAP),
    ("each method over its rates", _RATES),
    *((f"score against {AGAINST[own]}", own) for own in get_args(Against)),
)


class SweepView(View):
    """A metric of many runs: as a map, as curves, or against what it cost."""

    key: ClassVar[str] = "sweep"
    title: ClassVar[str] = "Across runs"
    question: ClassVar[str] = (
        "Which rank, learning rate or method did best, and at what cost, over the runs of one "
        "model and task on disk?"
    )
    terms: ClassVar[tuple[str, ...]] = ("sweep", "held-out")

    def controls(self) -> list[dict[str, Any]]:
        """Return the group of runs, the metric, and what is shown of it."""
        shown = self.choice("show", "show", _SHOWN)  # which groups there are follows from it
        is_map = self.values["show"] == _MAP
        groups = self._groups(self.values["show"])
        named = group_names(groups) if is_map else method_group_names(groups)
        options = [(name, str(index)) for index, name in enumerate(named)]
        choices = [self.choice("group", "runs", options or [("no run", "")])]
        chosen = groups[int(self.values["group"])] if groups else ()
        scores = _scores(chosen) or {"loss_after": 0}
        names = [(metric_of(name).title, name) for name in scores]
        choices.append(self.choice("metric", "metric", names))
        self.values["ended"] = scores[self.values["metric"]]  # one more, and it is measured anew
        return [*choices, shown]

    def wanted(self) -> tuple[Any, ...] | None:
        """Return what is shown, of which group, in which metric."""
        return super().wanted() if self.values.get("group") else None

    def empty(self) -> str:
        """Say what is missing."""
        return (
            "Scores of many runs show here, rank by rate or method by method. None has ended with "
            "one yet: open the sweep below, or press Start a few times with other settings."
        )

    def _groups(self, shown: str) -> list[tuple[RunRecord, ...]]:
        """Return the runs that one figure can show, where there is something to show."""
        sorted_out = comparable_runs if shown == _MAP else comparable_methods
        return [group for group in sorted_out(self.records()) if _scores(group)]

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Lay the runs out."""
        del before
        watch.tell("reading the runs…")
        groups = self._groups(values["show"])
        if int(values["group"]) >= len(groups):
            raise RunError("these runs are not on disk any more; look again")
        group, shown = groups[int(values["group"])], values["show"]
        if shown == _MAP:
            return Measured(sweep_map(group, values["metric"]))
        found = compare_methods(group, values["metric"])
        if shown != _RATES:
            pareto_points(found, shown)  # says now what was not noted
        return Measured((shown, found))

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the map, the curves or the front."""
        if isinstance(data, SweepMap):
            return figures.sweep_figure(data, theme=theme, width=width)
        shown, found = data
        if shown == _RATES:
            return figures.rate_curves_figure(found, theme=theme, width=width)
        return figures.pareto_figure(found, shown, theme=theme, width=width)

    def words(self, data: Any) -> str:
        """Say which is best."""
        if isinstance(data, SweepMap):
            return captions.sweep_summary(data)
        shown, found = data
        if shown == _RATES:
            return captions.rate_curves_summary(found)
        return captions.pareto_summary(found, shown)


def _scores(group: Sequence[RunRecord]) -> Counter[str]:
    """Return how many runs of a group ended with each metric."""
    return Counter(
        name
        for record in group
        for name in metrics(record)
        if name.endswith("_after") and final_score(record, name) is not None
    )
