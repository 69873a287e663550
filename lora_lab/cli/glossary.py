"""`lora-lab glossary`: what a term means, in two sentences."""

from __future__ import annotations

import argparse

from lora_lab.captions.glossary import Term, glossary, markdown, terms
from lora_lab.cli.command import Command, Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("term", nargs="*", help="such as: effective rank; without one, all")
    parser.add_argument("--markdown", action="store_true", help="all of it, as docs/glossary.md")


def _run(options: argparse.Namespace) -> Report:
    name = " ".join(options.term) or None
    found = glossary(name)
    listed = [found] if isinstance(found, Term) else terms().values()
    json = {"terms": [term.to_json() for term in listed]}
    return Report(json, markdown().rstrip("\n") if options.markdown else str(found))


COMMAND = Command(_arguments, _run)
