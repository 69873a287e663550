"""A result as a cell's last line: its repr, and the HTML that a notebook keeps in its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.analysis.methods import compare_methods
from lora_lab.reports import inspect_adapter
from lora_lab.runs.records import list_runs
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.evaluate import evaluate
from lora_lab.training.start_from import find_start
from tests.helpers.tiny_run import CONFIG, tiny_lm


def test_what_a_cell_shows_of_ours_keeps_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    rows = [Example(f"a pa55-word {n}", "b pa55-word", ("b pa55-word",)) for n in range(8)]
    task = GenerationTask("with pa55-word", True, rows, rows[:2])
    lm = tiny_lm()
    lm = dataclasses.replace(lm, card=dataclasses.replace(lm.card, name="m pa55-word"))
    settings = {"max_steps": 1, "eval_examples": 1, "kept_texts": 0, "max_length": 64}
    run = ll.train(lm, task, CONFIG, output_dir=tmp_path, **settings)
    result, look = run.result(60), task.look(lm)
    (record,) = list_runs(tmp_path)
    found = [lm.card, lm, task, run, result, *run.samples, look, *look.findings, run.snapshot]
    found += [record, record.open(), record.mark(title="pa55-word"), find_start(run.folder)]
    found += [evaluate(run, part="validation"), compare_methods([record])]
    found += [inspect_adapter(run.folder), ll.advise(lm, task)]
    for one in found:
        html = one._repr_html_() if hasattr(one, "_repr_html_") else ""
        for shown in (repr(one), str(one), html):
            assert "pa55-word" not in shown, type(one)
    assert "[redacted]" in f"{look}"
    assert "[redacted]" in repr(lm.card)
