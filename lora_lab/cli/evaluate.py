"""`lora-lab evaluate`: score a run's adapter on the part of its data that no step has read."""

from __future__ import annotations

import argparse
from typing import Any

from lora_lab.cli.command import Command, Report
from lora_lab.cli.decoding import decoding_arguments, decoding_of
from lora_lab.cli.output import console
from lora_lab.models.load import load_model
from lora_lab.tasks.load import load_task
from lora_lab.training.evaluate import evaluate


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder or id, or with --model an adapter's folder")
    parser.add_argument("--task", help="other data than the run's: a name, a file or a hub id")
    parser.add_argument("--model", help="the base model (the run says)")
    parser.add_argument("--part", default="test", help="test, validation or train (test)")
    parser.add_argument("--max-examples", type=int, help="score so many of the first ones (all)")
    parser.add_argument("--output-dir", help="where predictions.jsonl goes (the run's folder)")
    decoding_arguments(parser)


def _run(options: argparse.Namespace) -> Report:
    task = None if options.task is None else load_task(options.task)
    head: dict[str, Any] = {} if task is None else task.head
    lm = None if options.model is None else load_model(options.model, **head)
    with console(stderr=True, quiet=options.json).status("evaluating"):
        found = evaluate(
            options.run,
            task,
            part=options.part,
            lm=lm,
            max_examples=options.max_examples,
            output_dir=options.output_dir,
            decoding=decoding_of(options) or None,
        )
    text = str(found)
    if found.file is not None:
        text += f"\n\npredictions  {found.file}"
    return Report(found.to_json(), text)


COMMAND = Command(_arguments, _run)
