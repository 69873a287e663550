"""Runs as files of PEFT's method comparison, which its own scripts and pages read.

The layout is that of huggingface/peft, method_comparison/MetaMathQA (`log_results` in utils.py):
a file a run with run_info, train_info and meta_info. Some things are not the same, and each file
says so in run_info["notes"]: of memory the peak alone is known, and stands for mean and 99th
percentile too; tokens are those that have a loss; the total time is the trained time; what was
forgotten is measured on text that the base model wrote itself, in place of Wikipedia's; a score
that is no share of answers, such as a correlation, may lie outside 0 to 1.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import disk_errors, make_dirs, write_text_atomic
from lora_lab._util.json_files import read_json
from lora_lab.analysis.methods import named, settings_of_rows
from lora_lab.analysis.records import end_state, metrics, training_settings
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.head.config import HeadConfig
from lora_lab.redaction import redacted_values
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import KEPT, changes, metric_of

if TYPE_CHECKING:
    from lora_lab.sweeps.cells import Cell
    from lora_lab.tasks.base import Task

FOLDER = "peft-comparison"
_RIGHT = ("accuracy", "execution", "logical_form", "exact_match")  # shares of answers
_LAST = (
    20  # the training loss is of so many parts of the steps the last one, as PEFT's 250 of 5,000
)
_LONGEST = 150  # bytes of a file's name
_PACKAGES = "transformers", "datasets", "torch", "bitsandbytes", "peft"
_OF_BASE = FullConfig.__name__, BitFitConfig.__name__
_NOTES = (
    "of memory the peak alone is known; it stands for the mean and the 99th percentile too",
    "tokens are those of completions, which have a loss",
    "the total time is the trained time, without evaluations",
    "forgetting is the rise of the loss on text that the base model wrote itself, not Wikipedia's",
)


def export_peft_comparison(records: Iterable[RunRecord], folder: Path) -> list[Path]:
    """Write each run that has ended as a file of PEFT's comparison; return the files.

    The test accuracy, 0 to 1, is the share of right answers among the run's held-out examples:
    accuracy, exact match, or whichever the task has; else a hundredth of its first score, which may
    be below 0 (a correlation) or above 1 (CIDEr), and the file says which.

    Args:
        records: of runs; those that have not come to their end are left out.
        folder: where the files go; it is made.

    Raises:
        RunError: none has ended, one has no score of answers, or a file cannot be written.
    """
    done = [record for record in records if end_state(record) == "done"]
    if not done:
        raise RunError("no run has come to its end; there is nothing to export")
    words = settings_of_rows(done, ("learning_rate", "seed"))
    sizes = [record.config["task"].get("examples") for record in done]
    if len(set(sizes)) > 1:
        words = [f"{own} {size} examples" for own, size in zip(words, sizes, strict=True)]
    told = {}
    for record, setting in zip(done, words, strict=True):
        name = _experiment(record, setting)
        told[f"{name}-{record.id.rpartition('/')[2]}" if name in told else name] = record
    texts = {name: _text(name, record) for name, record in told.items()}
    found = []
    with disk_errors(folder):
        make_dirs(folder)
        for name, text in texts.items():
            found.append(folder / f"{name.replace('/', '--')}.json")
            write_text_atomic(found[-1], text)
    return found


def check_export(task: Task, cells: Iterable[Cell]) -> None:
    """Refuse what no file of PEFT's layout could be written of, before it is trained.

    Raises:
        ConfigError: the runs would have no score of their answers.
    """
    answers = any(metric.higher_is_better for metric in task.metrics)
    if not answers or not all(cell.training.eval_examples for cell in cells):
        what = "eval_examples is 0" if answers else f"{task.name} has no score of answers"
        raise ConfigError(f"{what}, and PEFT's layout has a test accuracy; leave --export out")


def _experiment(record: RunRecord, setting: str) -> str:
    """Return what PEFT calls an experiment: method/model with what else tells it from others."""
    training = training_settings(record)
    parts = (
        *(record.config["model"]["name"], setting),
        *(f"lr{training['learning_rate']:g}", f"seed{training['seed']}"),
    )
    told = "-".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts if part)
    told = told.encode()[:_LONGEST].decode(errors="ignore")
    return f"{re.sub(r'[^a-z0-9+-]+', '-', named(record).lower())}/{told}"


def _text(name: str, record: RunRecord) -> str:
    config, summary = record.config, record.summary or {}
    training, model = training_settings(record), config["model"]
    score, accuracy = _accuracy(record)
    steps = int(summary.get("steps") or training["max_steps"])
    peak = int(summary.get("peak_memory") or 0)
    trainable = int(summary.get("trainable") or 0)
    seconds = float(summary.get("seconds") or 0.0)
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    rows = [row for row in record.open().rows if "loss" in row]
    last = [row["loss"] for row in rows[-max(1, len(rows) // _LAST) :]]
    found = {
        "run_info": {
            "created_at": _created(record),
            "total_time": seconds,
            "experiment_name": name,
            "peft_branch": f"lora-lab {(config.get('versions') or {}).get('lora-lab', '')}".strip(),
            "train_config": _train_config(config, training, batch),
            "peft_config": _peft_config(record),
            "error_msg": "",
            "notes": [*_score_notes(score, accuracy), *_NOTES],
        },
        "train_info": {
            "accelerator_memory_reserved_avg": peak,
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": peak,
            "train_time": seconds,
            "file_size": int(summary.get("checkpoint_bytes") or 0),
            "num_trainable_params": trainable,
            "num_total_params": int(model.get("parameters") or 0) + _added(config, trainable),
            "status": "success",
            "metrics": [
                {
                    "step": steps,
                    "test accuracy": accuracy,
                    "train loss": fmean(last) if last else metrics(record).get("loss_after"),
                    "train samples": steps * batch * config.get("processes", 1),
                    "train total tokens": int(sum(row.get("tokens", 0) for row in rows)),
                    **_forgetting(metrics(record)),
                }
            ],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {config["task"]["name"]: {"sha": None, "created_at": None}},
            "package_info": _packages(config.get("versions") or {}),
            "system_info": {"system": platform.system(), "machine": platform.machine()},
            "pytorch_info": "",
        },
    }
    return json.dumps(redacted_values(found), indent=2) + "\n"


def _added(config: Mapping[str, Any], trainable: int) -> int:
    """Return how many of the trained parameters are none of the base's own."""
    own = [each for each in config["configs"] if each["class"] != HeadConfig.__name__]
    of_base = all(each["class"] in _OF_BASE and not each.get("new_biases", False) for each in own)
    return 0 if of_base else trainable


