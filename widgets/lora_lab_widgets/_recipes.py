"""What is set up in the workbench as a run file, for machines without it."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.configs import MethodConfig, TrainingConfig
from lora_lab.configs.plain import method_to_dict
from lora_lab.errors import ConfigError
from lora_lab.runs.recipe import Recipe
from lora_lab.runs.resuming import model_source
from lora_lab.tasks.sources import task_source

if TYPE_CHECKING:
    from lora_lab.models import LoadedModel

_COMMANDS = (
    ("lora-lab train {}", "on one machine, without a notebook"),
    ("accelerate launch -m lora_lab train {}", "on many GPUs and nodes"),
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
    recipe = Recipe.from_dict(
        {
            "fingerprints": {},  # so it is read as a run's own description
            "model": {"name": lm.card.name},
            "task": {"name": task.name},
            "sources": {"model": model_source(lm, task), "task": task_source(task)},
            "configs": [method_to_dict(config) for config in configs],
            "training": TrainingConfig.from_dict(training).to_dict(),
        },
        "run.yaml",
    )
    # A folder of this machine would not be there on another.
    parent = "runs" if output_dir.is_absolute() else str(output_dir)
    text = dataclasses.replace(recipe, output_dir=parent).to_yaml()
    try:
        path = _place(text)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run.yaml cannot be written into {Path.cwd()}: {error.strerror or error}; "
            "os.chdir() to a folder that takes it"
        ) from error
    name = shlex.quote(path.name)
    return {
        "path": str(path),
        "commands": [{"text": line.format(name), "hint": hint} for line, hint in _COMMANDS],
    }


def _place(text: str) -> Path:
    """Return the first of run.yaml, run-2.yaml … that is not there, or holds just this."""
    for number in itertools.count(1):
        path = Path.cwd() / ("run.yaml" if number == 1 else f"run-{number}.yaml")
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == text:
            return path
    raise AssertionError("numbers do not end")
