"""`lora-lab compare`: methods, each at its own best learning rate, here or on a Ray cluster."""

from __future__ import annotations

import argparse

from lora_lab.analysis.choices import Choices
from lora_lab.cli.command import Command, Report
from lora_lab.cli.sweep import add_cluster, add_export, exported, watch
from lora_lab.errors import RunError
from lora_lab.reports.comparison_page import write_comparison_report
from lora_lab.runs.records import RecordState
from lora_lab.sweeps.cluster import sweep_on_ray
from lora_lab.sweeps.compare_plan import ComparePlan
from lora_lab.sweeps.comparison import Comparison
from lora_lab.sweeps.peft_comparison import FOLDER, check_export
from lora_lab.tasks.load import load_task


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a comparison's file")
    add_cluster(parser)
    add_export(parser)
    parser.add_argument("--report", metavar="FILE", help="write a page of HTML with its figures")


def _run(options: argparse.Namespace) -> Report:
    plan = ComparePlan.read(options.plan)
    if options.export:
        for part in plan.parts():
            check_export(load_task(**plan.run_config.task), part.cells())
    if options.ray is not None:
        for part in plan.parts():
            sweep_on_ray(part, options.ray or None, options.gpus)
    made = plan.comparison()
    found = made.choices() if options.ray is not None else _here(made, quiet=options.json)
    told, text = found.to_json(), str(found)
    if options.report:
        path = write_comparison_report(found, options.report)
        told, text = {**told, "report": str(path)}, f"{text}\n\nreport  {path}"
    if options.export:
        done = [run for run in made.records() if run.state is RecordState.DONE]
        told, text = exported(told, text, done, plan.folder / f"{plan.name}-{FOLDER}")
    return Report(told, text)


def _here(made: Comparison, quiet: bool) -> Choices:
    try:
        for sweep in made.sweeps.values():
            watch(sweep.start(), quiet, f"{sweep.folder.name}: ")
    except KeyboardInterrupt:
        made.stop()
        sweep.wait()
        raise RunError(f"{sweep.outcome()}; compare goes on with it") from None
    return made.results()


COMMAND = Command(_arguments, _run)
