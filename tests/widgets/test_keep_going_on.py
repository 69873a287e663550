"""Going on from a kept adapter: used on the bench, continued, loaded, scored, reported."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.errors import RunError
from lora_lab.runs.records import list_runs
from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import Tick
from tests.helpers.keep_bench import QUICK, do, keep_bench, send, settle, trained
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task, until
from tests.helpers.tiny_text import tiny_llama


@pytest.fixture
def wb(tmp_path: Path) -> Iterator[Any]:
    with keep_bench(tmp_path / "runs") as made:
        yield made


def record_of(tmp_path: Path, id_: str) -> Any:
    return next(each for each in list_runs(tmp_path / "runs") if each.id == id_)


def test_an_older_run_is_put_on_the_model_and_everything_follows(wb: Any, tmp_path: Path) -> None:
    wb.config = ll.LoraConfig(r=2, lora_alpha=4, target_modules=["q"])
    old = trained(wb)
    with old.paused() as model:
        expected = logits(model)
    wb.config = ll.LoraConfig(r=4, lora_alpha=8, target_modules=["v", "down"])
    new = trained(wb)
    assert wb.keep.form["offers"]["use"] == "it is on the model"
    wb.session.keep(record_of(tmp_path, old.id))
    assert wb.keep.form["offers"]["use"] == ""
    said = do(wb, "use")
    assert said.endswith("is on the model: grid, ΔW and “Try it” show it")
    assert torch.equal(logits(wb.lm.model), expected)
    assert wb.run is None
    assert wb.config == old.configs[0]
    adapted = [site for site, rank in wb.grid.ranks.items() if rank]
    assert {wb.anatomy.by_name[site].role for site in adapted} == {"q"}
    wb.delta_w.update(Tick())
    assert set(wb.delta_w.ranks.values()) == {2}
    until(lambda: (wb.delta_w.update(Tick()), wb.delta_w._map.values)[1])
    assert set(wb.delta_w._map.values) == set(wb.delta_w.ranks)
    assert old.id in wb.session.live_adapter.whose[0]
    wb.panel._handle({"type": "tick", "seq": "1", "theme": "light", "width": 900})
    assert old.id in wb.panel.notes[0]
    assert wb.keep.form["offers"]["use"] == "it is on the model"
    wb.save(tmp_path / "saved")
    twin = tiny_lm().model
    ll.load_adapter(twin, tmp_path / "saved")
    assert torch.equal(logits(twin), expected)
    again = trained(wb)
    assert wb.session.used is None
    assert wb.keep.form["id"] == again.id
    assert new.id != again.id


def test_a_new_run_goes_on_from_an_older_ones_adapter(wb: Any, tmp_path: Path) -> None:
    wb.config = ll.LoraConfig(r=2, lora_alpha=4, target_modules=["q"])
    old = trained(wb)
    end = {name: (site.A.clone(), site.B.clone()) for name, site in old.adapter.sites.items()}
    wb.config = ll.LoraConfig(r=4, lora_alpha=8, target_modules=["v"])
    trained(wb)
    wb.session.keep(record_of(tmp_path, old.id))
    wb.plan.merge({"max_steps": 1, "learning_rate": 1e-9})
    said = do(wb, "continue")
    assert wb.keep.problem is None, said
    run = wb.run
    assert run.wait(60)
    assert run.start_from.run == old.id
    assert f"run {run.id} goes on from" in said
    assert wb.config == old.configs[0], "the grid shows what trains"
    for name, site in run.adapter.sites.items():
        torch.testing.assert_close(site.A, end[name][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(site.B, end[name][1], rtol=0, atol=1e-6)
    assert record_of(tmp_path, run.id).start_from == f"run {old.id}, step 3"


def test_a_paused_run_is_gone_on_with_by_resume(wb: Any) -> None:
    wb.plan.merge({"max_steps": 100_000})
    run = wb.start()
    until(lambda: run.snapshot.step > 1)
    run.pause()
    until(lambda: str(run.state) == "paused")
    settle(wb)
    offers = wb.keep.form["offers"]
    assert offers["continue"] == f"run {run.id} is paused: Resume goes on with it"
    assert "is paused; stop it to start another run" in do(wb, "continue")
    assert "stop it to use another adapter" in do(wb, "use")
    run.resume()


def test_an_adapter_of_elsewhere_is_loaded_by_its_path(wb: Any, tmp_path: Path) -> None:
    other = tiny_lm().model
    config = ll.LoraConfig(r=3, lora_alpha=6, target_modules=["k"])
    ll.attach(other, config)
    with torch.no_grad():
        for site in ll.attached(other)["default"].sites.values():
            site.B.normal_(generator=torch.Generator().manual_seed(1))
    ll.save_adapter(other, tmp_path / "mine")
    said = do(wb, "load", folder=str(tmp_path / "mine"))
    assert said.startswith("the adapter mine is on the model")
    assert torch.equal(logits(wb.lm.model), logits(other))
    assert wb.keep.form["words"] == "the adapter mine"
    assert (wb.config.r, wb.config.lora_alpha) == (3, 6)
    with torch.no_grad():
        for site in ll.attached(other)["default"].sites.values():
            site.B.mul_(2)
    ll.save_adapter(other, tmp_path / "mine")  # another one by now
    do(wb, "load", folder=str(tmp_path / "mine"))
    assert torch.equal(logits(wb.lm.model), logits(other))
    assert "same answer" in do(wb, "save", form="peft", folder=str(tmp_path / "copy"))
    do(wb, "continue")
    run = wb.run
    assert run.wait(60)
    assert run.result().losses
    assert record_of(tmp_path, run.id).start_from == "mine"


def test_no_run_begins_while_another_adapter_is_put_on_the_model(
    wb: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    trained(wb)
    do(wb, "save", form="peft", folder=str(tmp_path / "mine"))
    gate = threading.Event()

    def used(*_: Any) -> Any:
        assert gate.wait(60)
        return lambda: None

    monkeypatch.setattr("lora_lab_widgets.keep.used", used)
    send(wb, type="load", folder=str(tmp_path / "mine"))
    with pytest.raises(RunError, match="is being put on the model; start another run when"):
        wb.start()
    gate.set()
    settle(wb)
    assert wb.keep.problem is None
    trained(wb)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "type the folder that holds an adapter"),
        ("a\0b", "type the folder that holds an adapter"),
        ("~nobody-here", "home folder of a user"),
        ("nowhere", "there is no adapter in"),
        ("EMPTY", "there is no adapter in"),
        ("WRONG", "model.layers.0.self_attn.q_proj"),
    ],
)
def test_what_is_no_adapter_for_this_model_is_said_and_nothing_changes(
    wb: Any, tmp_path: Path, folder: str, words: str
) -> None:
    run = trained(wb)
    before = logits(wb.lm.model)
    (tmp_path / "EMPTY").mkdir()
    if folder == "WRONG":
        other = tiny_llama(0)
        ll.attach(other, ll.LoraConfig(r=2, target_modules=["q"]))
        file = ll.save_adapter(other, tmp_path / "WRONG") / "adapter_model.safetensors"
        save_file({k: v[:, :1].contiguous() for k, v in load_file(file).items()}, file)
    said = do(wb, "load", folder=str(tmp_path / folder) if folder.isalpha() else folder)
    assert words in said
    assert "\n" not in wb.keep.problem["message"]
    assert torch.equal(logits(wb.lm.model), before)
    assert run.is_attached
    assert wb.run is run


def test_what_a_stopped_run_has_learned_is_scored_afterwards(tmp_path: Path) -> None:
    settings = {**QUICK, "max_steps": 100_000, "eval_examples": 4, "kept_texts": 0}
    wb = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path / "runs", **settings)
    run = wb.start()
    until(lambda: run.snapshot.step >= 3)
    run.stop()
    assert run.wait(60)
    settle(wb)
    assert wb.keep.form["offers"]["evaluate"] == ""
    assert "loss_after" not in run.snapshot.metrics
    wb.panel._handle({"type": "command", "name": "evaluate", "seq": "1", "settings": {}})
    settle(wb)
    assert wb.keep.problem is None
    metrics = run.snapshot.metrics
    told = ll.evaluate(run, part="validation", output_dir=tmp_path / "elsewhere").scores
    assert {name: metrics[f"{name}_after"] for name in told} == pytest.approx(told)
    record = record_of(tmp_path, run.id)
    assert record.summary["metrics"]["loss_after"] == pytest.approx(told["loss"])
    assert record.summary["metrics"]["loss_before"] == metrics["loss_before"]
    assert str(record.state) == "stopped"
    assert all(sample["adapted"] is not None for sample in record.open().samples)
    settle(wb)
    assert "evaluate" not in wb.keep.form["offers"]
    assert "there is nothing to score" in do(wb, "evaluate")


def test_a_report_is_written_now_and_comes_whole(wb: Any) -> None:
    run = trained(wb)
    (run.folder / "report.html").write_text("<script>a stranger's</script>")
    do(wb, "report")
    assert wb.keep.problem is None
    sent: list[Any] = []
    wb.keep.send = lambda content, buffers=None: sent.append(content)
    found = b""
    while len(found) < wb.keep.offer["size"]:
        send(wb, type="piece", token=wb.keep.offer["token"], at=len(found), seq="1")
        found += base64.b64decode(next(each["data"] for each in sent if each["type"] == "piece"))
        sent.clear()
    page = gzip.decompress(found).decode()
    assert page == (run.folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "a stranger's" not in page
    assert wb.keep.offer["about"] == run.id


def test_the_best_cell_of_a_sweep_is_kept(wb: Any, tmp_path: Path) -> None:
    sweep = wb.watch(
        ll.sweep(wb.lm, wb.task, grid={"r": [1, 2]}, output_dir=tmp_path / "runs", **QUICK)
    )
    assert sweep.wait(120)
    wb.sweep_panel.update(Tick())
    row = wb.sweep_panel.rows[0]
    wb.sweep_panel._handle_custom_msg({"type": "keep", "cell": row["cell"]}, [])
    assert wb.sweep_panel.problem is None
    assert row["run"] in wb.keep.form["id"]
    assert "same answer" in do(wb, "save", form="peft", folder=str(tmp_path / "best"))
    wb.sweep_panel._handle_custom_msg({"type": "keep", "cell": "nobody"}, [])
    assert "has left no run" in wb.sweep_panel.problem["message"]


def test_the_run_panel_and_the_list_lead_here(wb: Any, tmp_path: Path) -> None:
    run = trained(wb)
    before = wb.keep.called
    wb.panel._handle({"type": "command", "name": "keep", "seq": "1", "settings": {}})
    assert wb.keep.called == before + 1
    other = trained(wb)
    wb.history._handle_custom_msg({"type": "open", "value": True}, [])
    until(lambda: (wb.history.update(Tick()), wb.history.form["rows"])[1])
    wb.history._handle_custom_msg({"type": "keep", "id": run.id}, [])
    assert wb.keep.form["id"] == run.id
    wb.history._handle_custom_msg({"type": "keep", "id": other.id}, [])
    assert (wb.keep.form["id"], wb.keep.form["latest"]) == (other.id, True)
    assert json.dumps(wb.keep.get_state("form"))
