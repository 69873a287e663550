"""`lora-lab runs`, `models`, `tasks` and `--version`: what is there, by name."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from lora_lab import list_runs, load_model, load_task, train
from lora_lab.cli import main
from lora_lab.errors import ModelError
from lora_lab.models import catalogue
from lora_lab.tasks.cards import card_of
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line; return what it wrote."""
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"lora-lab {metadata.version('lora-lab')}\n"


def test_models_are_those_of_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(printed(capsys, "models", "--json"))["models"]
    assert [model["name"] for model in listed] == list(catalogue())
    said = {model["name"]: model["weights"] for model in listed}
    with pytest.raises(ModelError):
        load_model("gpt3-175b")
    assert said["gpt3-175b"] == "none: its size alone"
    assert said["roberta-base"] == "on the hub"
    assert said["mini-llama"] == "installed"
    assert "Apache-2.0" in printed(capsys, "models")


def test_models_that_lie_in_the_working_directory_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(2048))
    monkeypatch.chdir(tmp_path)
    here = json.loads(printed(capsys, "models", "--json"))["here"]
    mine = {"name": "./mine", "source": "folder", "license": None, "size": 2048}
    assert mine in here
    assert "2 KiB" in printed(capsys, "models")


def test_tasks_say_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(printed(capsys, "tasks", "--json"))["tasks"]
    for told in listed:
        task = load_task(told["name"])
        assert told["train"] == len(task.train)
        assert told["metrics"] == [metric.name for metric in task.metrics]
        assert told["card"] == card_of(task).to_json()
    said = printed(capsys, "tasks")
    assert load_task("mini-nli").describe() in said
    assert "without reading (always one class): accuracy 33.3" in said


def test_runs_are_those_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "runs", str(tmp_path)) == f"no runs in {tmp_path}\n"
    run = train(tiny_lm(), tiny_task(), CONFIG, max_steps=2, output_dir=tmp_path)
    metrics = run.result().metrics
    (told,) = json.loads(printed(capsys, "runs", str(tmp_path), "--json"))["runs"]
    assert (told["id"], told["state"], told["steps"]) == (run.id, "done", 2)
    assert told["metrics"] == pytest.approx(metrics)
    assert (told["title"], told["note"], told["starred"]) == ("", "", False)
    text = printed(capsys, "runs", str(tmp_path))
    assert run.id in text
    assert "held-out loss" in text
    assert "title" not in text
    list_runs(tmp_path)[0].mark(title="the long one", starred=True)
    text = printed(capsys, "runs", str(tmp_path))
    assert "the long one" in text
    assert "★" in text
    (told,) = json.loads(printed(capsys, "runs", str(tmp_path), "--json"))["runs"]
    assert (told["title"], told["starred"]) == ("the long one", True)
