"""A metric of one's own: defined in ten lines here, it appears wherever metrics do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.analysis import compare_methods, sweep_map
from lora_lab.figures import method_comparison_summary, sweep_summary
from lora_lab.tasks import Metric, metrics, register_metric
from lora_lab.training.run import Run
from lora_lab_widgets.run_rows import look
from lora_lab_widgets.serialize import describe
from tests.helpers.tiny_run import tiny_lm, tiny_task


def wrong_letters(predictions: list[str], references: list[tuple[str, ...]]) -> float:
    """Return how many letters an answer is off, the mean."""
    return sum(abs(len(p) - len(r[0])) for p, r in zip(predictions, references, strict=True)) / len(
        predictions
    )


@pytest.fixture
def wrong() -> Iterator[Metric]:
    yield register_metric(
        Metric("wrong", wrong_letters, higher_is_better=False, unit="letters", label="off by")
    )
    del metrics._REGISTERED["wrong"]


@pytest.fixture
def runs(wrong: Metric, tmp_path: Path) -> list[Run]:
    """Two runs, one with a learning rate too low to learn."""
    task = dataclasses.replace(tiny_task(), metrics=(*tiny_task().metrics, wrong))
    settings = {"max_steps": 3, "eval_examples": 4, "save_steps": 0, "output_dir": tmp_path}
    found = []
    for rate in (1e-9, 3e-2):
        run = ll.train(tiny_lm(), task, ll.LoraConfig(r=2), learning_rate=rate, **settings)
        run.result(60)
        found.append(run)
    return found


def test_it_is_in_results_files_panels_and_cards(runs: list[Run]) -> None:
    run = runs[1]
    value = run.result().metrics["wrong_after"]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["metrics"]["wrong_after"] == value
    line, kept = describe(run.snapshot)["metrics"][-2:]
    assert kept["label"] == "kept loss (nats per token)"
    assert (line["label"], line["after"]) == ("off by (letters)", pytest.approx(value, rel=1e-5))
    row = look(ll.list_runs(run.folder.parent), (), "").rows[0]
    assert "off by (letters) " in row["metrics"]


def test_comparisons_read_it_the_right_way(runs: list[Run]) -> None:
    records = ll.list_runs(runs[0].folder.parent)
    values = [run.result().metrics["wrong_after"] for run in runs]
    comparison = compare_methods(records, "wrong_after")
    assert comparison.low_is_good
    assert comparison.best.mean == pytest.approx(min(values))
    assert method_comparison_summary(comparison).startswith("Off by of 2 methods")
    found = sweep_map(records, "wrong_after")
    assert found.best[1] == (1e-9, 3e-2)[values.index(min(values))]
    assert "letters; best" in sweep_summary(found)
