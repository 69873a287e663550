"""What the run panel's form is told beside the settings, anew with each plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab_widgets.methods import entries

if TYPE_CHECKING:
    from lora_lab_widgets.plan import PlanModel
    from lora_lab_widgets.planned import Planned


def form_of(plan: PlanModel, planned: Planned) -> dict[str, Any]:
    """Return {"wrong", "more", "rates", "rate", "best_by"}; see `RunPanel.plan`."""
    settings = planned.settings
    task = plan.tasks.get(settings["task"])
    metrics = [[metric.name, metric.label] for metric in task.metrics] if task else []
    return {
        "wrong": dict(planned.wrong),
        "more": [field.name for field in plan.fields(settings) if field.more],
        "rates": {name: plan.rate_of(name) for name in entries()},
        "rate": _rate(planned, plan.anatomy.shape.hidden_size),
        "best_by": [["", "loss"], *metrics],
    }


def _rate(planned: Planned, width: int | None) -> str:
    """Say whose the learning rate is, or what the method's own would be, and where that is from."""
    entry, given = planned.entry, planned.settings["learning_rate"]
    if entry is None or not (reason := entry.rate_reason(width)):
        return ""
    own = entry.rate_for(width)
    rate = f"{own:g}".replace("e-0", "e-")
    if given == own:
        return f"learning rate {rate} is {entry.name}'s own: {reason}"
    return f"{entry.name}'s own learning rate is {rate}: {reason}"
