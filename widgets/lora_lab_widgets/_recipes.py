"""What is set up in the workbench as a run file or a sweep file, for machines without it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.yaml import to_yaml
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.plain import method_to_dict
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks.sources import task_source
from lora_lab.training.config import TrainingConfig
from lora_lab.training.resume import model_source
from lora_lab_widgets._sweep_plan import as_grid

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.sweeps.asha import AshaConfig
    from lora_lab.sweeps.cells import Cell

_COMMANDS = (
    ("lora-lab train {}", "on one machine, without a notebook"),
    ("accelerate launch -m lora_lab train {}", "on many GPUs and nodes"),
)
_SWEEP_COMMANDS = (
    ("lora-lab sweep {}", "on one machine, without a notebook"),
    ("lora-lab sweep {} --ray auto", "on a Ray cluster"),
)


def written(
    lm: LoadedModel,
    task: Any,
    configs: Sequence[MethodConfig],
    training: Mapping[str, Any],
    output_dir: Path,
) -> dict[str, Any]:
    """Write run.yaml into the notebook's folder; return its path, and the commands that take it.

    A file of that name with something else in it stays: this one is then run-2.yaml, and so on.

    Raises:
        ConfigError: a model or a task of one's own, which no file can name; settings that cannot
            be; or the folder takes no file.
    """
    recipe = _recipe(lm, task, configs, TrainingConfig.from_dict(training), output_dir, "run")
    return _put("run", recipe.to_yaml(), _COMMANDS)


def written_sweep(
    lm: LoadedModel,
    task: Any,
    cells: Sequence[Cell],
    name: str,
    asha: AshaConfig | None,
    output_dir: Path,
) -> dict[str, Any]:
    """Write sweep.yaml beside it; what is finished here is skipped there, and the other way round.

    Raises:
        ConfigError: as `written`.
    """
    first = cells[0]
    recipe = _recipe(lm, task, first.configs, first.training, output_dir, "sweep")
    values = dataclasses.replace(recipe, name=name).to_dict()
    values["grid"] = as_grid(cells)
    if asha is not None:
        values["early_stopping"] = dataclasses.asdict(asha)
    plain = json.loads(json.dumps(values))  # YAML has lists, and no tuples
    return _put("sweep", to_yaml(plain), _SWEEP_COMMANDS)


def _recipe(
    lm: LoadedModel,
    task: Any,
    configs: Sequence[MethodConfig],
    training: TrainingConfig,
    output_dir: Path,
    stem: str,
) -> RunConfig:
    recipe = RunConfig.from_dict(
        {
            "fingerprints": {},  # so it is read as a run's own description
            "model": {"name": lm.card.name},
            "task": {"name": task.name},
            "sources": {"model": model_source(lm, task), "task": task_source(task)},
            "configs": [method_to_dict(config) for config in configs],
            "training": training.to_dict(),
        },
        f"{stem}.yaml",
    )
    # A folder of this machine would not be there on another.
    parent = "runs" if output_dir.is_absolute() else str(output_dir)
    return dataclasses.replace(recipe, output_dir=parent)


def _put(stem: str, text: str, commands: Sequence[tuple[str, str]]) -> dict[str, Any]:
    try:
        path = _place(stem, text)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{stem}.yaml cannot be written into {Path.cwd()}: {error.strerror or error}; "
            "os.chdir() to a folder that takes it"
        ) from error
    name = shlex.quote(path.name)
    return {
        "path": str(path),
        "commands": [{"text": line.format(name), "hint": hint} for line, hint in commands],
    }


def _place(stem: str, text: str) -> Path:
    """Return the first of run.yaml, run-2.yaml … that is not there, or holds just this."""
    for number in itertools.count(1):
        path = Path.cwd() / (f"{stem}.yaml" if number == 1 else f"{stem}-{number}.yaml")
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == text:
            return path
    raise AssertionError("numbers do not end")
