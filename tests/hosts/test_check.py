"""Which versions Colab's check and that of the oldest ones take; nothing is installed."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hosts import check
from hosts.first_cell import first_cell


def test_the_oldest_are_those_that_the_project_names() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = check.oldest()
    assert {"torch", "transformers", "ipywidgets", "anywidget", "lazy_loader"} <= set(found)
    for package, oldest in found.items():
        assert package == "notebook" or f'"{package}>={oldest}' in text


def test_a_cpu_build_is_taken_whatever_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def can_be_had(requirement: str, python: str) -> bool:
        asked.append((requirement, python))
        return python == "3.11" and not requirement.startswith("torch==2.11")

    monkeypatch.setattr(check, "can_be_had", can_be_had)
    monkeypatch.setattr(check.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(check, "_answers", lambda python: python.removeprefix("/bin/python"))
    pinned = f"{check.pinned('torch')}+cpu"
    assert check.choose(("3.13", "3.11"), "2.11.0") == ("/bin/python3.11", "3.11", pinned)
    assert all(requirement.endswith("+cpu") for requirement, _ in asked)
    assert asked[:2] == [("torch==2.11.0+cpu", "3.13"), ("torch==2.11.0+cpu", "3.11")]
    asked.clear()
    check.choose(("3.13", "3.11"), "2.11.0", cuda=True)
    assert [requirement for requirement, python in asked if python == "3.13"] == [
        "torch==2.11.0+cpu",
        "torch==2.11.0",
        f"torch=={pinned}",
    ]
    monkeypatch.setattr(check, "can_be_had", lambda *_: False)
    with pytest.raises(SystemExit, match="no CPU build of torch"):
        check.choose(("3.13",), "2.11.0")


def test_the_first_cell_keeps_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    exec(compile(first_cell("/a folder"), "first cell", "exec"), {})
    pins = (tmp_path / "colab-has.txt").read_text().splitlines()
    for package in ("torch", "transformers", "numpy", "ipywidgets", "ipython", "huggingface_hub"):
        assert f"{package.replace('_', '-')}=={version(package)}" in pins
    (command,) = ran
    assert command[1:4] == ["-m", "pip", "install"]
    assert command[-3:] == ["--constraint", "colab-has.txt", "/a folder"]


def test_what_was_tried_is_written_with_the_versions() -> None:
    wanted = {"torch": "2.11.0", "numpy": "2.1.3"}
    versions: dict[str, Any] = {"torch": "2.13.0+cpu", "numpy": "2.1.3"}
    result = check.Result("colab", "3.11.7", versions, wanted)
    assert check._add(result, "imports: every public name")
    assert not check._add(result, "tests: FAILED: 1 failed")
    page = result.page()
    assert "| torch | 2.11.0 | 2.13.0+cpu |" in page
    assert "| numpy | 2.1.3 | the same |" in page
    assert "- tests: FAILED: 1 failed" in page