def _train_config(config: Any, training: Mapping[str, Any], batch: int) -> dict[str, Any]:
    model = config["model"]
    return {
        "model_id": model.get("hub_id") or model["name"],
        "dtype": model.get("dtype"),
        "task": config["task"]["name"],
        "max_seq_length": training["max_length"],
        "batch_size": batch,
        "max_steps": training["max_steps"],
        "seed": training["seed"],
        "grad_norm_clip": training["max_grad_norm"],
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {
            "lr": training["learning_rate"],
            "weight_decay": training["weight_decay"],
        },
        "lr_scheduler": training["lr_scheduler_type"],
    }


def _accuracy(record: RunRecord) -> tuple[str, float]:
    """Return the name of the score that stands for the accuracy, and a hundredth of its value."""
    scores = {
        metric.name: after for metric, _, after in changes(metrics(record)) if after is not None
    }
    known = [name for name in _RIGHT if name in scores]
    known += [name for name in scores if metric_of(name).higher_is_better]
    if not known:
        raise RunError(
            f"run {record.id} has no score of its answers, which PEFT's layout calls the test "
            "accuracy; train with eval_examples, on a task that has one"
        )
    return known[0], scores[known[0]] / 100


def _score_notes(score: str, accuracy: float) -> list[str]:
    label = metric_of(score).label
    told = [f"test accuracy is {label}, held-out"]
    if not 0 <= accuracy <= 1:
        told.append(f"{label} is no share of answers: a hundredth of it may be below 0 or above 1")
    return told


def _forgetting(found: Mapping[str, Any]) -> dict[str, float]:
    """Return how much the loss on the base model's own text rose; PEFT takes Wikipedia's."""
    before, after = (found.get(f"{KEPT.name}_{when}") for when in ("before", "after"))
    return {} if before is None or after is None else {"forgetting": after - before}


def _peft_config(record: RunRecord) -> dict[str, Any] | None:
    """Return the adapter's config as PEFT has it; None of full fine-tuning, as there."""
    method = named(record)
    if method == "FT":
        return None
    try:
        found = read_json(record.folder / "adapter" / "adapter_config.json", dict[str, Any])
    except (OSError, ValueError):
        found = {}
    if isinstance(found.get("peft_type"), str):
        return dict(found)
    return {"peft_type": method.upper(), "configs": list(record.config["configs"])}


def _packages(versions: Mapping[str, str]) -> dict[str, str | None]:
    told = {f"{name}-version": versions.get(name) for name in _PACKAGES}
    return told | {"lora-lab-version": versions.get("lora-lab")}


def _created(record: RunRecord) -> str:
    """Return when a run's folder was made, in UTC."""
    moment = re.match(r"\d{8}-\d{6}", record.folder.name)
    if moment:
        made = datetime.strptime(moment[0], "%Y%m%d-%H%M%S").astimezone()
    else:
        made = datetime.fromtimestamp((record.folder / "config.json").stat().st_mtime, UTC)
    return made.astimezone(UTC).isoformat()
