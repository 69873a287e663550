"""The table of one run as JSON and Markdown, and docs/gpu.md, which tells what has been seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._measure import Row
from benchmarks.gpu.lines import LINES, Line

ROOT = Path(__file__).parents[2]
SEEN = ROOT / "benchmarks" / "gpu" / "seen.json"  # of the last run on a GPU; none yet: absent
VERDICTS = {True: "met", False: "**not met**", None: ""}
# What no line shows: it needs more, or other, than one CUDA device.
BEYOND = {
    "Models spread over several GPUs by `device_map`; DDP and FSDP over NCCL": "needs two GPUs; "
    "tested with stand-ins and with two processes on the CPU",
    "4-bit and 8-bit bases (bitsandbytes, torchao, GPTQ, AWQ, HQQ, FP8)": "their kernels are not "
    "carried; tested with stand-ins for their layers",
    "float16 chosen by itself on a GPU without bfloat16 (T4)": "needs such a GPU; tested by its "
    "capability",
    "MPS": "needs a Mac",
    "The workbench beside a training GPU": "needs a browser",
}


@dataclasses.dataclass
class Report:
    """What one run of the script has found; written after every line.

    Attributes:
        folder: gets gpu.json and gpu.md.
        about: the machine, versions, what is missing, the date.
        rehearsal: on the CPU, in small sizes: it proves nothing about a GPU.
    """

    folder: Path
    about: Mapping[str, str]
    rehearsal: bool
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    details: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, line: Line, rows: Sequence[Row], seconds: float, details: str = "") -> None:
        """Take note of a line, and write the files."""
        self.rows[line.name] = list(rows)
        self.seconds[line.name] = round(seconds, 1)
        if details:
            self.details[line.name] = details
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.json").write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
        (self.folder / "gpu.md").write_text(self.as_markdown(), "utf-8")

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "about": dict(self.about),
            "rehearsal": self.rehearsal,
            "seconds": self.seconds,
            "rows": {
                name: [dataclasses.asdict(row) for row in rows] for name, rows in self.rows.items()
            },
            "details": self.details,
        }

    def as_markdown(self) -> str:
        """Return the table for people."""
        title = (
            "Rehearsal on a CPU: it proves nothing about a GPU" if self.rehearsal else "On a GPU"
        )
        lines = [f"### {title}", "", *(f"- {key}: {said}" for key, said in self.about.items()), ""]
        lines += ["| what | measured | expected | | note |", "| --- | --- | --- | --- | --- |"]
        lines += [in_cells(row) for rows in self.rows.values() for row in rows]
        lines += [f"\n`{name}`\n\n```\n{text}```" for name, text in self.details.items()]
        return "\n".join(lines) + "\n"

    def all_met(self) -> bool:
        """Whether nothing was other than expected."""
        return all(row.met is not False for rows in self.rows.values() for row in rows)


def in_cells(row: Row) -> str:
    """Return a row of the table in Markdown."""
    cells = (row.what, row.measured, row.reach, VERDICTS[row.met], row.note)
    return "| " + " | ".join(cell.replace("|", "\\|").strip() for cell in cells) + " |"


def fill(found: Path) -> None:
    """Make a run's results the ones that docs/gpu.md and the README tell of.

    Raises:
        SystemExit: it was a rehearsal, which shows nothing of a GPU.
    """
    results = json.loads(found.read_text("utf-8"))
    if results["rehearsal"]:
        raise SystemExit(f"{found} is of a rehearsal on a CPU; docs/gpu.md tells of a GPU only")
    SEEN.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    for path, text in filled(results).items():
        path.write_text(text, "utf-8")


def filled(results: Mapping[str, Any] | None) -> dict[Path, str]:
    """Return {file: its text} of those that tell what was seen, with what these results say."""
    said = {
        ROOT / "docs" / "gpu.md": "\n".join(["", *_seen_table(results), ""]),
        ROOT / "README.md": _in_one_sentence(results),
    }
    return {path: _between_marks(path.read_text("utf-8"), new) for path, new in said.items()}


def _between_marks(text: str, new: str) -> str:
    before, begin, rest = text.partition("<!-- gpu -->")
    _, end, after = rest.partition("<!-- /gpu -->")
    return before + begin + new + end + after


def last_seen() -> dict[str, Any] | None:
    """Return the results of the last run on a GPU that was noted; None: there was none."""
    return json.loads(SEEN.read_text("utf-8")) if SEEN.exists() else None


def _verdict(rows: Sequence[Mapping[str, Any]]) -> bool | None:
    if any(row["met"] is False for row in rows):
        return False
    return True if any(row["met"] for row in rows) else None


def _in_one_sentence(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return f"none of the script's {len(LINES)} lines has been seen on a GPU yet"
    verdicts = [_verdict(results["rows"].get(line.name, ())) for line in LINES]
    device = results["about"]["device"]
    return (
        f"{verdicts.count(True)} of the script's {len(LINES)} lines are as expected on "
        f"{device}, {verdicts.count(False)} are not, {verdicts.count(None)} were not run"
    )


def _seen_table(results: Mapping[str, Any] | None) -> list[str]:
    lines = []
    if results is not None:
        lines += [f"- {key}: {said}" for key, said in results["about"].items()] + [""]
    lines += ["| what | expected | seen on a GPU |", "| --- | --- | --- |"]
    for line in LINES:
        rows = results["rows"].get(line.name, []) if results else []
        seen = "not yet" if results is None else VERDICTS[_verdict(rows)] or "not run"
        figures = "; ".join(
            row["measured"] + ("" if row["met"] is not False else f" ({row['what']})")
            for row in rows
            if row["met"] is not None
        )
        cells = (
            f"{line.what} (`{line.name}`)",
            line.expected,
            ": ".join(filter(None, (seen, figures))),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [f"| {what} | | not yet: {why} |" for what, why in BEYOND.items()]
    return lines
