"""`lora-lab sweep`: a sweep file trained, told, gone on with; what cannot be is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lab.cli import main
from lora_lab.errors import RunError
from lora_lab.runs.records import list_runs
from lora_lab.sweeps import Sweep, cell_run
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import until


def write(folder: Path, training: dict[str, Any] | None = None, **values: Any) -> Path:
    """Write a sweep file over a tiny model and task; {} takes a field away."""
    recipe = tiny_recipe(folder)
    recipe["training"] |= training or {}
    plan = {**recipe, "name": "ranks", **values}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in plan.items() if value != {}}))
    return path


def told(path: Path, capsys, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["sweep", str(path), "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_four_cells_and_one_object_of_json(tmp_path, capsys):
    found = told(write(tmp_path, grid={"r": [1, 2], "seed": [0, 1]}), capsys)
    assert found["folder"] == str(tmp_path / "runs" / "ranks")
    assert [cell["changes"] for cell in found["cells"]] == [
        {"r": r, "seed": seed} for r in (1, 2) for seed in (0, 1)
    ]
    assert [(cell["state"], cell["steps"]) for cell in found["cells"]] == [("done", 4)] * 4
    runs = {run.id: run for run in list_runs(tmp_path / "runs" / "ranks")}
    assert {cell["run"] for cell in found["cells"]} == runs.keys()
    for cell in found["cells"]:
        run = runs[cell["run"]]
        assert cell["metrics"] == run.summary["metrics"]
        assert run.config["lora"]["r"] == cell["changes"]["r"]
        assert run.config["training"]["seed"] == cell["changes"]["seed"]


def test_people_get_a_line_for_each_cell(tmp_path, capsys):
    path = write(tmp_path, grid={"r": [1, 2]})
    capsys.readouterr()
    assert main(["sweep", str(path)]) == 0
    out, err = capsys.readouterr()
    first, second, last = out.splitlines()
    assert first.split()[:3] == ["r", "1", "done"]
    assert second.split()[:3] == ["r", "2", "done"]
    assert "loss_after" in first
    assert "bleu_after" in first
    assert last == f"2 of 2 cells ended; runs are in {tmp_path / 'runs' / 'ranks'}"
    assert all(line.endswith(" of 2 cells") for line in err.splitlines())


def test_a_second_call_trains_only_what_is_new(tmp_path, capsys):
    before = told(write(tmp_path, grid={"r": [1, 2]}), capsys)
    after = told(write(tmp_path, grid={"r": [1, 2, 3]}), capsys)
    assert after["cells"][:2] == before["cells"]
    assert len(list_runs(tmp_path / "runs" / "ranks")) == 3


def test_what_is_behind_is_stopped_early(tmp_path, capsys):
    found = told(
        write(
            tmp_path,
            {"max_steps": 60},
            grid={"learning_rate": [2e-2, 1e-9]},
            early_stopping={"grace_steps": 20, "reduction": 2},
        ),
        capsys,
    )
    good, bad = found["cells"]
    assert (good["state"], good["steps"]) == ("done", 60)
    assert bad["state"] == "stopped early"
    assert 20 <= bad["steps"] < 60


def test_a_failed_cell_has_its_line_and_is_tried_again(tmp_path, monkeypatch, capsys):
    real = cell_run.Run

    def sometimes(lm, task, config, *rest):
        if config.r == 2:
            raise RunError("the disk is full")
        return real(lm, task, config, *rest)

    path = write(tmp_path, grid={"r": [1, 2]})
    with monkeypatch.context() as patch:
        patch.setattr(cell_run, "Run", sometimes)
        assert main(["sweep", str(path)]) == 1
    *_, bad, last = capsys.readouterr().out.splitlines()
    assert bad.split(maxsplit=2) == ["r", "2", "the disk is full"]
    assert last.startswith("2 of 2 cells ended, 1 failed: call it again")
    assert [cell["state"] for cell in told(path, capsys)["cells"]] == ["done", "done"]


def test_ctrl_c_ends_it_and_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, {"max_steps": 30, "save_steps": 1}, grid={"r": [1, 2]})
    wait = Sweep.wait
    asked = []

    def interrupted(sweep: Sweep, timeout: float | None = None) -> bool:
        if not asked:
            until(lambda: sweep.snapshot.run and sweep.snapshot.run.snapshot.step >= 2)
            asked.append(sweep.snapshot.run.id)
            raise KeyboardInterrupt
        return wait(sweep, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "wait", interrupted)
        found = told(path, capsys, status=1)
    assert [cell["state"] for cell in found["cells"]] == ["open", "open"]
    (cut,) = list_runs(tmp_path / "runs" / "ranks")
    found = told(path, capsys)
    assert [(cell["state"], cell["steps"]) for cell in found["cells"]] == [("done", 30)] * 2
    assert found["cells"][0]["run"] == cut.id == asked[0]


def test_ray_gets_the_plan_the_address_and_the_gpus(tmp_path, monkeypatch, capsys):
    calls = []

    def on_ray(plan, address, gpus):
        calls.append((plan.folder, address, gpus))
        return {}

    monkeypatch.setattr("lora_lab.cli.sweep.sweep_on_ray", on_ray)
    path = write(tmp_path, grid={"r": [1]})
    assert main(["sweep", str(path), "--ray"]) == 1  # no cell has come back
    assert main(["sweep", str(path), "--ray", "auto", "--gpus", "0.5"]) == 1
    folder = tmp_path / "runs" / "ranks"
    assert calls == [(folder, None, None), (folder, "auto", 0.5)]
    assert "0 of 1 cell ended" in capsys.readouterr().out


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown axis": (
        {"grid": {"rank": [1]}},
        "neither LoraConfig nor TrainingConfig has a field 'rank'",
    ),
    "an empty axis": ({"grid": {"r": []}}, "grid r is []; it must be a list of values"),
    "no list": ({"grid": {"r": 4}}, "grid r is 4; it must be a list of values"),
    "nothing varied": ({"grid": {}}, "the sweep varies nothing; give it a grid"),
    "a grid that is no mapping": ({"grid": [1, 2]}, "grid is [1, 2]; it must hold fields"),
    "draws that are no mapping": ({"random": "r"}, "random is 'r'; it must hold fields"),
    "an unknown draw": ({"random": {"r": {"normal": [0, 1]}}}, "use one of choice, uniform"),
    "an unknown method": (
        {"grid": {"configs": [{"class": "LoroConfig"}]}},
        "names the class 'LoroConfig', which is none of AdaLoraConfig",
    ),
    "a method that is a word": ({"grid": {"configs": ["LoRA"]}}, "a method is 'LoRA'"),
    "an unknown method drawn": (
        {"random": {"configs": {"choice": [{"class": "LoroConfig"}]}}},
        "names the class 'LoroConfig'",
    ),
    "an unknown key": ({"gird": {"r": [1]}}, "has an unknown field 'gird'; known are model"),
    "an impossible value": ({"grid": {"r": [1, 0]}}, "r is 0; a rank is a whole number"),
    "a value of another type": ({"grid": {"max_length": ["long"]}}, "max_length is 'long'"),
    "samples": ({"grid": {"r": [1]}, "samples": "many"}, "samples is 'many'"),
    "an unknown rule": (
        {"grid": {"r": [1]}, "early_stopping": {"patience": 3}},
        "early_stopping has an unknown field 'patience'; known are grace_steps, reduction",
    ),
    "a rule that is no mapping": (
        {"grid": {"r": [1]}, "early_stopping": 20},
        "early_stopping is 20; it must hold fields, such as grace_steps: 20",
    ),
    "a rule beyond every end": (
        {"grid": {"r": [1]}, "early_stopping": {"grace_steps": 10**6}},
        "so nothing would be ended early; use fewer",
    ),
    "a name that climbs": ({"grid": {"r": [1]}, "name": "../up"}, "use letters, digits"),
}


@pytest.mark.parametrize(("values", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_one_line_and_nothing_is_made(tmp_path, capsys, values, said):
    path = write(tmp_path, **values)
    capsys.readouterr()
    assert main(["sweep", str(path), "--json"]) == 2
    _one_line(capsys.readouterr(), said)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "sweep.yaml", "task.csv"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("grid: [", "is not readable YAML"),
        ("- r\n- 4\n", "holds no settings"),
        ("model: nowhere-7b\ntask: mini-e2e\ngrid: {r: [1]}\n", "no model is called 'nowhere-7b'"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["sweep", str(path)]) == 2
    _one_line(capsys.readouterr(), said)


def test_the_folder_of_another_sweep_is_one_line(tmp_path, capsys):
    path = write(tmp_path, grid={"r": [1]})
    told(path, capsys)
    plan = json.loads((tmp_path / "runs" / "ranks" / "sweep.json").read_text())
    plan["told"]["task"]["data"] = "another"
    (tmp_path / "runs" / "ranks" / "sweep.json").write_text(json.dumps(plan))
    assert main(["sweep", str(path), "--json"]) == 2
    _one_line(capsys.readouterr(), "holds a sweep of another model or task; use another name")


def test_without_ray_the_mend_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write(tmp_path, grid={"r": [1]})
    capsys.readouterr()
    assert main(["sweep", str(path), "--ray"]) == 2
    _one_line(capsys.readouterr(), 'pip install "lora-lab[ray]"')


def _one_line(captured, said: str) -> None:
    assert captured.out == ""
    assert captured.err.startswith("lora-lab: ")
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
