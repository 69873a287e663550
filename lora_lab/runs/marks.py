"""What people say of a run afterwards: a title, a note, a star; marks.json in its folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab._util.files import disk_errors, write_text_atomic
from lora_lab._util.json_files import fields_of, read_json
from lora_lab.errors import RunError
from lora_lab.redaction import redacted_values, shown_redacted
from lora_lab.runs.schema import MarkFacts

MARKS_FILE = "marks.json"
MOST_TITLE, MOST_NOTE = 200, 4_000  # characters


@shown_redacted
@dataclass(frozen=True)
class Marks:
    """What is said of a run.

    Attributes:
        title: what it is called; "": by its settings.
        note: any text.
        starred: whether it has a star.
    """

    title: str = ""
    note: str = ""
    starred: bool = False


def read_marks(folder: str | Path) -> Marks:
    """Return what is said of the run in a folder; what is missing or damaged is left out."""
    try:
        found = fields_of(read_json(Path(folder) / MARKS_FILE), MarkFacts)
    except (OSError, ValueError):
        return Marks()
    title, note = str(found.get("title", "")), str(found.get("note", ""))
    return Marks(title[:MOST_TITLE], note[:MOST_NOTE], bool(found.get("starred", False)))


def write_marks(
    folder: str | Path,
    *,
    title: str | None = None,
    note: str | None = None,
    starred: bool | None = None,
) -> Marks:
    """Say something of the run in a folder, whether or not it is at work; return all that is said.

    Args:
        folder: the run's.
        title: one line, "" for none; None: as it was.
        note: "" for none; None: as it was.
        starred: None: as it was.

    Raises:
        RunError: a title or a note that is too long, or the disk does not take it.
    """
    folder = Path(folder)
    if title is not None:
        title = " ".join(title.split())
    for name, text, most in (("title", title, MOST_TITLE), ("note", note, MOST_NOTE)):
        if text is not None and len(text) > most:
            raise RunError(f"the {name} has {len(text):,} characters; at most {most:,} are kept")
    said: dict[str, Any] = {"title": title, "note": note, "starred": starred}
    known = {name: value for name, value in said.items() if value is not None}
    marks = dataclasses.replace(read_marks(folder), **known)
    path = folder / MARKS_FILE
    with disk_errors(path):
        if not folder.is_dir():
            raise RunError(f"there is no run in {folder} any more")
        said = redacted_values(dataclasses.asdict(marks))
        write_text_atomic(path, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    return marks
