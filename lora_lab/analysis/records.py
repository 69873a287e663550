"""What comparisons read of the runs on disk, and which runs they refuse to compare."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_lab._util.format import format_count
from lora_lab.analysis.identity import HASHES, difference, fingerprints
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord
from lora_lab.runs.training_config import UNTOLD, TrainingConfig, warmup
from lora_lab.tasks.metrics import NATS

_MODEL = ("hub_id", "name", "parameters", "dtype")
_PATIENCE = "early_stopping_patience"
_LOOKS = {"eval_strategy", "eval_steps", "metric_for_best_model", "greater_is_better"}


def shared_settings(record: RunRecord, free: Iterable[str]) -> dict[str, Any]:
    """Return a run's task, model and training settings, flat; what it is older than as it was.

    Args:
        record: one run.
        free: the training settings that are left out: they may differ from run to run.

    Raises:
        KeyError: config.json is not a run's.
    """
    model: Mapping[str, Any] = record.config["model"]
    start = record.config.get("start_from") or {}
    training = training_settings(record)
    free = set(free)
    if "max_steps" not in free:  # a share and a number that come to the same are the same
        training["warmup_steps"] = warmup(training["max_steps"], training["warmup_steps"])
    return {
        "task": record.config["task"]["name"],
        **fingerprints(record),
        **{f"model {key}": model.get(key) for key in _MODEL},
        "processes": record.config.get("processes", 1),
        "start_from": {key: start[key] for key in sorted(start) if start[key] is not None},
        **{key: value for key, value in training.items() if key not in free},
    }


def training_settings(record: RunRecord) -> dict[str, Any]:
    """Return how a run trains; a field that it is older than is what was done before it.

    Looks at the held-out examples on the way, by which neither the end nor the best step is chosen,
    change nothing that is learned: what they were does not tell runs apart.

    Raises:
        KeyError: config.json is not a run's.
    """
    usual = vars(TrainingConfig())
    found = {**usual, **UNTOLD, **record.config["training"]}
    idle = set() if found[_PATIENCE] else {"early_stopping_threshold"}
    if not (found[_PATIENCE] or found["load_best_model_at_end"]):
        idle |= _LOOKS
    return found | {name: usual[name] for name in idle}


def refuse_differences(settings: Sequence[Mapping[str, Any]], fix: str) -> None:
    """Raise `RunError` unless all runs have the same settings.

    Args:
        settings: of each run, as `shared_settings` returns them.
        fix: what to give instead.
    """
    if not settings:
        raise RunError("there are no runs to compare; train some, or name another folder of runs")
    if (key := difference(settings)) is not None:
        values = list(dict.fromkeys(json.dumps(one.get(key)) for one in settings))
        most = 12 if key in HASHES else 200
        texts = [text if len(text) <= most else f"{text[:most]}…" for text in values[:3]]
        shown = ", ".join(texts) + (", …" if len(values) > 3 else "")
        raise RunError(f"these runs are not comparable: {key} is {shown}; {fix}")


def end_state(record: RunRecord) -> str | None:
    """Return how a run ended; None: it has not, or was cut off."""
    return record.summary.get("state") if record.summary else None


def metrics(record: RunRecord) -> Mapping[str, Any]:
    """Return a run's metrics, as far as it came."""
    return (record.summary or {}).get("metrics", {})


def loss_unit(record: RunRecord) -> str:
    """Return the unit of a run's losses; older runs have none but cross-entropy."""
    return record.config["task"].get("loss_unit", NATS)


def final_score(record: RunRecord, metric: str) -> float | None:
    """Return a finished run's metric; None where it is not there, or not finite."""
    score = metrics(record).get(metric) if end_state(record) == "done" else None
    return float(score) if score is not None and math.isfinite(score) else None


def nothing_to_show(records: Sequence[RunRecord], metric: str) -> RunError:
    """Return the error of a comparison in which no run ended with the metric."""
    known = {name for record in records for name in metrics(record)}
    if known - {metric}:
        shown = ", ".join(sorted(known))
        return RunError(f"no run ended with {metric!r}; the runs' metrics are {shown}")
    return RunError(
        f"none of {format_count(len(records))} runs ended with {metric!r}: they failed, are still "
        "running, or had eval_examples=0"
    )
