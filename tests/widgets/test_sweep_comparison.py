"""A comparison from the sweep panel: each method at its own rate, scored once its cells ended."""

from __future__ import annotations

import dataclasses
import threading

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError
from lora_lab.sweeps.compare_plan import ComparePlan
from lora_lab.sweeps.design import RATES
from lora_lab.sweeps.local import Sweep
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model
from tests.widgets.test_sweep_panel import QUICK, send, tick, typed, until

SCORED = {**QUICK, "eval_examples": 4}
WANTED = {"compare": "yes", "method": "LoRA, FT", "learning_rate": "1e-4, 1e-3", "seed": "0, 1"}
SMALL = WANTED | {"learning_rate": "1e-3", "seed": "0"}  # where one cell a method will do


@pytest.fixture
def wb(tmp_path):
    bench = Workbench(*tiny_chat_model(), output_dir=tmp_path, **SCORED)
    yield bench
    if bench.sweep is not None:
        bench.sweep.stop()
        bench.sweep.wait(60)


def test_its_cells_are_those_of_the_call(wb, tmp_path):
    assert not typed(wb, **WANTED)["bad"]
    line = wb.sweep_panel.plan["line"]
    assert line.startswith("8 cells × 3 steps · ")
    assert "2 methods, each at its own rate by the held-out loss of 2 examples" in line
    _, cells = wb.sweep_panel.read(wb.sweep_panel.form["values"])
    config = wb.config
    called = ll.compare(
        wb.lm, wb.task, [config, ll.FullConfig()], rates=[1e-4, 1e-3], seeds=[0, 1],
        output_dir=tmp_path, start=False, **SCORED,
    )  # fmt: skip
    (sweep,) = called.sweeps.values()
    assert {cell.id for cell in cells} == {cell.id for cell in sweep.cells}


def test_rates_and_seeds_may_be_left_out(wb, tmp_path):
    assert not typed(wb, compare="yes")["bad"]
    _, cells = wb.sweep_panel.read(wb.sweep_panel.form["values"])
    own = {1e-4: 5e-4, 3e-4: 1.5e-3, 1e-3: 5e-3, 3e-3: 1.5e-2, 1e-2: 5e-2}  # LoRA's: five times
    assert {cell.training.learning_rate for cell in cells} == {own[rate] for rate in RATES}
    called = ll.compare(
        wb.lm,
        wb.task,
        [wb.config],
        output_dir=tmp_path,
        start=False,
        **SCORED,
    )
    (sweep,) = called.sweeps.values()
    assert {c.training.learning_rate for c in sweep.cells} == {own[rate] for rate in RATES}
    assert {cell.training.seed for cell in cells} == {0, 1, 2}
    assert len(cells) == 15


def test_it_is_trained_scored_and_told(wb, tmp_path):
    typed(wb)
    assert send(wb, type="start", values=WANTED) is None
    assert send(wb, type="start", values=WANTED)  # while it trains: refused
    wb.sweep.wait(120)
    until(lambda: tick(wb).found or wb.session.scorer.busy)
    until(lambda: not wb.session.scoring)  # ticks would take its time
    until(lambda: tick(wb).found)
    found = wb.sweep_panel.found
    assert [row[1] for row in found["rows"]] == ["LoRA", "FT"]
    assert "has the best held-out loss" in found["words"]
    assert "2 learning rates a method" in found["notes"]
    called = ll.compare(
        wb.lm, wb.task, [wb.config, ll.FullConfig()], rates=[1e-4, 1e-3], seeds=[0, 1],
        output_dir=tmp_path, name="sweep", **SCORED,
    )  # fmt: skip
    own = called.results(60)  # nothing is trained again
    assert next(iter(called.sweeps.values())).snapshot.skipped == 8
    assert found["rows"] == [list(row) for row in own.to_table().rows]
    assert not wb.session.scoring
    assert send(wb, type="start", values={"r": "2", "compare": "", "name": "next"}) is None
    assert wb.sweep_panel.found == {}


def test_nothing_else_trains_while_it_is_scored_and_no_page_has_to_look_on(wb):
    over = threading.Event()
    wb.session.scorer.start(over.wait)
    with pytest.raises(RunError, match="a comparison is being scored on the model; start another"):
        wb.start()
    over.set()
    until(lambda: not wb.session.scoring)  # without a tick: the page was closed meanwhile
    wb.start()
    wb.run.stop()
    wb.run.wait(60)


def test_what_came_of_a_comparison_without_a_page_is_not_the_next_ones(wb):
    typed(wb)
    assert send(wb, type="start", values=SMALL) is None
    wb.sweep.wait(120)
    until(lambda: tick(wb) and wb.session.scorer.busy)
    until(lambda: not wb.session.scoring)
    assert send(wb, type="start", values=SMALL | {"name": "next"}) is None
    assert wb.sweep.folder.name.startswith("next")
    assert wb.sweep_panel.found == {}
    assert wb.sweep_panel._comparison is not None, "it is scored when its own cells have ended"


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"stop_at": "2"}, "stop_at", "a comparison trains every cell to its end"),
        ({"seed": ",".join(map(str, range(70)))}, "", "the panel takes 120 at most, ll.compare"),
    ],
)
def test_what_cannot_be_is_said_before_start(wb, values, field, said):
    plan = typed(wb, **{**WANTED, **values})
    assert plan["bad"]
    assert plan["field"] == field
    assert said in plan["line"]


def test_too_few_held_out_examples_are_said_before_start(wb):
    wb.panel.settings = {**wb.panel.settings, "eval_examples": 3}
    plan = typed(wb, **WANTED)
    assert plan["bad"]
    assert "is left with 3 held-out examples" in plan["line"]


def test_a_file_holds_the_same_comparison(wb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = dataclasses.replace(wb.lm.card, source="hub", name="a/b")
    wb = Workbench(dataclasses.replace(wb.lm, card=card), output_dir=tmp_path, **SCORED)
    typed(wb)
    assert send(wb, type="write", values=WANTED) is None
    assert [line["text"] for line in wb.sweep_panel.run_file["commands"]] == [
        "lora-lab compare compare.yaml",
        "lora-lab compare compare.yaml --ray auto",
    ]
    plan = ComparePlan.read(tmp_path / "compare.yaml")
    mine = wb.sweep_panel.read({**wb.sweep_panel.form["values"], **WANTED})[1]
    assert {c.id for part in plan.parts() for c in part.cells()} == {c.id for c in mine}


def test_what_came_of_a_comparison_is_not_shown_under_another_sweep(wb, tmp_path):
    typed(wb)
    assert send(wb, type="start", values=SMALL) is None
    wb.sweep.wait(120)
    until(lambda: tick(wb) and wb.session.scorer.busy)
    first = wb.sweep
    other = Sweep(wb.lm, wb.task, first.cells[:1], tmp_path / "other")
    wb.watch(other)
    until(lambda: tick(wb) and not wb.session.scorer.busy)
    assert wb.sweep is other
    assert wb.sweep_panel.found == {}
    assert wb.sweep_panel.problem is None
    wb.watch(first)


def test_a_comparison_is_no_sweep_to_watch(wb, tmp_path):
    made = ll.compare(
        wb.lm, wb.task, [wb.config], rates=[1e-3], seeds=1, output_dir=tmp_path, start=False,
        **SCORED,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"a Comparison is no sweep; .* pass one of its \.sweeps"):
        wb.watch(made)
    assert wb.sweep is None
    tick(wb)
