"""Modules and names that docstrings and comments point to are there."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"lora_lab": ROOT / "lora_lab", "lora_lab_widgets": ROOT / "widgets/lora_lab_widgets"}
FILES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
_WHOLE = re.compile(r"(?<![\w./])lora_lab(?:_widgets)?(?:\.\w+)+")
# In backquotes, by the last part of its path: `runs.control`, `lora.dora`.
_QUOTED = re.compile(r"`([a-z_]+(?:\.\w+)+)`")
_FILES = (".npy", ".json", ".jsonl", ".pt", ".py", ".js")


@cache
def folders() -> frozenset[str]:
    """The names of our folders: what begins with one is a path of ours."""
    return frozenset(
        folder.name for root in PACKAGES.values() for folder in root.rglob("*") if folder.is_dir()
    ) - {"static", "__pycache__"}


def resolves(path: str) -> bool:
    """Whether a dotted path is a module of ours, or a name in one."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            if not hasattr(found, name):
                # A field of a dataclass without a default is no attribute of its class.
                return name in getattr(found, "__annotations__", {})
            found = getattr(found, name)
        return True
    return False


def pointers(text: str) -> set[str]:
    """Return the dotted paths of ours that a text names, whole ones and those in backquotes."""
    quoted = {
        path
        for path in _QUOTED.findall(text)
        if path.split(".")[0] in folders() and not path.endswith(_FILES)
    }
    return set(_WHOLE.findall(text)) | quoted


def missing(text: str) -> set[str]:
    """Return the pointers that lead nowhere."""
    return {
        path
        for path in pointers(text)
        if not (resolves(path) or any(resolves(f"{package}.{path}") for package in PACKAGES))
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_docstrings_and_comments_point_to_is_there(path: Path) -> None:
    assert not missing(path.read_text("utf-8"))


def test_pointers_that_lead_nowhere_are_found() -> None:
    text = "see `lora_lab.runs.nowhere`, `runs.control_room`, `torch.nn`, lora_lab.runs.history"
    assert pointers(text) == {"lora_lab.runs.nowhere", "runs.control_room", "lora_lab.runs.history"}
    assert missing(text) == {"lora_lab.runs.nowhere", "runs.control_room"}
