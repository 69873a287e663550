"""Runs are read where there is no torch, and go on where there is."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import subprocess
import sys
from pathlib import Path

from lora_lab.runs.records import RunRecord, list_runs

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


def made(parent: Path, count: int, config: dict) -> None:
    for number in range(count):
        folder = parent / f"20300101-000000-{number:04x}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text('{"state": "done", "metrics": {"loss_after": 1.5}}')


CONFIG = {"method": "LoRA", "lora": {"r": 8}, "configs": [{"r": n, "of": {}} for n in range(30)]}


def test_the_records_of_many_runs_are_little_work_for_the_collector(tmp_path):
    made(tmp_path, 200, CONFIG)
    list_runs(tmp_path)
    gc.collect()
    before = len(gc.get_objects())
    records = list_runs(tmp_path)
    assert len(gc.get_objects()) - before < 3 * len(records), "each config has 64 objects"
    assert [record.config for record in records] == [CONFIG] * 200


def test_a_record_is_as_its_run_was_when_it_was_listed(tmp_path):
    made(tmp_path, 1, CONFIG)
    (record,) = list_runs(tmp_path)
    (folder,) = tmp_path.iterdir()
    for path in folder.iterdir():
        path.write_text("{}")
    assert pickle.loads(pickle.dumps(record)) == record
    assert (record.config, record.folder) == (CONFIG, folder)
    assert record.summary == {"state": "done", "metrics": {"loss_after": 1.5}}
    assert record.config is record.config
    given = RunRecord(folder.name, folder, CONFIG, record.summary)
    assert given == record
    assert repr(given) == repr(record)
    assert dataclasses.replace(record, id="other").config == CONFIG
