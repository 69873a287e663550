"""What is set up in the workbench as a run file or a sweep file, for machines without it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import write_text_atomic
from lora_lab._util.yaml import to_yaml
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError, as_cause
from lora_lab.methods.plain import method_to_dict
from lora_lab.models.load import model_source
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.sources import task_source
from lora_lab_widgets.decoding_fields import task_to_train
from lora_lab_widgets.sweep_plan import OF_TRAINING, as_grid, design_of

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.sweeps.cells import Cell
    from lora_lab.tasks.base import Task
    from lora_lab_widgets.plan import PlanModel
    from lora_lab_widgets.sweep_plan import SweepTexts

_COMMANDS = (
    ("lora-lab train {}", "on one machine, without a notebook"),
    ("torchrun --nproc_per_node gpu -m lora_lab train {}", "on all GPUs of a machine"),
)
_SWEEP_COMMANDS = (
    ("lora-lab sweep {}", "on one machine, without a notebook"),
    ("lora-lab sweep {} --ray auto", "on a Ray cluster"),
)
_COMPARE_COMMANDS = (
    ("lora-lab compare {}", "on one machine, without a notebook"),
    ("lora-lab compare {} --ray auto", "on a Ray cluster"),
)


def write_run_file(
    plan: PlanModel, settings: Mapping[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Write run.yaml into the notebook's folder; return its path, and the commands that take it.

    A file of that name with something else in it stays: this one is then run-2.yaml, and so on.

    Args:
        plan: what is to be trained.
        settings: the plan's, with numbers in place of what was typed.
        output_dir: where the runs' folders go.

    Raises:
        ConfigError: a model or a task of one's own, which no file can name; settings that cannot
            be; or the folder takes no file.
    """
    training = TrainingConfig.from_dict(plan.training(settings))
    task = task_to_train(plan, settings)
    config = _run_config(plan.lm, task, plan.config.parts, training, output_dir)
    return _write("run", config.to_yaml(), _COMMANDS)


def write_sweep_file(
    plan: PlanModel, cells: Sequence[Cell], texts: SweepTexts, output_dir: Path
) -> dict[str, Any]:
    """Write sweep.yaml beside it; what is finished here is skipped there, and the other way round.

    Args:
        plan: has model and task.
        cells: what is to be trained.
        texts: from which they come.
        output_dir: where the sweeps' folders go.

    Raises:
        ConfigError: as `write_run_file`.
    """
    first = cells[0]
    config = _run_config(plan.lm, task_to_train(plan), first.configs, first.training, output_dir)
    values = dataclasses.replace(config, name=texts.name).to_dict()
    values["grid"] = as_grid(cells)
    if texts.asha is not None:
        values["early_stopping"] = dataclasses.asdict(texts.asha)
    plain = json.loads(json.dumps(values))  # YAML has lists, and no tuples
    return _write("sweep", to_yaml(plain), _SWEEP_COMMANDS)


def write_compare_file(
    plan: PlanModel, cells: Sequence[Cell], texts: SweepTexts, output_dir: Path
) -> dict[str, Any]:
    """Write compare.yaml beside it, with the methods, rates and seeds of a comparison.

    Args:
        plan, cells, texts, output_dir: as `write_sweep_file` takes them.

    Raises:
        ConfigError: as `write_run_file`.
    """
    design = design_of(texts, plan)
    config = _run_config(
        plan.lm, task_to_train(plan), cells[0].configs, design.training, output_dir
    )
    values = dataclasses.replace(config, name=texts.name).to_dict()
    del values["configs"]
    values["methods"] = [list(map(method_to_dict, own.parts)) for own in design.methods]
    if "learning_rate" in texts.axes:
        values["rates"] = list(texts.axes["learning_rate"])
    values["seeds"] = list(design.seeds)
    values["training"] = {
        name: own for name, own in values["training"].items() if name not in OF_TRAINING
    }
    plain = json.loads(json.dumps(values))  # YAML has lists, and no tuples
    return _write("compare", to_yaml(plain), _COMPARE_COMMANDS)


def _run_config(
    lm: LoadedModel,
    task: Task,
    configs: Sequence[MethodConfig],
    training: TrainingConfig,
    output_dir: Path,
) -> RunConfig:
    run_config = RunConfig.from_dict(
        {
            "fingerprints": {},  # so it is read as a run's own description
            "model": {"name": lm.card.name},
            "task": {"name": task.name},
            "sources": {"model": model_source(lm, task.head), "task": task_source(task)},
            "configs": [method_to_dict(config) for config in configs],
            "training": training.to_dict(),
        },
        "run.yaml",
    )
    # A folder of this machine would not be there on another.
    parent = "runs" if output_dir.is_absolute() else str(output_dir)
    return dataclasses.replace(run_config, output_dir=parent)


def _write(stem: str, text: str, commands: Sequence[tuple[str, str]]) -> dict[str, Any]:
    try:
        path = _free_path(stem, text)
        write_text_atomic(path, text)
    except OSError as error:
        raise ConfigError(
            f"{stem}.yaml cannot be written into {Path.cwd()}: {error.strerror or error}; "
            "os.chdir() to a folder that takes it"
        ) from as_cause(error)
    name = shlex.quote(path.name)
    return {
        "path": str(path),
        "commands": [{"text": line.format(name), "hint": hint} for line, hint in commands],
    }


def _free_path(stem: str, text: str) -> Path:
    """Return the first of run.yaml, run-2.yaml … that is not there, or holds just this."""
    for number in itertools.count(1):
        path = Path.cwd() / (f"{stem}.yaml" if number == 1 else f"{stem}-{number}.yaml")
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == text:
            return path
    raise AssertionError("numbers do not end")
