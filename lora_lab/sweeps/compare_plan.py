"""A comparison as a file: `lora-lab compare compare.yaml`, here or on a cluster.

model: smollm2-135m
task: mini-e2e
methods: [{class: LoraConfig, r: 8}, {class: BitFitConfig}, {class: FullConfig}]  # or lists
rates: {LoRA: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "": [1e-5, 1e-4, 1e-3]}   # or one list for all
seeds: 3
train_examples: [100, 1000]
budget: 1000000
metric: bleu
training: {max_steps: 200}
output_dir: runs
name: compare
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import user_path
from lora_lab._util.json_files import misfit, words_of
from lora_lab._util.yaml import read_yaml
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.run_file import RunConfig, within_a_line
from lora_lab.runs.schema import CompareFile
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.comparison import Comparison
from lora_lab.sweeps.design import Design
from lora_lab.sweeps.plan import anatomy_of, method_from_file
from lora_lab.sweeps.store import as_begun, checked_name
from lora_lab.tasks.load import load_task
from lora_lab.training.api import load

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_NAME = "compare"  # where the file has none
_OF_RUNS = "configs", "start_from"  # of a run file, and nothing of a comparison


@dataclass(frozen=True)
class ComparePlan:
    """What is compared, on what.

    Attributes:
        run_config: model and task, and where the runs go.
        design: what is tried.
    """

    run_config: RunConfig
    design: Design

    @classmethod
    def read(cls, path: str | Path) -> ComparePlan:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or has a field or value that cannot be.
            ModelError, TaskError: there is no such model or task, or it has too few examples.
        """
        values, where = read_yaml(path), str(path)
        own = {name: values[name] for name in CompareFile.__annotations__ if name in values}
        rest = {name: value for name, value in values.items() if name not in own}
        try:
            if odd := [name for name in _OF_RUNS if name in rest]:
                raise ConfigError(f"{odd[0]} is a run's; a comparison has methods")
            training = rest.pop("training", None) or {}
            run_config = RunConfig.from_dict(rest, where)
            checked_name(run_config.name or _NAME)
            plan = cls(run_config, _design(own, training))
            for part in plan.parts():
                part.cells()  # says now what cannot be
        except ConfigError as error:
            text = str(error).removeprefix(f"{where}: ")
            raise ConfigError(f"{where}: {within_a_line(text)}") from None
        return plan

    def parts(self) -> tuple[ComparePart, ...]:
        """Return its sweeps, one for each number of training examples."""
        tasks, _ = self.design.tasks(load_task(**self.run_config.task))
        # The model is read only where something follows from it: a file may be of one elsewhere.
        needed = self.design.budget is not None or self.design.has_own_rates
        layers = anatomy_of(self.run_config) if needed else None
        return tuple(self._part(size, task, layers) for size, task in tasks.items())

    def comparison(self) -> Comparison:
        """Load model and data, and return the comparison, idle."""
        lm, task = load(self.run_config)
        return Comparison.of(lm, task, self.design, self.folder, self.name)

    @property
    def name(self) -> str:
        """Of its sweeps' folders, before the number of training examples."""
        return self.run_config.name or _NAME

    @property
    def folder(self) -> Path:
        """Where its sweeps' folders are."""
        return user_path(self.run_config.output_dir, RunError).resolve()

    def _part(self, size: int, task: Task, layers: Anatomy | None) -> ComparePart:
        folder = self.folder / f"{self.name}-{size}"
        design = self.design if layers is None else self.design.at_width(layers.shape.hidden_size)
        return ComparePart(self, size, folder, as_begun(design.cells(task, layers), folder))


@dataclass(frozen=True)
class ComparePart:
    """One sweep of a comparison, as `sweep_on_ray` trains it.

    Attributes:
        plan: the comparison.
        size: how many examples it trains on.
        folder: where its files go.
        trained: its cells.
        asha: None; all cells are trained to their end.
    """

    plan: ComparePlan
    size: int
    folder: Path
    trained: tuple[Cell, ...]
    asha: AshaConfig | None = None

    def cells(self) -> tuple[Cell, ...]:
        """Return what is to be trained."""
        return self.trained

    def load(self) -> tuple[LoadedModel, Task]:
        """Load the model, and the task that chooses rates."""
        lm, task = load(self.plan.run_config)
        return lm, self.plan.design.tasks(task)[0][self.size]


def _design(own: Mapping[str, Any], training: Mapping[str, Any]) -> Design:
    if (odd := misfit(own, CompareFile)) is not None:
        raise ConfigError(f"{odd} is {own[odd]!r}; it must {words_of(CompareFile, odd)}")
    if not own.get("methods"):
        raise ConfigError("methods are missing; list some, such as - {class: LoraConfig, r: 8}")
    given = {name: value for name, value in own.items() if value is not None}
    methods = list(map(method_from_file, given.pop("methods")))
    return Design.of(methods, training=training, **given)
