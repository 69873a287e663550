"""The light parts import and work where there is no torch: a script blocks it, and uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.recorded_before import RECORDED

ROOT = Path(__file__).parents[2]
PARTS = (
    *("spectra", "configs", "anatomy", "runs", "analysis", "captions", "figures", "paper"),
    "adapters",
)


@pytest.mark.parametrize("part", PARTS)
def test_a_light_part_works_without_torch(part: str) -> None:
    command = [sys.executable, "-m", "tests.helpers.without_torch", part, str(RECORDED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_the_script_does_block_torch() -> None:
    code = "import tests.helpers.without_torch, torch"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "torch is blocked" in done.stderr


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("lora_lab", {"torch", "numpy", "transformers", "plotly", "pandas"}),
        ("lora_lab.configs", {"torch", "transformers", "plotly", "pandas", "datasets"}),
        ("lora_lab.runs.records", {"torch", "transformers", "plotly", "datasets", "scipy"}),
        ("lora_lab.spectra", {"torch", "transformers", "plotly", "datasets", "scipy"}),
        ("lora_lab.figures.step_maps", {"torch", "transformers", "datasets"}),
        ("lora_lab.paper", {"torch", "transformers", "plotly", "datasets"}),
    ],
)
def test_importing_a_light_part_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & heavy
