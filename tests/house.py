"""Sizes that no file and no function exceeds; `python -m tests.house` prints what is too big."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("lora_lab", "widgets", "benchmarks", "hosts", "pretraining", "tests")
LANGUAGES = (".py", ".pyi", ".js", ".css")
FILE, LINE, FUNCTION = 400, 100, 60  # lines, letters, lines


def too_big(path: Path) -> Iterator[str]:
    """Yield what is too big in one file. Functions in JavaScript are left to its own linter."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if len(lines) > FILE:
        yield f"{name}: {len(lines)} lines; at most {FILE}"
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE:
            yield f"{name}:{number}: {len(line)} letters in a line; at most {LINE}"
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines; at most {FUNCTION}"


def violations() -> list[str]:
    """Return all that is too big, a line each."""
    files = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    return [line for path in files if path.suffix in LANGUAGES for line in too_big(path)]


if __name__ == "__main__":
    found = violations()
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
