"""`evaluate`: what a model, bare or adapted, makes of a part of a task's data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lora_lab._util.files import disk_errors, make_dirs, user_path, write_text_atomic
from lora_lab._util.format import format_number
from lora_lab._util.torch_modes import plain_modes
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.methods.api import detach
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.config import need_count
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel
from lora_lab.redaction import redacted_values, shown_redacted
from lora_lab.runs.records import RunRecord, read_record
from lora_lab.runs.run_file import read_configs
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.decoding import Decoding, decoded
from lora_lab.tasks.load import Data, as_task
from lora_lab.tasks.metrics import metric_of
from lora_lab.training.checks import check
from lora_lab.training.data import RunData
from lora_lab.training.own_adapter import on_model
from lora_lab.training.resume import model_of, task_of
from lora_lab.training.run import Run
from lora_lab.training.scores import stuck
from lora_lab.training.start_from import find_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.tasks.intervals import Interval

Part = Literal["train", "validation", "test"]
PREDICTIONS_FILE = "predictions.jsonl"
_NAME = "lora-lab-evaluate"  # of an adapter that is on the model for that long


@shown_redacted
@dataclass(frozen=True)
class Evaluated:
    """What a model came to on a part of a task.

    Attributes:
        task: its name.
        part: "train", "validation" or "test".
        examples: how many were scored.
        of: how many the part has.
        scores: {"loss": mean, and the task's metrics}.
        intervals: {metric: its 95 % interval}; see `lora_lab.tasks.intervals`.
        scoring: how answers are scored, metric by metric; see `Task.scoring`.
        decoding: how answers were written; {} where none are.
        notes: what was cut or left out, a line each.
        predictions: one an example: "input", "references", "prediction".
        file: where these were written; None: nowhere.
    """

    task: str
    part: Part
    examples: int
    of: int
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    scoring: Mapping[str, str] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predictions: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    file: Path | None = None

    def __str__(self) -> str:
        lines = [f"{self.task}, {self.part}: {self.examples:,} of {self.of:,} examples"]
        for name, value in self.scores.items():
            between = ""
            if name in self.intervals:
                low, high = map(format_number, self.intervals[name])
                between = f" (95 % of samples: {low} to {high})"
            lines.append(f"{metric_of(name).title}: {format_number(value)}{between}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, without the predictions."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "predictions"]
        found = {name: getattr(self, name) for name in names}
        return found | {"file": None if self.file is None else str(self.file)}


def evaluate(
    of: Run | RunRecord | LoadedModel | PreTrainedModel | str | os.PathLike[str],
    task: Task | Data | None = None,
    *,
    part: Part = "test",
    lm: LoadedModel | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_examples: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    decoding: Decoding | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Evaluated:
    """Score a run's adapter, one on disk, or a model as it stands, on a part of a task's data.

    >>> ll.evaluate(run).scores  # the test part of the run's own task

    All examples are scored, in batches, and every answer is written to `predictions.jsonl`. What
    the adapter and the model were before, they are afterwards.

    Args:
        of: a run; a record, an id or a folder of one that is over; an adapter's folder, then with
            `lm`; or a model, with the adapter that is active on it, if one is.
        task: the data, or what `load_task` takes; by default the run's own.
        part: "test", "validation" or "train".
        lm: the base model; of a run's record by default the one that it was trained on.
        tokenizer: of a model of your own.
        max_examples: score so many of the part's first ones.
        output_dir: where `predictions.jsonl` goes; by default the run's or the adapter's folder;
            of a model nowhere.
        decoding: how answers are written: a `Decoding` in place of the task's, or {"num_beams": 4},
            what of the task's is to be otherwise.
        **settings: of `TrainingConfig`, what evaluation heeds: `max_length`, `too_long`,
            `per_device_train_batch_size`; by default the run's.

    Raises:
        TaskError: the part has no examples, or cannot be read.
        ConfigError: the model is not for such data, or a setting that evaluation does not heed.
        RunError: the run is at work, has left no adapter, or the file cannot be written.
        AdapterError: the adapter is for another base.
    """
    if part not in get_args(Part):
        raise TaskError(f"part is {part!r}; use 'test', 'validation' or 'train'")
    if max_examples is not None:
        need_count("max_examples", max_examples, least=1)
    with plain_modes(), _ready(of, task, lm, tokenizer) as given:
        if decoding is not None:
            given = dataclasses.replace(given, task=decoded(given.task, decoding))
        own = _settings(given.training, settings)
        found = scored(given.lm, given.task, part, own, max_examples)
    folder = given.folder if output_dir is None else user_path(output_dir, RunError).resolve()
    if folder is None or not found.predictions:
        return found
    path = folder / PREDICTIONS_FILE
    lines = [json.dumps(redacted_values(row), ensure_ascii=False) for row in found.predictions]
    with disk_errors(path):
        make_dirs(folder)
        write_text_atomic(path, "".join(f"{line}\n" for line in lines))
    return dataclasses.replace(found, file=path)


@dataclass(frozen=True)
class _Given:
    """A model as it is to be scored, on what, and how a run of it read its data."""

    lm: LoadedModel
    task: Task
    training: TrainingConfig
    folder: Path | None = None


@contextlib.contextmanager
def _ready(of: Any, task: Any, lm: Any, tokenizer: Any) -> Iterator[_Given]:
    """Yield a model with the adapter that is to be scored in force."""
    if isinstance(of, Run):
        data = of.task if task is None else as_task(task)
        with of.paused(), on_model(of) as name, _in_force(of.model, name):
            yield _Given(of.lm, data, of.training, of.folder)
        return
    call = "ll.evaluate(model, …, tokenizer=tokenizer)"
    if isinstance(of, LoadedModel) or hasattr(of, "named_modules"):
        if task is None:
            raise TaskError("a model has no task of its own; ll.evaluate(model, task)")
        data = as_task(task)
        yield _Given(as_loaded(of, tokenizer, data.head, call), data, TrainingConfig())
        return
    start = find_start(of)
    record = read_record(start.folder.parent) if start.run else None
    training = TrainingConfig() if record is None else read_configs(record)[1]
    if record is None and (lm is None or task is None):
        raise ConfigError(
            f"{start.folder} is an adapter and no run, which would name its model and its data; "
            "ll.evaluate(folder, task, lm=load_model(…))"
        )
    data = as_task(task) if record is None or task is not None else task_of(record, None)
    if lm is None:
        assert record is not None
        own = model_of(record)
    else:
        own = as_loaded(lm, tokenizer, data.head, call)
    with with_adapter(own.model, start.folder):
        yield _Given(own, data, training, start.folder if record is None else record.folder)


@contextlib.contextmanager
def with_adapter(model: Any, folder: Path) -> Iterator[None]:
    """Have an adapter on disk in force within the block; the model is as it was afterwards.

    Raises:
        AdapterError: it is for another base.
    """
    load_adapter(model, folder, _NAME, activate=False)
    try:
        with _in_force(model, _NAME):
            yield
    finally:
        detach(model, _NAME)


@contextlib.contextmanager
def _in_force(model: Any, name: str) -> Iterator[None]:
    before = active(model)
    activate(model, name)
    try:
        yield
    finally:
        activate(model, before)


def _settings(training: TrainingConfig, given: Mapping[str, Any]) -> TrainingConfig:
    heeded = {"max_length", "too_long", "per_device_train_batch_size"}
    if other := sorted(given.keys() - heeded):
        raise ConfigError(
            f"evaluate has no {other[0]}; beside its own it takes {', '.join(sorted(heeded))}"
        )
    return training.replace(**given)


def scored(
    lm: LoadedModel,
    task: Task,
    part: Part,
    training: TrainingConfig,
    max_examples: int | None = None,
) -> Evaluated:
    """Score a model as it stands, bare or adapted, on a part of a task.

    Args:
        lm: the model, with the adapter that is in force on it, if one is.
        task: the data.
        part: which of it.
        training: what evaluation heeds of it is how examples are read, and how many at a time.
        max_examples: score so many of the first ones; None: all.

    Raises:
        TaskError: the part has no examples, or they are not for such a model.
    """
    rows = getattr(task, part)
    if not len(rows):
        there = [f"{name} {len(getattr(task, name)):,}" for name in get_args(Part)]
        raise TaskError(
            f"{task.name} has no {part} examples ({', '.join(there)}); give them: "
            f"load_task(…, {part}=…)"
        )
    check(lm, task)
    if part == "train":  # of which `check` looks at those with a class or a number alone
        task.check(rows, "training")
    count = len(rows) if max_examples is None else min(max_examples, len(rows))
    name = active(lm.model)
    tokens = attached(lm.model)[name].config.tokens if name else 0
    notes: list[str] = []
    data = RunData(
        lm,
        dataclasses.replace(task, validation=rows),  # type: ignore[type-var]
        training.replace(eval_examples=count),
        notes,
        tokens,
    )
    scores = data.evaluate(adapted=name is not None)
    assert scores is not None, "nobody stops it"
    notes += stuck(data)
    inputs = [data.family.sample(example) for example in data.held_out]
    predictions = [
        {"input": text, "references": list(right), "prediction": answer}
        for (text, right), answer in zip(inputs, data.answers, strict=False)
    ]
    return Evaluated(
        task.name,
        part,
        len(data.held_out),
        len(rows),
        scores,
        data.intervals,
        data.scoring,
        data.decoding,
        tuple(notes),
        tuple(predictions),
    )
