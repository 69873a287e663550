"""`lora-lab demo`: train on an embedded model without a browser."""

from __future__ import annotations

import argparse

from lora_lab.cli.command import Command, Report
from lora_lab.cli.tour import demo


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="what to train (smollm2-135m)")
    parser.add_argument("--task", default="mini-e2e", help="on what (mini-e2e)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (40)")
    parser.add_argument("--output-dir", default="runs", help="where the run's folder goes (runs)")


def _run(options: argparse.Namespace) -> Report:

    found = demo(options.model, options.task, options.steps, options.output_dir, quiet=options.json)
    return Report(found, f"adapter  {found['adapter']}\nreport   {found['report']}")


COMMAND = Command(_arguments, _run)
