"""The house keeps its rules: what may import what, and what a wheel carries."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "lora_lab").rglob("*.py"))
NOTEBOOK = {"IPython", "ipywidgets", "anywidget", "lora_lab_widgets"}
WITHOUT = ["IPython", "ipywidgets", "anywidget", "plotly", "datasets", "jupyterlab"]
# What a bare GPU machine needs: everything that trains, measures and saves.
NEEDED = [
    *("lora_lab", "lora_lab.methods", "lora_lab.checkpoint", "lora_lab.budget"),
    *(
        "lora_lab.analysis",
        "lora_lab.spectra",
        "lora_lab.budget.meter",
        "lora_lab.methods.lora.operator",
    ),
    *("lora_lab.models", "lora_lab.tasks", "lora_lab.runs", "lora_lab.training.trainer"),
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_knows_no_notebook(path):
    assert not imports(path) & NOTEBOOK
    assert not imports(path) & {"peft", "loralib"}, "peers are oracles in tests, never needed"
    if "plotly" in imports(path):
        assert path.parent.name == "figures"


def test_what_trains_imports_without_the_notebook_packages():
    code = (
        "import sys, importlib\n"
        f"for name in {WITHOUT}: sys.modules[name] = None\n"
        f"for name in {NEEDED}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_public_face_is_whole_and_its_functions_win_over_their_modules():
    code = (
        "import lora_lab as ll, lora_lab.budget, lora_lab.anatomy, lora_lab.runs\n"
        "missing = [name for name in ll.__all__ if not hasattr(ll, name)]\n"
        "assert not missing, missing\n"
        "assert callable(ll.budget) and callable(ll.anatomy) and callable(ll.runs)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_wheel_carries_every_script_and_style_sheet():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["lora_lab_widgets"]
    package = ROOT / "widgets" / "lora_lab_widgets"
    files = [p.relative_to(package).as_posix() for p in (package / "static").iterdir()]
    assert files
    assert [f for f in files if not any(fnmatch.fnmatch(f, glob) for glob in globs)] == []


def test_files_lines_and_functions_that_are_too_big_are_named(tmp_path):
    path = tmp_path / "made.py"
    path.write_text("def f():\n" + "    pass\n" * 60 + "\n" * 400 + "#" * 101)
    assert list(house.too_big(path)) == [
        f"{path}: 462 lines; at most 400",
        f"{path}:462: 101 letters in a line; at most 100",
        f"{path}:1: f has 61 lines; at most 60",
    ]
