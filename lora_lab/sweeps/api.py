"""`sweep`: starts a grid or random draws in the background."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import user_path
from lora_lab.anatomy.api import anatomy
from lora_lab.errors import RunError
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.models.given import as_loaded
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Space, cells
from lora_lab.sweeps.local import Sweep
from lora_lab.sweeps.store import checked_name
from lora_lab.tasks.load import Data, as_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task


def sweep(
    lm: LoadedModel | PreTrainedModel | str,
    task: Task | Data,
    config: MethodConfig | Sequence[MethodConfig] | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    random: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    samples: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
    early_stopping: AshaConfig | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    name: str = "sweep",
    start: bool = True,
    **training: Any,
) -> Sweep:
    """Train every combination in the background, one after another; returns at once.

    Cells that an earlier call of the same name has finished are skipped, and one that was cut off
    goes on from its last checkpoint.

    >>> found = sweep(lm, "mini-e2e", grid={"r": [1, 4, 16], "seed": [0, 1]}, max_steps=100)
    >>> found.results()
    >>> sweep_map(found.records())

    Args:
        lm: what `load_model` returns or takes, or a transformers model, then with its tokenizer.
        task: a task, or what `load_task` takes.
        config: what the fields change; default `LoraConfig()`.
        grid: {field: values}, fields of the config or of `TrainingConfig`; "configs" lists
            methods, "r" is the rank of each, and "layers" where the targets are kept: ["0-14",
            "15-29", "all"]. A method without a field is trained once for all of its values.
        random: {field: {"choice" | "uniform" | "log_uniform": […]}}, drawn `samples` times.
        samples: random draws for each combination of the grid.
        tokenizer: of a model of your own.
        early_stopping: end what is behind; None: every cell is trained to its end.
        output_dir: where the sweep's folder is made.
        name: of the folder.
        start: False makes the sweep and leaves it idle.
        **training: the fields of `TrainingConfig` that all cells share.

    Raises:
        ConfigError: a field or value that cannot be, in any cell; nothing is trained then.
        TaskError: the task cannot be loaded.
        RunError: the folder belongs to a sweep of another model or task.
    """
    checked_name(name)
    common = TrainingConfig.from_dict(training)
    task = as_task(task, common.max_steps, common.step_size)
    lm = as_loaded(lm, tokenizer, task.head, "ll.sweep(model, …, tokenizer=tokenizer)")
    space = Space(grid or {}, random or {}, samples)
    layers = anatomy(lm.model) if space.has_layers else None
    found = cells(config or LoraConfig(), common, space, layers)
    folder = user_path(output_dir, RunError).resolve() / name
    made = Sweep(lm, task, found, folder, early_stopping)
    return made.start() if start else made
