"""What a stopped run has learned, scored afterwards: as its end would have scored it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_lab.errors import RunError
from lora_lab.runs.lock import RunLock
from lora_lab.runs.records import find_run
from lora_lab.training.api import train
from lora_lab.training.late_scores import score_end, unscored
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def finished(tmp_path: Path) -> Path:
    settings = {"max_steps": 4, "learning_rate": 0.01, "eval_examples": 3, "kept_texts": 0}
    run = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, **settings)
    run.result()
    return run.folder


def test_a_run_on_disk_gets_the_scores_that_its_end_had(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    path = folder / "summary.json"
    whole = json.loads(path.read_text())
    samples = json.loads((folder / "samples.json").read_text())
    before = {k: v for k, v in whole["metrics"].items() if k.endswith("_before")}
    cut = {**whole, "state": "stopped", "metrics": before}
    cut["intervals"] = {k: v for k, v in whole["intervals"].items() if k.endswith("_before")}
    path.write_text(json.dumps(cut))
    (folder / "samples.json").write_text(json.dumps([{**s, "adapted": None} for s in samples]))
    record = find_run(folder)
    assert unscored(record)
    found = score_end(record, tiny_lm(), tiny_task())
    assert (found.examples, found.of) == (3, 4)
    now = json.loads(path.read_text())
    assert now["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)
    assert now["state"] == "stopped"
    assert now["evaluated"] == whole["evaluated"]
    for name, pair in whole["intervals"].items():
        assert now["intervals"][name] == pytest.approx(pair, rel=1e-5)
    assert json.loads((folder / "samples.json").read_text()) == samples
    assert not unscored(find_run(folder))


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    record = find_run(folder)
    assert not unscored(record), "it has its scores"
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="is not over; wait for its end, or stop it"):
        score_end(find_run(folder), tiny_lm(), tiny_task())
    held = RunLock(folder)
    held.acquire()
    try:
        with pytest.raises(RunError, match="is running; a new run can start"):
            score_end(record, tiny_lm(), tiny_task())
    finally:
        held.release()


def test_a_run_that_was_to_have_no_scores_is_not_offered_any(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "learning_rate": 0.01, "eval_examples": 0}
    run = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, **settings)
    run.result()
    path = run.folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "stopped"}))
    assert not unscored(find_run(run.folder))
    run.publish(step=2)  # as if it had been stopped there
    assert not unscored(run)
