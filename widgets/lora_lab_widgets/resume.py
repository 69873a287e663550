"""What the history does with a run on disk and the model in the notebook; called on threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab import reports
from lora_lab.anatomy.heads import head_modules
from lora_lab.configs import MethodConfig
from lora_lab.methods.head.adapter import with_head
from lora_lab.methods.head.config import HeadConfig
from lora_lab.runs.records import RunRecord
from lora_lab.training.fingerprints import task_fingerprints
from lora_lab.training.planned_cost import planned_cost
from lora_lab.training.resume import resume
from lora_lab.training.run import Run
from lora_lab_widgets.live_adapter import over

if TYPE_CHECKING:
    from torch import nn

    from lora_lab.models.load import LoadedModel


def resumed_run(record: RunRecord, lm: LoadedModel, tasks: Iterable[Any]) -> Run:
    """Return a run that goes on with one on disk, not started yet.

    Args:
        record: the run on disk.
        lm: the model in the notebook; it has to be the run's.
        tasks: those that the notebook has; the run's own is loaded where it is none of them.

    Raises:
        RunError: see `lora_lab.resume`.
    """
    known = record.config.get("fingerprints") or {}
    own = next((task for task in tasks if is_of(task, known)), None)
    return resume(record, lm, own, start=False)


def is_of(task: Any, known: Mapping[str, str]) -> bool:
    """Whether a task is the one of which a run noted these fingerprints."""
    now = task_fingerprints(task)
    return "data" in known and all(known.get(key, own) == own for key, own in now.items())


def chosen_configs(run: Run) -> tuple[MethodConfig, ...]:
    """Return a run's configs as a person chose them: without the head that it put there itself."""
    return chosen_parts(run.model, run.configs, has_head=bool(run.task.head))


def chosen_parts(
    model: nn.Module, configs: tuple[MethodConfig, ...], *, has_head: bool
) -> tuple[MethodConfig, ...]:
    """Return configs without the head that a run on a task of classes puts there itself.

    Args:
        model: that they are for.
        configs: a run's.
        has_head: whether its task asks for one.
    """
    if not has_head:
        return configs
    heads = head_modules(model)
    chosen: list[MethodConfig] = []
    for config in configs:
        if saved := getattr(config, "modules_to_save", None):
            own = tuple(name for name in saved if name not in heads)
            chosen.append(config.replace(modules_to_save=own or None))
        elif config != HeadConfig():
            chosen.append(config)
    return tuple(chosen) if chosen and with_head(model, chosen) == configs else configs


def write_report(record: RunRecord, run: Run | None) -> Path:
    """Write report.html into a run's folder; return its path.

    Of the run in the notebook it is the whole report; of another one what its files tell.

    Raises:
        AdapterError: the run left no adapter that can be looked into.
        RunError: the file cannot be written.
    """
    path = record.folder / "report.html"
    if run is not None and run.folder == record.folder and _whole(run):
        cost = planned_cost(run.lm, run.task, run.configs, run.training)
        return reports.write_run_report(run, cost, path)
    return reports.write_inspection(path, reports.inspect_adapter(record.folder))


def _whole(run: Run) -> bool:
    """Return whether a run is over and has its adapter, one of ΔW = BA, on the model still."""
    return run.is_attached and bool(run.adapter and run.adapter.sites) and over(run.state)
