"""Runs are read where there is no torch, and go on where there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = Path(__file__).parents[2] / "recorded" / "before_methods" / "runs"
HEAVY = ["torch", "transformers", "datasets", "accelerate", "safetensors"]


def answer(code: str) -> str:
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_read_with_numpy_alone():
    code = f"""
import sys
for name in {HEAVY}: sys.modules[name] = None
from lora_lab.runs import RunConfig, list_runs, read_history
from lora_lab.runs.run_file import read_configs
records = list_runs({str(RUNS)!r})
for record in records:
    opened = record.open()
    assert opened.losses and read_configs(record)[0]
    if opened.history is not None:
        assert len(read_history(record.folder).steps) == len(opened.history.steps)
try:
    records[0].resume()
except Exception as error:
    print(len(records), type(error).__name__, "call lora_lab.resume" in str(error))
"""
    assert answer(code).split() == [str(len(list(RUNS.iterdir()))), "RunError", "True"]


def test_what_ll_runs_lists_can_go_on_though_nothing_else_was_imported(tmp_path):
    folder = tmp_path / "20300101-000000-aaaa"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text('{"state": "done"}')
    for name in ("runs", "list_runs"):
        code = f"""
import lora_lab as ll
try:
    ll.{name}({str(tmp_path)!r})[0].resume()
except Exception as error:
    print(error)
"""
        assert "is done; ll.train(lm, task, start_from=" in answer(code)
