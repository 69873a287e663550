"""What the script needs, looked for before anything runs; this file imports none of it."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import NamedTuple


class Package(NamedTuple):
    """A package that some lines need.

    Attributes:
        name: on the package index.
        module: what is imported.
        why: what cannot be done without it.
    """

    name: str
    module: str
    why: str


BASE = ("torch", "transformers", "array-api-compat", "lazy-loader", "msgspec")  # nearly every line
PACKAGES = (
    Package("torch", "torch", "everything"),
    Package("transformers", "transformers", "every model"),
    Package("array-api-compat", "array_api_compat", "lora_lab itself; so every ll.train"),
    Package("lazy-loader", "lazy_loader", "lora_lab itself"),
    Package("msgspec", "msgspec", "lora_lab itself"),
    Package("peft", "peft", "the comparison with it"),
    Package("sacrebleu", "sacrebleu", "scores of answers; so every run with eval_examples"),
    Package("pytest", "pytest", "tests/gpu"),
    Package("hypothesis", "hypothesis", "tests/gpu, by tests/conftest.py"),
)


def missing() -> dict[str, str]:
    """Return {package: what cannot be done without it} of those that are not here."""
    return {each.name: each.why for each in PACKAGES if not _is_here(each.module)}


def versions() -> dict[str, str]:
    """Return {package: version} of those that are here."""
    found = {}
    for each in PACKAGES:
        if _is_here(each.module):
            try:
                found[each.name] = metadata.version(each.name)
            except metadata.PackageNotFoundError:
                found[each.name] = "of unknown version"
    return found


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # half installed, or blocked
        return False
