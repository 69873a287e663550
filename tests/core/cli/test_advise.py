"""`lora-lab advise`: advice, a probe, a run file; and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lab import advise
from lora_lab.cli import main
from lora_lab.runs.run_file import RunConfig
from tests.helpers.tiny_files import tiny_recipe


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line; return what it wrote."""
    assert main(["advise", *arguments]) == 0
    return capsys.readouterr().out


def test_a_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "llama-2-7b", "--memory", "40 GB", "--examples", "5000", "--length", "512"
    told = json.loads(printed(capsys, *asked, "--json"))
    expected = advise("llama-2-7b", examples=5000, length=512, memory="40 GB")
    assert told == json.loads(json.dumps(expected.to_json()))
    text = printed(capsys, *asked)
    assert "target_modules = all-linear" in text
    assert "heuristic; Schulman" in text


def test_a_probe_and_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe: Any = tiny_recipe(tmp_path)
    model, task = recipe["model"]["name"], recipe["task"]["name"]
    path = tmp_path / "advised.yaml"
    asked = model, task, "--which-layers", "--passes", "1", "--run-file", str(path), "--json"
    told = json.loads(printed(capsys, *asked))
    assert told["layers"]["proposed"]["parameters"] <= told["layers"]["budget"]
    config = RunConfig.read(path)
    assert config.training.max_length == told["training"]["max_length"]
    assert yaml.safe_load(path.read_text())["model"]["name"] == model
    for refused in (
        [model, task, "--run-file", str(path)],
        [model, "--which-layers"],
        [model, task, "--parameters", "100"],
        [model, task, "--which-layers", "--parameters", "1"],
        [model, task, "--memory", "plenty"],
        [model, task, "--run-file", str(tmp_path / "no" / "such" / "folder" / "run.yaml")],
    ):
        assert main(["advise", *refused]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_dtype_is_trained_in_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe: Any = tiny_recipe(tmp_path)
    path = tmp_path / "advised.yaml"
    asked = recipe["model"]["name"], recipe["task"]["name"], "--dtype", "bfloat16"
    printed(capsys, *asked, "--run-file", str(path))
    assert RunConfig.read(path).model["dtype"] == "bfloat16"
