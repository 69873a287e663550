"""`lora-lab advise`: which method and settings to begin with, and what each rests on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from lora_lab._util.files import write_text_atomic
from lora_lab.advice.api import Advice, advise
from lora_lab.advice.layers import WhichLayers, which_layers
from lora_lab.budget.gpu import GPUS
from lora_lab.cli.command import Command, Report
from lora_lab.cli.output import console
from lora_lab.errors import ConfigError, as_cause
from lora_lab.models.load import load_model
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.load import load_task


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a catalogue name, a hub id, or a folder with a config.json")
    parser.add_argument("task", nargs="?", help="a task's name, a file or a hub id, to be counted")
    parser.add_argument("--examples", type=int, help="training examples, where no task is named")
    parser.add_argument("--length", type=int, help="tokens an example, where no task is named")
    parser.add_argument("--memory", help='such as "16 GB" (what is free here)')
    parser.add_argument("--dtype", help="of the base model: float32, bfloat16 or float16")
    parser.add_argument(
        "--device", help=f"whose kernels: cpu, cuda, or one of {', '.join(GPUS)} (what is here)"
    )
    parser.add_argument("--run-file", help="write the advice there, for lora-lab train")
    group = parser.add_argument_group("which layers, by a few backward passes; loads the model")
    group.add_argument(
        "--which-layers", action="store_true", help="measure gradient norms and propose ranks"
    )
    group.add_argument("--parameters", type=int, help="trainable at most (as r = 8 everywhere)")
    group.add_argument("--passes", type=int, default=4, help="backward passes (4)")


def _run(options: argparse.Namespace) -> Report:
    if options.run_file and os.path.exists(options.run_file):
        raise ConfigError(f"{options.run_file} is there already; name another file")
    if (options.which_layers or options.run_file) and options.task is None:
        what = "--which-layers" if options.which_layers else "--run-file"
        raise ConfigError(f"{what} needs a task: lora-lab advise {options.model} TASK {what}")
    if options.parameters is not None and not options.which_layers:
        raise ConfigError("--parameters is the budget of --which-layers; give both, or neither")
    task = None if options.task is None else load_task(options.task)
    advice = advise(
        options.model,
        task,
        examples=options.examples,
        length=options.length,
        memory=options.memory,
        dtype=options.dtype,
        device=options.device,
    )
    report = Report(advice.to_json(), str(advice))
    if options.which_layers and task is not None:
        layers = _layers(options, task, advice)
        text = f"{report.text}\n\nwhich layers: {layers}"
        report = Report({**report.json, "layers": layers.to_json()}, text)
    if options.run_file:
        path = _written(options, advice)
        report = Report({**report.json, "run_file": path}, f"{report.text}\n\nrun file  {path}")
    return report


def _layers(options: argparse.Namespace, task: Task, advice: Advice) -> WhichLayers:
    with console(stderr=True, quiet=options.json).status("probing the layers"):
        lm = load_model(options.model, **_dtype(options), **task.head)
        length: Any = advice.training.get("max_length", TrainingConfig.max_length)
        return which_layers(
            lm, task, parameters=options.parameters, passes=options.passes, max_length=length
        )


def _dtype(options: argparse.Namespace) -> dict[str, Any]:
    return {} if options.dtype is None else {"dtype": options.dtype}


def _written(options: argparse.Namespace, advice: Advice) -> str:
    config = RunConfig(
        model={"name": options.model, **_dtype(options)},
        task={"name": options.task},
        configs=(advice.config,),
        training=TrainingConfig.from_dict(advice.training),
    )
    try:
        write_text_atomic(Path(options.run_file), config.to_yaml())
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"{options.run_file} cannot be written: {why}") from as_cause(error)
    return str(options.run_file)


COMMAND = Command(_arguments, _run)
