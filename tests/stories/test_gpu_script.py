"""The script for the day when there is a GPU: it rehearses here, where only its packages are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu import report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.lines import LINES, Place
from benchmarks.gpu.packages import PACKAGES
from benchmarks.gpu.worker import Worker
from tests.helpers.gpu_lines import line

ROOT = Path(__file__).parents[2]
THERE = ("torch", "transformers", "peft")  # on the machine with the GPU

# Put where Python imports it at its start: what is not named cannot be imported, in any process.
ONLY = """
import sys
from importlib.machinery import PathFinder
class Only(PathFinder):
    blocked = frozenset({blocked!r})
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.partition(".")[0] in cls.blocked
        return None if blocked else PathFinder.find_spec(name, path, target)
sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path]
"""


def with_requirements(names: tuple[str, ...]) -> set[str]:
    """Return some distributions and all that they require, on this machine and without extras."""
    found: set[str] = set()
    left = [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # such as triton, beside torch for the CPU
            continue
        left += [
            normal(each.name)
            for each in map(Requirement, needed)
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_all_lines_are_rehearsed_with_the_named_packages_only(tmp_path: Path) -> None:
    named = with_requirements(tuple(each.name for each in PACKAGES)) | {"setuptools"}
    modules = metadata.packages_distributions()
    blocked = {
        module
        for module, owners in modules.items()
        if not named & set(map(normal, owners)) and module not in ("lora_lab", "_distutils_hack")
    }
    assert {"datasets", "pyarrow", "ipywidgets", "plotly", "gguf", "sklearn"} <= blocked
    (tmp_path / "sitecustomize.py").write_text(ONLY.format(blocked=blocked), "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PYTEST_PLUGINS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("missing: nothing\n"), "it is said before anything runs"
    found = json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))
    assert list(found["rows"]) == [each.name for each in LINES]
    measured = {row["what"]: row["measured"] for rows in found["rows"].values() for row in rows}
    assert not {"failed", "not run"} & set(measured.values())
    assert all(row["reach"] for rows in found["rows"].values() for row in rows)
    assert not found["details"]
    with pytest.raises(SystemExit, match="rehearsal"):
        report.fill(tmp_path / "out" / "gpu.json")


def test_what_is_missing_is_named_first_and_its_lines_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("array_api_compat", "sacrebleu"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["--rehearse", "--out", str(tmp_path)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
        "missing: array-api-compat (for lora_lab itself; so every ll.train); "
        "sacrebleu (for scores of answers; so every run with eval_examples)"
    )
    rows = [row for row in rest if row.startswith("|")]
    assert len(rows) == len(LINES)
    assert all("| not run |" in row and "array-api-compat" in row for row in rows)


def test_a_line_that_goes_wrong_ends_no_other(tmp_path: Path) -> None:
    worker = Worker(Place("cpu", tmp_path, True))
    first, _ = worker.run(line("works"), 60)
    again, _ = worker.run(line("works"), 60)
    assert first == again, "one process runs them all"
    rows, details = worker.run(line("fails"), 60)
    assert rows[0].met is False
    assert rows[0].note == "RuntimeError: CUDA error: device-side assert triggered"
    assert "gpu_lines.py" in details
    after, _ = worker.run(line("works"), 60)
    assert after != first, "a CUDA error spoils its process"
    rows, _ = worker.run(line("dies"), 60)
    assert rows[0].note == "its process ended with exit status -11"
    assert worker.start_seconds > 0
    worker.run(line("works"), 60)
    assert worker.start_seconds == 0
    rows, _ = worker.run(line("hangs"), 0.2)
    assert (rows[0].met, rows[0].note) == (False, "broken off after 0 s")
    rows, _ = worker.run(line("works"), 60)
    assert rows[0].met
    worker.close()


def test_no_line_begins_when_the_minutes_are_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--rehearse", "--minutes", "0", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("the minutes are over") == len(LINES)


# What was seen ------------------------------------------------------------------------------------


def test_docs_and_readme_say_what_was_seen() -> None:
    for path, text in report.filled(report.last_seen()).items():
        assert path.read_text("utf-8") == text, "python -m benchmarks.gpu --fill GPU.JSON"


def test_a_runs_output_fills_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("README.md", "docs/gpu.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "SEEN", tmp_path / "seen.json")
    good = {"what": "it", "measured": "1 | 2", "reach": "3", "met": True, "note": ""}
    rows = {"dora": [good, {**good, "what": "more", "met": False}], "fused": [good]}
    results = {"about": {"device": "a GPU"}, "rehearsal": False, "rows": rows}
    (tmp_path / "gpu.json").write_text(json.dumps(results), "utf-8")
    assert main(["--fill", str(tmp_path / "gpu.json")]) == 0
    assert report.last_seen() == results
    readme = (tmp_path / "README.md").read_text("utf-8")
    said = f"1 of the script's {len(LINES)} lines are as expected on a GPU, 1 are not, "
    assert said + f"{len(LINES) - 2} were not run" in readme
    table = (tmp_path / "docs" / "gpu.md").read_text("utf-8")
    assert "(`fused`) | unchanged: nothing may rest on it | met: 1 \\| 2 |" in table
    assert "| **not met**: 1 \\| 2; 1 \\| 2 (more) |" in table
    assert table.count("| not run |") == len(LINES) - 2


def test_contributing_names_every_wheel_that_is_carried() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    command = text.partition("pip download")[2].partition("\n\n")[0]
    carried = with_requirements(tuple(each.name for each in PACKAGES)) - with_requirements(THERE)
    assert carried <= set(map(normal, command.split()))
    for each in LINES:
        assert set(each.packages) <= {package.name for package in PACKAGES}
