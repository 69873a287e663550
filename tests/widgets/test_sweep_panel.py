"""The sweep panel without a browser: texts to cells, training, refusals; messages by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.lora.targets import ranks as ranks_of
from lora_lab.sweeps import AshaConfig
from lora_lab.sweeps.plan import SweepPlan
from lora_lab_widgets import Workbench
from lora_lab_widgets.sweep_plan import AXES, as_grid
from lora_lab_widgets.sweep_view import in_words
from tests.helpers.tiny_chat import tiny_chat_model

QUICK = {
    "max_steps": 3, "per_device_train_batch_size": 2, "max_length": 96, "eval_examples": 1,
    "kept_texts": 0,
}  # fmt: skip


@pytest.fixture
def wb(tmp_path):
    bench = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    yield bench
    if bench.sweep is not None and bench.sweep.snapshot.state != "idle":
        bench.sweep.stop()
        bench.sweep.wait(60)
    if bench.run is not None and not bench.run.state.final:
        bench.run.stop()
        bench.run.wait(60)


def tick(wb):
    wb.panel._handle({"type": "tick", "seq": "t", "theme": "light", "width": 1000})
    assert wb.panel.snapshot["problem"] is None
    assert wb.errors == {}
    return wb.sweep_panel


def send(wb, **content):
    wb.sweep_panel._handle_custom_msg(content, [])
    problem = wb.sweep_panel.problem
    return problem and problem["message"]


def typed(wb, **values):
    """Type into an open panel whose other fields are empty."""
    send(wb, type="open", value=True)
    send(wb, type="set", values={**dict.fromkeys(AXES, ""), **values})
    return wb.sweep_panel.plan


def cells(wb, **values):
    assert not typed(wb, **values)["bad"], wb.sweep_panel.plan["line"]
    return wb.sweep_panel.read(wb.sweep_panel.form["values"])[1]


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What is typed ------------------------------------------------------------------------------------


def test_closed_it_reads_and_says_nothing(wb, monkeypatch):
    monkeypatch.setattr(wb.sweep_panel, "read", lambda _: pytest.fail("it counted the cells"))
    wb.grid.ranks = {"model.layers.0.self_attn.q_proj": 4}
    tick(wb)
    assert wb.sweep_panel.form["open"] is False
    assert wb.sweep_panel.plan == {"line": "", "bad": False, "field": "", "cells": 0}


def test_every_combination_is_a_cell_over_the_settings_on_show(wb):
    wb.panel.settings = {**wb.panel.settings, "max_steps": 7, "lora_alpha": 32}
    found = cells(wb, r="2, 4", learning_rate="1e-3,2e-3", seed=" 0 ,1, 1")
    seen = [(c.configs[0].r, c.training.learning_rate, c.training.seed) for c in found]
    assert seen == list(itertools.product([2, 4], [1e-3, 2e-3], [0, 1]))
    assert {c.training.max_steps for c in found} == {7}
    assert {c.configs[0].lora_alpha for c in found} == {32}
    assert in_words(found[0]) == "r=2, lr 0.001, seed 0"
    assert wb.sweep_panel.plan["line"] == "8 cells × 7 steps"


def test_a_sweep_is_of_the_ranks_that_the_page_shows(wb):
    shown = {"model.layers.2.mlp.up_proj": 16}
    typed(wb, seed="3, 4")
    values = wb.sweep_panel.form["values"]
    assert send(wb, type="write", values=values, ranks={"layers.2": 1}).startswith("ranks names")
    assert send(wb, type="start", values=values, ranks=shown) is None
    assert wb.grid.ranks == shown
    assert [ranks_of(wb.anatomy, *cell.configs) for cell in wb.sweep.cells] == [shown, shown]


def test_a_rank_holds_for_every_painted_matrix_and_no_other(wb):
    painted = {"model.layers.0.self_attn.q_proj": 4, "model.layers.2.mlp.up_proj": 16}
    wb.grid.ranks = painted
    for cell, r in zip(cells(wb, r="1, 8"), (1, 8), strict=True):
        assert ranks_of(wb.anatomy, cell.configs[0]) == dict.fromkeys(painted, r)
    (only,) = cells(wb, seed="3")
    assert ranks_of(wb.anatomy, only.configs[0]) == painted


def test_targets_and_layers_choose_the_matrices(wb):
    first, second, third = cells(wb, target_modules="q, q+down, all")
    roles = [{s.role for s in wb.anatomy.sites}, {"q"}, {"q", "down"}]
    for cell, wanted in zip((third, first, second), roles, strict=True):
        expected = {s.name: 8 for s in wb.anatomy.sites if s.role in wanted}
        assert ranks_of(wb.anatomy, cell.configs[0]) == expected
    low, one, every = cells(wb, layers="0-1, 3, all")
    for cell, wanted in ((low, {0, 1}), (one, {3}), (every, {0, 1, 2, 3})):
        expected = {s.name: 8 for s in wb.anatomy.sites if s.role in "qv" and s.layer in wanted}
        assert ranks_of(wb.anatomy, cell.configs[0]) == expected


def test_methods_take_the_axes_that_they_have(wb):
    found = cells(wb, method="LoRA, ft, Adapter^P", r="2, 4", layers="0-1")
    assert [in_words(c) for c in found] == [
        "LoRA, layers 0-1, r=2",
        "LoRA, layers 0-1, r=4",
        "FT",
        "Adapter^P, r=2",
        "Adapter^P, r=4",
    ]
    assert [c.configs[0].r for c in found if c.configs[0].method != "FT"] == [2, 4, 2, 4]


def test_methods_without_learning_rates_train_each_at_its_own(wb):
    found = cells(wb, method="LoRA, FT")
    assert [c.training.learning_rate for c in found] == [1e-2, 2e-3]
    assert wb.sweep_panel.plan["line"].endswith("· each method at its own learning rate")
    shown = {"type": "settings", "seq": "s", "settings": {"learning_rate": 1e-3}}
    wb.panel._handle(shown)
    assert [c.training.learning_rate for c in cells(wb, method="LoRA, FT")] == [1e-3, 2e-3]
    both = cells(wb, method="LoRA, FT", learning_rate="1e-4, 1e-3")
    assert [c.training.learning_rate for c in both] == [1e-4, 1e-3] * 2
    with pytest.raises(ConfigError, match="no grid of a file can say; fill in learning rates"):
        as_grid(found)


REFUSED = [
    ({"r": "4, x"}, "r", "ranks: 'x' is no whole number of at least 1"),
    ({"r": "0"}, "r", "ranks: '0' is no whole number of at least 1"),
    ({"r": "500"}, "r", "rank 500 at model.layers.0.self_attn.q_proj (64 × 64)"),
    ({"seed": "1.5"}, "seed", "seeds: '1.5' is no whole number of at least 0"),
    ({"learning_rate": "-1"}, "learning_rate", "learning rates: '-1' is no number above 0"),
    ({"learning_rate": "nan"}, "learning_rate", "learning rates: 'nan' is no number above 0"),
    ({"target_modules": "q+w"}, "target_modules", "targets: no 'w' here; use q, k, v, o, gate"),
    ({"layers": "2-9"}, "layers", "layers: 2-9 is not there; the model has 0 to 3"),
    ({"layers": "last"}, "layers", "layers: 'last'; write 0-3, a single one, or all"),
    ({"method": "LORO"}, "method", "methods: no method 'LORO'; use LoRA, AdaLoRA"),
    ({"method": "BitFit"}, "method", "choose BitFit in the settings, tick “new zero biases”"),
    ({"method": "FT", "r": "4"}, "r", "ranks: none of the methods has ranks; leave it empty"),
    ({"r": "4", "stop_at": "soon"}, "stop_at", "stop early: 'soon' is no whole number"),
    ({"r": "4", "stop_at": "3"}, "stop_at", "step 3 is not before a cell's end (3 steps); use"),
    ({"r": "4", "stop_at": "50"}, "stop_at", "stop early: step 50 is not before a cell's end"),
    ({"r": "4", "name": "../up"}, "name", "name is '../up'; use letters, digits"),
    ({"seed": ",".join(map(str, range(60))), "r": "1,2,3"}, "", "180 combinations; the panel"),
]


@pytest.mark.parametrize(("values", "field", "line"), REFUSED)
def test_what_cannot_be_is_one_line_and_names_its_field(wb, tmp_path, values, field, line):
    plan = typed(wb, **values)
    assert plan["bad"]
    assert plan["field"] == field
    assert line in plan["line"]
    assert "\n" not in plan["line"]
    assert line in send(wb, type="start", values=values)
    assert wb.sweep is None
    assert list(tmp_path.iterdir()) == []


def test_the_base_that_changes_is_counted_with_the_next_heartbeat(wb):
    assert typed(wb, layers="0-1, 2-3")["line"] == "2 cells × 3 steps"
    wb.grid.ranks = {"model.layers.0.self_attn.q_proj": 4}
    plan = tick(wb).plan
    assert (plan["bad"], plan["field"]) == (True, "layers")
    assert plan["line"] == "layers: no rank is painted in 2-3; paint one there"


# Training -----------------------------------------------------------------------------------------


def test_a_sweep_from_start_to_the_table(wb, tmp_path):
    values = {"r": "2, 4", "name": "ranks"}
    typed(wb)
    assert send(wb, type="start", values=values) is None
    assert "is training; stop it to start another run" in _refused(wb.start)
    with pytest.raises(RunError, match="is training; stop it to change the plan"):
        wb.config = ll.LoraConfig()
    assert "still training" in send(wb, type="start", values=values)
    seen = set()
    until(lambda: (seen.add(tick(wb).progress.get("line")), not wb.sweep_panel.going)[1])
    panel = tick(wb)
    assert any(line.startswith("cell 1 of 2 · r=2 · ") for line in seen)
    assert any(line.startswith("cell 2 of 2 · r=4 · ") for line in seen)
    assert panel.progress["state"] == "done"
    assert panel.progress["folder"] == str(tmp_path / "ranks")
    results = wb.sweep.results()
    by_loss = sorted(results.values(), key=lambda result: result.metrics["loss_after"])
    assert [row["cell"] for row in panel.rows] == [result.cell for result in by_loss]
    assert [row["best"] for row in panel.rows] == [True, False]
    losses = [result.metrics["loss_after"] for result in by_loss]
    assert [row["loss"] for row in panel.rows] == pytest.approx(losses, rel=1e-5)
    assert panel.plan["line"].startswith("2 cells × 3 steps · about ")
    assert ll.attached(wb.lm.model) == {}
    assert wb.run.id == results[wb.sweep.cells[-1].id].run, "the cell that trained was on show"
    wb.start().result(60)

    send(wb, type="start", values={"r": "2, 4, 8", "name": "ranks"})
    until(lambda: not tick(wb).going)
    assert tick(wb).progress["told"] == "2 skipped: finished in an earlier call"
    assert len(panel.rows) == 3


def test_the_cell_that_trains_is_the_run_on_show_and_stop_ends_the_sweep(wb):
    wb.panel.settings = {**wb.panel.settings, "max_steps": 100_000}
    typed(wb)
    send(wb, type="start", values={"r": "2, 4"})
    until(lambda: tick(wb) and wb.panel.snapshot["step"] > 1)
    assert wb.run is wb.sweep.snapshot.run
    assert wb.grid.locked
    assert set(wb.delta_w.ranks.values()) == {2}
    wb.panel._handle({"type": "command", "name": "pause", "seq": "c", "settings": {}})
    until(lambda: tick(wb) and wb.panel.snapshot["state"] == "paused")
    wb.panel._handle({"type": "command", "name": "resume", "seq": "c", "settings": {}})
    wb.panel._handle({"type": "command", "name": "stop", "seq": "c", "settings": {}})
    until(lambda: tick(wb).progress["state"] == "stopped")
    assert wb.sweep.snapshot.ended == {}
    tick(wb)
    assert not wb.grid.locked
    assert ll.attached(wb.lm.model) == {}


def test_answers_wait_for_the_sweep_to_rest(wb):
    wb.panel.settings = {**wb.panel.settings, "max_steps": 4}
    typed(wb)
    send(wb, type="start", values={"seed": "0, 1, 2, 3"})
    answers = [wb.session.answer("name[The Blue Fig]", 2) for _ in range(4)]
    assert len({base for base, _ in answers}) == 1, "the base model's own, whoever trains"
    results = wb.sweep.results(60)
    assert {result.state for result in results.values()} == {"done"}


def test_a_sweep_waits_for_no_run_and_says_so(wb):
    wb.panel.settings = {**wb.panel.settings, "max_steps": 100_000}
    wb.start()
    typed(wb)
    assert "is running; stop it to start a sweep" in send(wb, type="start", values={"r": "2"})
    assert wb.sweep is None
    wb.run.stop()
    wb.run.wait(60)


def test_the_folder_of_another_sweep_is_one_line_and_the_adapter_stays(wb, tmp_path):
    wb.start().result(60)
    (tmp_path / "sweep").mkdir()
    told = {"told": {"model": "another"}, "cells": []}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(told))
    typed(wb)
    message = send(wb, type="start", values={"r": "2"})
    assert "holds a sweep of another model or task; use another name" in message
    assert ll.attached(wb.lm.model)["default"] is wb.run.adapter
    assert wb.sweep is None


def test_a_sweep_of_ones_own_is_watched(wb, tmp_path):
    early = AshaConfig(grace_steps=1, reduction=2)
    own = ll.sweep(
        wb.lm, wb.task, grid={"r": [1, 2]}, output_dir=tmp_path, early_stopping=early, start=False,
        **QUICK,
    )  # fmt: skip
    assert wb.watch(own) is own is wb.sweep
    assert wb.sweep_panel.form["open"]
    assert [row["state"] for row in wb.sweep_panel.rows] == ["waiting", "waiting"]
    own.start()
    with pytest.raises(RunError, match="the sweep on show is still training"):
        wb.watch(ll.sweep(wb.lm, wb.task, grid={"r": [1]}, output_dir=tmp_path, start=False))
    own.results(60)
    assert tick(wb).progress["line"] == "2 of 2 cells"
    assert wb.sweep_panel.summary() == "<Sweep sweep: done, 2 of 2 cells>"


def test_a_sweep_file_holds_the_same_cells(wb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed(wb)
    values = {"r": "2, 4", "seed": "0, 1", "stop_at": "2", "name": "ranks"}
    assert "is a model of your own" in send(wb, type="write", values=values)
    card = dataclasses.replace(wb.lm.card, source="hub", name="a/b")
    wb = Workbench(dataclasses.replace(wb.lm, card=card), output_dir=tmp_path, **QUICK)
    typed(wb)
    several = {"method": "LoRA, FT", "target_modules": "q, v", "learning_rate": "1e-4, 2e-4"}
    for given, file in ((values, "sweep.yaml"), ({**values, **several}, "sweep-2.yaml")):
        assert send(wb, type="write", values=given) is None
        plan = SweepPlan.read(tmp_path / file)
        mine = wb.sweep_panel.read({**wb.sweep_panel.form["values"], **given})[1]
        assert {cell.id for cell in plan.cells()} == {cell.id for cell in mine}
        assert plan.asha == AshaConfig(grace_steps=2)
        assert plan.run_config.name == "ranks"
    assert [line["text"] for line in wb.sweep_panel.run_file["commands"]] == [
        "lora-lab sweep sweep-2.yaml",
        "lora-lab sweep sweep-2.yaml --ray auto",
    ]
    assert "r:" in (tmp_path / "sweep.yaml").read_text()


def _refused(act) -> str:
    with pytest.raises(RunError) as caught:
        act()
    return str(caught.value)


def test_what_the_browser_may_send_by_mistake_is_one_line(wb):
    assert "unknown message 'dance'" in send(wb, type="dance")
    assert "has no field 'x'" in send(wb, type="set", values={"x": "1"})
    assert "no sweep is on show" in send(wb, type="stop")
    typed(wb, r="4" * 10_000)
    assert len(wb.sweep_panel.form["values"]["r"]) == 300
    assert len(wb.sweep_panel.plan["line"]) < 400


def test_messages_of_several_threads_at_once_do_no_harm(wb):
    typed(wb, r="2")
    threads = [
        threading.Thread(
            target=lambda n=n: [
                send(wb, type="set", values={"seed": f"{n}, {i}"}) for i in range(10)
            ]
        )
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tick(wb)
    assert not tick(wb).plan["bad"]
