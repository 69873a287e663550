"""The first cell of a notebook on Colab: it stands in docs/hosts.md, and is read from there."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "hosts.md"
_CELL = re.compile(r"^    # Colab: .*\n(?:    .*\n|\n(?=    ))+", re.MULTILINE)
_SOURCE = re.compile(r'^SOURCE = ".*?"', re.MULTILINE)


def first_cell(source: str) -> str:
    """Return the text of the cell, where LoRA Lab is to be installed from that place."""
    found = _CELL.search(DOCUMENT.read_text(encoding="utf-8"))
    assert found is not None, f"{DOCUMENT} has no first cell"
    text = "\n".join(line[4:] for line in found[0].rstrip().splitlines())
    named, count = _SOURCE.subn(lambda _: f"SOURCE = {source!r}", text)
    assert count == 1, f"the first cell in {DOCUMENT} names no SOURCE"
    return named
