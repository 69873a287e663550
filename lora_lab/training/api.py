"""`train`, and the run that a file asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_lab._util.torch_modes import plain_modes
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel, load_model
from lora_lab.runs.records import RunRecord
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.load import Data, as_task, load_task
from lora_lab.training import processes
from lora_lab.training.run import Run
from lora_lab.training.start_from import find_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train(
    lm: LoadedModel | PreTrainedModel | str,
    task: Task | Data,
    config: MethodConfig | Sequence[MethodConfig] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    name: str | None = None,
    start: bool = True,
    start_from: Run | RunRecord | str | os.PathLike[str] | None = None,
    wait_at_exit: bool = True,
    **training: Any,
) -> Run:
    """Train an adapter in the background; returns at once.

    While another run trains in this process, it is queued; see `Run.start`.

    >>> run = train(lm, "mini-e2e", LoraConfig(r=8, lora_alpha=16), max_steps=60)
    >>> run.result().metrics

    A task of classes needs a model with a head for them, `load_model(…, labels=task.labels)`; the
    head is trained whole beside what the config says.

    Args:
        lm: what `load_model` returns or takes, or a transformers model, then with its tokenizer.
        task: a task, or what `load_task` takes: a name, a file, rows in memory. Of a stream as
            many rows are taken as the steps reach.
        config: any method's config, or a list of them; default `start_from`'s, or `LoraConfig()`.
        tokenizer: of a model of your own.
        output_dir: where the run's folder is made.
        name: part of the folder's name.
        start: False makes the run and leaves it idle.
        start_from: a run that is over, its id or its folder, or an adapter's folder: ΔW starts as
            it ended there. All else begins anew: this is a new run, on any data, with any settings.
        wait_at_exit: a script that ends waits for the run, until Ctrl-C. False, and in a kernel
            that is shut down: it ends at its next step, with a checkpoint and a line on stderr. A
            script whose run fails, and that does not look at it, ends with status 120 and a line.
        **training: the fields of `TrainingConfig`.

    Raises:
        ConfigError: an unknown field, a config or model that cannot be trained so, or a model
            without its tokenizer.
        TaskError: the task cannot be loaded.
        RunError: the folder cannot be made, or `start_from` is no run that is over.
        AdapterError: what it starts from is for another base.
    """
    training_config = TrainingConfig.from_dict(training)
    begun = None if start_from is None else find_start(start_from, output_dir)
    task = as_task(task, training_config.max_steps, processes.count() * training_config.step_size)
    lm = as_loaded(lm, tokenizer, task.head, "ll.train(model, …, tokenizer=tokenizer)")
    config = config or (LoraConfig() if begun is None else None)
    own: Any = {"start_from": begun, "wait_at_exit": wait_at_exit}
    with plain_modes():
        run = Run(lm, task, config, training_config, output_dir, name, **own)
        return run.start() if start else run


def load(config: RunConfig) -> tuple[LoadedModel, Task]:
    """Load the model and the task that a run file names.

    Raises:
        ModelError, TaskError: as `load_model` and `load_task`.
    """
    task = load_task(**config.task)
    return load_model(**{**config.model, **task.head}), task


def make_run(config: RunConfig) -> Run:
    """Load everything that a run file names; return the run, idle."""
    lm, task = load(config)
    start = None if config.start_from is None else find_start(config.start_from, config.output_dir)
    return Run(
        lm,
        task,
        config.configs or None,
        config.training,
        config.output_dir,
        config.name,
        start_from=start,
    )
