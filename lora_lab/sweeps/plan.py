"""A sweep as a file: `lora-lab sweep sweep.yaml`, here or on a cluster.

model: smollm2-135m
task: mini-e2e
configs: [{class: LoraConfig, r: 8, target_modules: [q, v]}]     # what the fields change
training: {max_steps: 200}
grid: {r: [1, 4, 16], target_modules: [[q], [q, v]], layers: [0-14, 15-29], seed: [0, 1]}
random: {learning_rate: {log_uniform: [1e-4, 1e-2]}}
samples: 4
early_stopping: {grace_steps: 20, reduction: 3}
output_dir: runs
name: ranks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import user_path
from lora_lab._util.json_files import misfit, words_of
from lora_lab._util.yaml import read_yaml
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.plain import method_from_dict
from lora_lab.models.classifier import with_head_for
from lora_lab.models.load import model_config
from lora_lab.runs.run_file import RunConfig, within_a_line
from lora_lab.runs.schema import SweepFile
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Cell, Space, cells
from lora_lab.sweeps.store import as_begun, checked_name
from lora_lab.tasks.load import load_task
from lora_lab.training.api import load

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_EXAMPLES = {
    "grid": "r: [1, 4]",
    "random": "learning_rate: {log_uniform: [1e-4, 1e-2]}",
    "early_stopping": "grace_steps: 20",
}
_NAME = "sweep"  # where the file has none


@dataclass(frozen=True)
class SweepPlan:
    """What is tried, on what.

    Attributes:
        run_config: model, task, and the configs that the fields change.
        space: the fields.
        asha: the rule of early stopping; None: every cell is trained to its end.
    """

    run_config: RunConfig
    space: Space
    asha: AshaConfig | None = None

    @classmethod
    def read(cls, path: str | Path) -> SweepPlan:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or has a field or value that cannot be.
            ModelError, TaskError: layers are tried, and there is no such model or task.
        """
        values = read_yaml(path)
        where = str(path)
        run_config = RunConfig.from_dict(
            {k: v for k, v in values.items() if k not in SweepFile.__annotations__}, where
        )
        try:
            if run_config.start_from:
                raise ConfigError("start_from is one run's; leave it out: a sweep's runs are fresh")
            space = Space(
                grid=_methods(_mapping(values, "grid")),
                random=_drawn_methods(_mapping(values, "random")),
                samples=values.get("samples", 1),
                seed=values.get("seed", 0),
            )
            checked_name(run_config.name or _NAME)
            plan = cls(run_config, space, _rule(values))
            cells = plan.cells()  # says now what cannot be
            if plan.asha is not None and all(cell.training.max_steps > 0 for cell in cells):
                plan.asha.check(cell.training.max_steps for cell in cells)  # not yet of epochs
        except ConfigError as error:
            raise ConfigError(f"{where}: {within_a_line(error)}") from None
        return plan

    @property
    def folder(self) -> Path:
        """Where the sweep's files go."""
        config = self.run_config
        return user_path(config.output_dir, RunError).resolve() / (config.name or _NAME)

    def cells(self) -> tuple[Cell, ...]:
        """Return what is to be trained."""
        layers = anatomy_of(self.run_config) if self.space.has_layers else None
        config = self.run_config
        return as_begun(cells(config.configs, config.training, self.space, layers), self.folder)

    def load(self) -> tuple[LoadedModel, Task]:
        """Load model and data; see `lora_lab.training.api.load`."""
        return load(self.run_config)


def anatomy_of(run_config: RunConfig) -> Anatomy:
    """Return the anatomy of the model that a run file loads, without its weights.

    Raises:
        ModelError, TaskError: there is no such model or task.
    """
    name = run_config.model["name"]
    config, head = model_config(name), load_task(**run_config.task).head
    return anatomy(with_head_for(name, config, head) if head else config)


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    if misfit({name: values.get(name)}, SweepFile):
        must = words_of(SweepFile, name)
        raise ConfigError(f"{name} is {values[name]!r}; it must {must}, such as {_EXAMPLES[name]}")
    return dict(values.get(name) or {})


def _rule(values: Mapping[str, Any]) -> AshaConfig | None:
    if values.get("early_stopping") is None:
        return None
    given = _mapping(values, "early_stopping")
    known = [field.name for field in dataclasses.fields(AshaConfig)]
    if unknown := given.keys() - set(known):
        raise ConfigError(
            f"early_stopping has an unknown field {min(unknown)!r}; known are {', '.join(known)}"
        )
    return AshaConfig(**given)


def _methods(grid: dict[str, Any]) -> dict[str, Any]:
    """Return the grid with its methods built."""
    if isinstance(methods := grid.get("configs"), list):
        grid["configs"] = list(map(method_from_file, methods))
    return grid


def _drawn_methods(random: dict[str, Any]) -> dict[str, Any]:
    """Return the draws with their methods built."""
    draw = random.get("configs")
    if isinstance(draw, Mapping) and isinstance(methods := draw.get("choice"), list):
        random["configs"] = {**draw, "choice": list(map(method_from_file, methods))}
    return random


def method_from_file(given: Any) -> tuple[Any, ...]:
    """Return the configs of a method in a file: a class with its fields, or a list of some."""
    return tuple(map(method_from_dict, given if isinstance(given, list) else [given]))
