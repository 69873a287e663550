"""The advice on the bench: when it is given, what it fills in, and the probe that paints ranks."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError
from lora_lab_widgets import Workbench
from lora_lab_widgets import advice as module
from lora_lab_widgets.advice import PASSES, AdvicePanel
from lora_lab_widgets.panel import Tick
from tests.helpers.fake_views import until
from tests.helpers.tiny_run import tiny_lm, tiny_task

IDLE, BUSY = Tick(), Tick(busy=True)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path, max_length=64)


def tell(panel: AdvicePanel, kind: str, **more: Any) -> None:
    """Say something as the page does."""
    panel._receive(panel, {"type": kind, **more}, [])


def settled(panel: AdvicePanel, tick: Tick = IDLE) -> AdvicePanel:
    def quiet() -> bool:
        panel.update(tick)
        return not panel._job.busy and not panel.busy

    until(quiet)
    return panel


def opened(bench: Workbench) -> AdvicePanel:
    tell(bench.advice, "open", value=True)
    return settled(bench.advice)


def test_nothing_is_looked_at_before_it_is_opened(bench: Workbench) -> None:
    panel = settled(bench.advice)
    assert panel.advice == {}
    assert repr(panel) == "<AdvicePanel no advice yet>"
    tell(panel, "open", value=True)
    assert settled(panel, BUSY).advice == {}, "nor while something trains"
    assert settled(panel).advice["of"] == "letters"


def test_it_shows_what_advise_says(bench: Workbench) -> None:
    panel = opened(bench)
    tell(panel, "set", memory="1 GB")
    settled(panel)
    said = ll.advise(bench.lm, bench.task, memory="1 GB")
    assert [row[1] for row in panel.advice["rows"]] == [each.shown for each in said.recommendations]
    assert [row[2] for row in panel.advice["rows"]] == [e.finding for e in said.recommendations]
    assert any(row[3].startswith("heuristic; ") for row in panel.advice["rows"])
    assert panel.problem is None
    assert "heuristic; " in panel.fallback_html()
    tell(panel, "set", memory="plenty")
    settled(panel)
    assert "memory is 'plenty'" in panel.problem["message"]
    before = panel.problem
    assert settled(panel).problem is before, "what was refused is not asked again"
    tell(panel, "set", memory="")
    assert settled(panel).problem is None


def test_another_task_of_the_same_name_is_advised_on_anew(bench: Workbench) -> None:
    panel, task = opened(bench), bench.task
    before = panel.advice
    long = [dataclasses.replace(e, prompt="x " * 20 + ">") for e in task.train]
    bench.plan.add_task(dataclasses.replace(task, train=long * 2))
    said = ll.advise(bench.lm, bench.task)
    assert settled(panel).advice != before
    assert [row[1] for row in panel.advice["rows"]] == [each.shown for each in said.recommendations]


def test_it_fills_the_form_and_the_grid(bench: Workbench) -> None:
    panel = opened(bench)
    bench.config = ll.BitFitConfig(new_biases=True)
    bench.plan.take_training({"gradient_accumulation_steps": 4})
    tell(panel, "fill")
    said = ll.advise(bench.lm, bench.task)
    expected = said.config.replace(target_modules=bench.anatomy.roles)  # as the grid names them
    assert bench.config == expected
    assert {*bench.grid.ranks.values()} == {said.config.r}  # type: ignore[attr-defined]
    training = bench.plan.training()
    assert {name: training[name] for name in said.training} == dict(said.training)
    assert training["gradient_accumulation_steps"] == 1, "what earlier settings left is gone"
    assert bench.panel.settings["learning_rate"] == said.training["learning_rate"]
    run = bench.start()
    run.stop()
    run.wait(60)


def test_while_a_run_trains_it_fills_and_probes_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = opened(bench)

    def training(what: str) -> None:
        raise RunError(f"run 7 is running; stop it to {what}")

    monkeypatch.setattr(bench.session, "needs_rest", training)
    before = bench.config
    for kind, what in (("fill", "fill in the advice"), ("probe", "probe its layers")):
        tell(panel, kind)
        assert panel.problem["message"] == f"run 7 is running; stop it to {what}"
    assert bench.config == before
    assert panel.layers == {}


def test_a_probe_paints_norms_and_proposes_ranks(bench: Workbench) -> None:
    panel = opened(bench)
    tell(panel, "probe", parameters="4,000")
    assert panel.busy.startswith("probing")
    settled(panel)
    found = ll.which_layers(bench.lm, bench.task, parameters=4000, passes=PASSES, max_length=64)
    cells = {(row, column): cell for row, column, *cell in panel.layers["cells"]}
    assert len(cells) == len(bench.anatomy.grid_sites) == 14
    norms = found.gradients.norms
    most = max(norms.values())
    for cell in bench.grid.cells:
        share, norm, r, uniform = cells[cell["row"], panel.layers["roles"].index(cell["role"])]
        name = cell["site"]
        assert share == pytest.approx(norms[name] / most, abs=1e-3)
        assert norm == pytest.approx(norms[name], rel=0.01)
        assert (r, uniform) == (
            found.proposed.ranks.get(name, 0),
            found.uniform.ranks.get(name, 0),
        )
    assert "heuristic" in panel.layers["notes"][0]
    for which, plan in (("proposed", found.proposed), ("uniform", found.uniform)):
        tell(panel, "paint", plan=which)
        assert bench.grid.ranks == dict(plan.ranks)
        assert bench.config == plan.config
        assert panel.painted == which
    tell(panel, "fill")
    assert panel.painted == ""


def test_a_probe_can_be_ended(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*_: Any, done: Any, **__: Any) -> None:
        assert gate.wait(10)
        done(1)
        raise AssertionError("it goes on")

    monkeypatch.setattr(module, "which_layers", slow)
    panel = opened(bench)
    tell(panel, "probe")
    tell(panel, "probe")
    assert "at work still" in panel.problem["message"]
    tell(panel, "cancel")
    gate.set()
    settled(panel)
    assert (panel.layers, panel.problem) == ({}, None)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"type": "probe", "parameters": "many"}, "parameters is 'many'"),
        ({"type": "paint", "plan": "proposed"}, "no layer was probed yet"),
        ({"type": "dance"}, "unknown message 'dance'"),
    ],
)
def test_what_cannot_be_is_one_line(bench: Workbench, message: dict[str, Any], said: str) -> None:
    panel = opened(bench)
    panel._receive(panel, message, [])
    assert said in panel.problem["message"]
    assert panel.problem["details"] == ""


def test_a_budget_below_one_is_told_by_the_probe(bench: Workbench) -> None:
    panel = opened(bench)
    tell(panel, "probe", parameters="10")
    settled(panel)
    assert "less than r = 1" in panel.problem["message"]
    with pytest.raises(ConfigError):
        ll.which_layers(bench.lm, bench.task, parameters=10)


def test_nothing_is_sent_when_nothing_is_new(bench: Workbench) -> None:
    panel = opened(bench)
    sent: list[Any] = []
    panel.observe(lambda change: sent.append(change["name"]))
    for _ in range(3):
        panel.update(IDLE)
    assert sent == []


def test_of_the_norms_on_show_the_largest_has_the_last_color(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier's head has a norm, often the largest, and no cell."""
    found = ll.which_layers(bench.lm, bench.task, passes=1)
    gradients = dataclasses.replace(
        found.gradients, by_pass={**found.gradients.by_pass, "score": (99.0,)}
    )
    made = dataclasses.replace(found, gradients=gradients)
    monkeypatch.setattr(module, "which_layers", lambda *_, **__: made)
    panel = opened(bench)
    tell(panel, "probe")
    settled(panel)
    assert max(cell[2] for cell in panel.layers["cells"]) == 1.0
