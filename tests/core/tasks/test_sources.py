"""Where a task came from: what a run records of rows in memory, and goes on with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import lora_lab as ll
from lora_lab.analysis.methods import compare_methods
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import load_task
from lora_lab.tasks.sources import task_source
from lora_lab_widgets import Workbench
from tests.helpers.tiny_run import tiny_lm, until

ROWS = [{"prompt": f"q{i} ", "completion": f" a{i}, «x»"} for i in range(12)]


def forever() -> Iterator[dict[str, str]]:
    for number in itertools.count():
        yield {"prompt": f"q{number}", "completion": f"a{number}"}


SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "eval_examples": 0,
    "max_length": 32,
    "save_steps": 1,
}


def test_a_run_takes_rows_and_a_plain_model(tmp_path: Path) -> None:
    lm = tiny_lm()
    run = ll.train(
        lm.model, ROWS, tokenizer=lm.tokenizer, output_dir=tmp_path, start=False, **SETTINGS
    )
    assert run.task.train == load_task(ROWS).train
    assert any("read as" in note for note in run.notes)
    with pytest.raises(ConfigError, match=r"needs its tokenizer: ll\.train\(model, …, tokenizer"):
        ll.train(lm.model, ROWS, output_dir=tmp_path, start=False)
    with pytest.raises(ConfigError, match="a Linear is no model; give a transformers model"):
        ll.train(torch.nn.Linear(2, 2), ROWS, tokenizer=lm.tokenizer)
    with pytest.raises(ConfigError, match=r"load_task\(…, completion='a'\) takes it"):
        ll.train(lm, ROWS, prompt="q", completion="a", output_dir=tmp_path)
    stream = ll.train(lm, forever, output_dir=tmp_path, start=False, **SETTINGS)
    assert len(stream.task.train) == 4


def test_the_workbench_and_a_sweep_take_rows(tmp_path: Path) -> None:
    lm = tiny_lm()
    bench = Workbench(
        lm.model, lm.tokenizer, task=pd.DataFrame(ROWS), output_dir=tmp_path, max_length=32
    )
    assert bench.task.train == load_task(ROWS).train
    stream = Workbench(lm, task=forever, max_steps=3, per_device_train_batch_size=2, max_length=32)
    assert len(stream.task.train) == 6
    first = ll.sweep(lm, ROWS, grid={"r": [1]}, output_dir=tmp_path, name="rows", **SETTINGS)
    first.results(60)
    others = [{**row, "completion": "else"} for row in ROWS]
    again = ll.sweep(
        lm, others, grid={"r": [1]}, output_dir=tmp_path, name="rows", start=False, **SETTINGS
    )
    with pytest.raises(RunError, match="a sweep of another model or task"):
        again.start()


def test_runs_on_other_rows_are_not_compared(tmp_path: Path) -> None:
    others = [{**row, "completion": "else"} for row in ROWS]
    for rows in (ROWS, others):
        ll.train(tiny_lm(), rows, output_dir=tmp_path, **SETTINGS).result(60)
    with pytest.raises(RunError, match="these runs are not comparable: rows is"):
        compare_methods(ll.list_runs(tmp_path))


def test_a_run_on_rows_is_gone_on_with_when_they_are_given_again(tmp_path: Path) -> None:
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in ROWS]
    task = load_task(rows, prompt="q", completion="a")
    run = ll.train(tiny_lm(), task, output_dir=tmp_path, **SETTINGS | {"max_steps": 500})
    until(lambda: run.snapshot.step >= 2 or run.state.final)
    run.stop()
    run.result(60)
    source = json.loads((run.folder / "config.json").read_text())["sources"]["task"]
    assert source == {
        "name": "list in memory", "prompt": "q", "completion": "a", "in_memory": ["name"]
    }  # fmt: skip
    with pytest.raises(RunError, match=r"on rows in memory \(list in memory\).*task=rows"):
        ll.resume(run.folder, tiny_lm())
    with pytest.raises(RunError, match="are not those of run"):
        ll.resume(run.folder, tiny_lm(), rows[1:], start=False)
    lm = tiny_lm()
    for given in (rows, pd.DataFrame(rows), task):
        again = ll.resume(run.folder, lm.model, given, tokenizer=lm.tokenizer, start=False)
        assert again.task.train == task.train
    with pytest.raises(ConfigError, match=r"made of rows in memory \(list in memory\).*to_json"):
        RunConfig.from_dict({"model": "smollm2-135m", "task": source})


def test_a_run_on_a_stream_takes_the_same_rows_again(tmp_path: Path) -> None:
    run = ll.train(tiny_lm(), forever, output_dir=tmp_path, **SETTINGS | {"max_steps": 300})
    until(lambda: run.snapshot.step >= 2 or run.state.final)
    run.stop()
    run.result(60)
    assert any("its first 667 rows are taken" in note for note in run.notes)  # 600 and a tenth
    again = ll.resume(run.folder, tiny_lm(), forever, start=False)
    assert again.task.train == run.task.train


def test_of_held_out_rows_in_memory_a_resume_wants_the_whole_task(tmp_path: Path) -> None:
    task = load_task(ROWS[:6], validation=ROWS[6:])
    assert task_source(task) == {
        "name": "list in memory", "validation": "list in memory",
        "in_memory": ["name", "validation"],
    }  # fmt: skip
    run = ll.train(tiny_lm(), task, output_dir=tmp_path, **SETTINGS | {"max_steps": 500})
    until(lambda: run.snapshot.step >= 2 or run.state.final)
    run.stop()
    run.result(60)
    with pytest.raises(RunError, match=r"task=load_task\(…, validation=…\)"):
        ll.resume(run.folder, tiny_lm(), ROWS[:6])
    assert ll.resume(run.folder, tiny_lm(), task, start=False).task is task
