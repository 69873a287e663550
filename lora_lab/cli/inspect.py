"""`lora-lab inspect`: look into an adapter on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_lab.cli.command import Command, Report
from lora_lab.cli.output import console
from lora_lab.errors import ConfigError
from lora_lab.reports.inspect import inspect_adapter
from lora_lab.reports.inspection_page import write_inspection


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="a folder in PEFT's format, a run's folder, or a file")
    parser.add_argument("--base", help="its base model: then ΔW is set against W₀")
    parser.add_argument("--against", metavar="OTHER", help="another adapter of the same base")
    parser.add_argument("--site", help="the one matrix to show on its own (the largest updates)")
    parser.add_argument("--run", metavar="FOLDER", help="the run that made it: maps over its steps")
    parser.add_argument("--sweep", metavar="FOLDER", help="a folder of runs: rank × learning rate")
    parser.add_argument("--task", help="measure the loss on it while the intruders are scaled")
    parser.add_argument("--report", metavar="FILE.html", help="write a page with every figure")
    parser.add_argument("--loralib", action="store_true", help="a file of loralib's; may be a .pt")
    parser.add_argument("--alpha", type=float, help="α of a loralib file, which does not hold it")
    parser.add_argument("--slices", help="which of q,k,v loralib's MergedLinear adapts (q,v)")


def _run(options: argparse.Namespace) -> Report:

    if options.alpha is not None and not options.loralib:
        raise ConfigError("--alpha is for loralib's files; add --loralib, or leave it out")
    if options.loralib and options.alpha is None:
        raise ConfigError("loralib's files do not hold α; add --alpha with the one of its training")
    slices = options.slices and [name.strip() for name in options.slices.split(",")]
    with console(stderr=True, quiet=options.json).status("looking into the adapter"):
        found = inspect_adapter(
            options.adapter,
            base=options.base,
            against=options.against,
            site=options.site,
            run=options.run,
            sweep=options.sweep,
            task=options.task,
            lora_alpha=options.alpha,
            slices=slices or None,
            # A pickle is read only when it is asked for by its own name.
            allow_pickle=options.loralib or Path(options.adapter).is_file(),
        )
    answer, text = found.to_json(), str(found)
    if options.report:
        written = write_inspection(options.report, found)
        answer["report"] = str(written)
        text += f"\n\nreport  {written}"
    return Report(answer, text)


COMMAND = Command(_arguments, _run)
