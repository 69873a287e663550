"""`lora-lab train`: a run file trained, shown, stopped by a signal and gone on with."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml

from lora_lab.cli import main
from lora_lab.runs.records import RecordState, list_runs
from lora_lab.tasks import load_task
from lora_lab.training.run import Run
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_files import tiny_model_folder, tiny_recipe
from tests.helpers.tiny_run import tiny_lm, until


@pytest.fixture
def run_file(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    return path


def test_json_is_one_object_and_nothing_else(run_file, tmp_path, capsys):
    assert main(["train", str(run_file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    folder = Path(found["folder"])
    assert folder.parent == tmp_path / "runs"
    assert (found["run"], found["state"], found["steps"]) == (folder.name, "done", 4)
    assert found["adapter"] == str(folder / "adapter")
    summary = json.loads((folder / "summary.json").read_text())
    assert found["metrics"] == summary["metrics"]
    scored = {"loss", "bleu", "chrf", "exact_match", "kept_loss"}
    assert set(found["metrics"]) == {f"{s}_{at}" for s in scored for at in ("before", "after")}


def test_lines_on_stderr_and_the_result_on_stdout(run_file, tmp_path, capsys):
    assert main(["train", str(run_file), "--output-dir", str(tmp_path / "elsewhere")]) == 0
    out, err = capsys.readouterr()
    (run,) = list_runs(tmp_path / "elsewhere")
    first, *_, last = err.splitlines()
    assert first == f"run {run.id}: {tmp_path / 'model'} on task.csv"
    assert last == f"step 4 of 4, loss {run.open().losses[-1][1]:.3f}"
    assert "\x1b" not in err
    assert out.splitlines()[0].startswith("4 steps in ")
    assert out.splitlines()[-1] == f"adapter  {run.folder / 'adapter'}"


def test_a_look_at_the_data_trains_nothing_and_needs_no_weights(run_file, tmp_path, capsys):
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()
    assert main(["train", str(run_file), "--look", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    task = load_task(str(tmp_path / "task.csv"), prompt="prompt", completion="completion")
    look = task.look(tiny_lm(), max_length=32)
    assert found == json.loads(json.dumps(look.to_json()))
    assert main(["train", str(run_file), "--look"]) == 0
    assert capsys.readouterr().out == f"{look}\n"
    assert not (tmp_path / "runs").exists()


def test_a_look_at_classes(tmp_path, capsys):
    model = tiny_model_folder(tmp_path / "model")
    rows = "".join(f"text {n},{'spam' if n < 4 else 'ham'}\n" for n in range(80))
    (tmp_path / "mail.csv").write_text(f"text,label\n{rows}")
    task = {"name": str(tmp_path / "mail.csv"), "text": "text", "label": "label"}
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({"model": str(model), "task": task}))
    assert main(["train", str(run_file), "--look"]) == 0
    said = capsys.readouterr().out
    assert "training examples have the same class, 'ham'" in said


def test_a_terminal_gets_a_bar(run_file, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", str(run_file)]) == 0
    assert "4/4" in terminal.getvalue()
    assert "loss " in terminal.getvalue()
    assert "4/4" not in capsys.readouterr().out


def test_a_signal_ends_it_at_the_next_step_and_resume_goes_on(
    run_file, tmp_path, monkeypatch, capsys
):
    alone = json.loads(_trained(run_file, tmp_path / "alone", capsys))
    publish = Run.publish

    def interrupt(run, **changes):
        publish(run, **changes)
        if changes.get("step") == 2 and run.state is RunState.RUNNING:
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: run.state is RunState.STOPPING)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", interrupt)
        assert main(["train", str(run_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert (Path(found["adapter"]) / "adapter_model.safetensors").is_file()
    (record,) = list_runs(tmp_path / "runs")
    assert record.state is RecordState.STOPPED
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert threading.current_thread() is threading.main_thread()

    assert main(["train", found["folder"], "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["run"], again["steps"], again["state"]) == (found["run"], 4, "done")
    assert again["metrics"] == alone["metrics"]


def _trained(run_file, folder, capsys) -> str:
    assert main(["train", str(run_file), "--output-dir", str(folder), "--json"]) == 0
    return capsys.readouterr().out


def test_a_run_is_resumed_by_its_id_too(run_file, tmp_path, capsys):
    found = json.loads(_trained(run_file, tmp_path / "runs", capsys))
    arguments = ["train", found["run"], "--resume", "--output-dir", str(tmp_path / "runs")]
    assert main(arguments) == 2
    _one_line(capsys.readouterr(), f"run {found['run']} is done")


BAD = {
    "no file": (None, "cannot read"),
    "no YAML": ("model: [", "is not readable YAML"),
    "no model": ("model: nowhere-7b\ntask: mini-e2e\n", "no model is called 'nowhere-7b'"),
    "a failing run": ({"training": {"learning_rate": 1e38, "max_steps": 30}}, "failed: "),
    "a site that is not there": (
        {"configs": [{"class": "LoraConfig", "target_modules": ["nowhere"]}]},
        "nowhere",
    ),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD.keys())
def test_an_error_is_one_line_and_status_2(tmp_path, capsys, content, said):
    path = tmp_path / "run.yaml"
    if isinstance(content, dict):
        recipe = tiny_recipe(tmp_path)
        training = {**recipe["training"], **content.get("training", {})}
        content = yaml.safe_dump({**recipe, **content, "training": training})
    if content is not None:
        path.write_text(content)
    capsys.readouterr()
    assert main(["train", str(path), "--json"]) == 2
    _one_line(capsys.readouterr(), said)


def _one_line(captured, said: str) -> None:
    assert captured.out == ""
    assert captured.err.startswith("lora-lab: ")
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
