"""`lora-lab export`: a saved adapter for other programs."""

from __future__ import annotations

import argparse

from lora_lab._util.dtypes import MODEL_DTYPES
from lora_lab.checkpoint.convert import export_adapter
from lora_lab.cli.command import Command, Report
from lora_lab.cli.output import console

_FORMS = {
    "peft": "PEFT's folder",
    "uniform": "the same with one rank and scale, for vLLM and LoRAX",
    "merged": "base and adapter as one transformers model",
    "loralib": "a state dict for loralib's layers, .safetensors or .pt",
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="a folder in PEFT's format, or a run's folder")
    parser.add_argument("out", help="a new or empty folder; a new file for loralib")
    parser.add_argument("--base", required=True, help="its base model: name, hub id or folder")
    forms = "; ".join(f"{form}: {text}" for form, text in _FORMS.items())
    parser.add_argument("--format", choices=list(_FORMS), default="peft", help=f"{forms} (peft)")
    parser.add_argument(
        "--dtype",
        choices=MODEL_DTYPES,
        help="of merged weights (that of the base's files)",
    )


def _run(options: argparse.Namespace) -> Report:
    with console(stderr=True, quiet=options.json).status("exporting"):
        found = export_adapter(
            options.adapter, options.base, options.format, options.out, options.dtype
        )
    return Report(found.to_json(), str(found))


COMMAND = Command(_arguments, _run)
