"""The main job without a browser: a run on disk and a report that stands alone."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from lora_lab.cli import main, tour
from lora_lab.training.api import train


@pytest.mark.real_model
def test_the_demo_leaves_an_adapter_and_a_self_contained_report(tmp_path, capsys, monkeypatch):
    # Most of a demo's time goes into answers to the held-out examples, and texts of the base.
    small = partial(train, eval_examples=1, kept_texts=0, per_device_train_batch_size=2)
    monkeypatch.setattr(tour, "train", small)
    status = main(["demo", "--steps", "2", "--output-dir", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 0
    assert Path(found["adapter"], "adapter_model.safetensors").exists()
    assert found["metrics"]["loss_after"] < found["metrics"]["loss_before"]
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert Path(found["report"]).parent == tmp_path / found["run"]
    for part in ("Savings", "singular value", "amplification", "Effective rank", "synthetic"):
        assert part.lower() in page.lower(), part
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?http", page)


def test_a_demo_of_nothing_known_is_one_line(tmp_path, capsys):
    status = main(["demo", "--model", "smolm2-135m", "--output-dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert status == 2
    assert "smollm2-135m" in error
    assert error.count("\n") == 1
