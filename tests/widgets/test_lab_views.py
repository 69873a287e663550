"""The views of ΔW on a tiny model: two runs on disk, the second one's adapter in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_lab as ll
from lora_lab.errors import AdapterError, RunError
from lora_lab_widgets import Workbench
from lora_lab_widgets.lab_views import VIEWS, CancelledError, View, Watch
from lora_lab_widgets.lab_views import intruders as intruders_module
from lora_lab_widgets.lab_views.sweep import SweepView
from tests.helpers.tiny_chat import tiny_chat_model

# Four steps at the full rate leave some intruders at ε = 0.9, and none at 0.4.
QUICK = {
    "max_steps": 4,
    "warmup_steps": 0,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 2,
}
SLOWLY = {**QUICK, "learning_rate": 2e-3}  # so that no direction of ΔW is an intruder
Q, V = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return a workbench that has trained twice: q and o at r=8, then q and v at r=4."""
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path_factory.mktemp("runs"), **SLOWLY)
    for config in (
        ll.LoraConfig(r=8, target_modules=["q", "o"]),
        ll.LoraConfig(r=4, target_modules=["q", "v"]),
    ):
        wb.config = config
        wb.start().result()
    return wb


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(*tiny_chat_model(), output_dir=tmp_path_factory.mktemp("none"), **QUICK)


def view(bench: Workbench, key: str, **values: Any) -> View:
    """Return a fresh view with its controls looked at once."""
    kind = next(kind for kind in VIEWS if kind.key == key)
    session = bench.session
    made = kind(session.live_adapter, session.anatomy, session.output_dir)
    made.values.update(values)
    made.controls()
    return made


def look(view: View, before: Any = None) -> Any:
    """Measure, draw in both themes, and return the data."""
    measured = view.measure(dict(view.values), before, Watch())
    view.measured(measured.data)
    view.controls()
    for theme, width in (("light", 400), ("dark", 1000)):
        figure = view.figure(measured.data, theme, width)
        assert figure.layout.width == width
        assert figure.layout.height
    assert len(view.words(measured.data)) > 30
    return measured.data


def built(bench: Workbench, site: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ΔW and W₀ in float64."""
    adapter = ll.attached(bench.lm.model)["default"]
    A, B = (adapter.sites[site].A, adapter.sites[site].B)
    delta = adapter.sites[site].scale * (B.detach().double() @ A.detach().double())
    return delta.numpy(), adapter.base_weight(site).detach().double().numpy()


def test_spectrum_is_of_the_site_that_is_chosen(bench: Workbench) -> None:
    data = look(view(bench, "spectrum", site=V))
    delta, W = built(bench, V)
    np.testing.assert_allclose(data.delta, np.linalg.svd(delta)[1][:4], rtol=1e-4)
    np.testing.assert_allclose(data.weight[:8], np.linalg.svd(W)[1][:8], rtol=1e-4)
    assert data.step == 4


def test_phi_against_the_base_model(bench: Workbench) -> None:
    data = look(view(bench, "subspaces", site=V))
    delta, W = built(bench, V)
    mine, base = np.linalg.svd(delta)[2][:2], np.linalg.svd(W)[2][:3]
    phi = np.linalg.norm(mine @ base.T) ** 2 / 2
    assert data.values[1, 2] == pytest.approx(phi, rel=1e-3)
    assert data.side == "input"


def test_phi_against_another_run_and_a_folder(bench: Workbench) -> None:
    shown = view(bench, "subspaces", site=Q)
    others = next(c for c in shown.controls() if c["name"] == "against")["options"]
    assert len(others) == 3, "W₀, the first run, a folder; not the run that is looked at"
    first = Path(others[1][1])
    shown.values["against"] = str(first)
    data = look(shown)
    assert data.values.shape == (4, 8)
    assert data.first == "this ΔW, r=4, seed 0"
    assert data.second == f"run {first.parent.name[-4:]}, r=8, seed 0"
    own = str(bench.run.folder)  # a run's folder stands for its adapter
    shown.values.update(against="folder", folder=own, side="output")
    data = look(shown)
    np.testing.assert_allclose(np.diag(data.values), 1, atol=1e-4)
    assert data.side == "output"
    shown.values["excess"] = True
    look(shown)


def test_what_cannot_be_compared_is_said(bench: Workbench, tmp_path: Path) -> None:
    shown = view(bench, "subspaces", site=V, against="folder")
    assert shown.wanted() is None
    assert "folder" in shown.empty()
    shown.values["folder"] = str(tmp_path)
    with pytest.raises(AdapterError, match=str(tmp_path)):
        look(shown)
    records = shown.records()
    shown.values["folder"] = str(records[-1].folder)  # it adapts q and o
    with pytest.raises(AdapterError, match=r"does not adapt .*v_proj; it adapts"):
        look(shown)
    shown.values["folder"] = "~nobody-here/run"
    with pytest.raises(AdapterError, match="begins with the home folder of a user"):
        look(shown)


def test_table_7_of_every_site(bench: Workbench) -> None:
    rows = look(view(bench, "amplification"))
    assert {row.name for row in rows} == set(bench.grid.ranks)
    row = next(row for row in rows if row.name == V)
    delta, W = built(bench, V)
    U, _, Vt = np.linalg.svd(delta)
    assert row.along_delta == pytest.approx(np.linalg.norm(U[:, :4].T @ W @ Vt[:4].T), rel=1e-3)
    assert row.delta_norm == pytest.approx(np.linalg.norm(delta), rel=1e-4)


def test_measuring_every_site_tells_how_far_it_is_and_can_be_ended(bench: Workbench) -> None:
    told: list[str] = []

    class Ends(Watch):
        def tell(self, text: str, done: int = 0, total: int = 0) -> None:
            told.append(text)
            self.cancelled = len(told) == 4
            super().tell(text, done, total)

    with pytest.raises(CancelledError):
        view(bench, "amplification").measure({}, None, Ends())
    assert told[1:] == [f"W₀'s directions: matrix {n} of 8" for n in (1, 2, 3)]


def test_maps_over_steps_follow_the_slider(bench: Workbench) -> None:
    shown = view(bench, "steps")
    assert shown.values["run"] == str(bench.run.folder)
    data = look(shown)
    marks = shown.controls()[1]["marks"]
    assert marks[0] == "step 0"
    assert marks[-1] == "step 4"
    assert shown.values["step"] == len(marks) - 1
    delta, W = built(bench, V)
    cell = data.roles.index("v"), data.layers.index("1")
    wanted = np.linalg.norm(delta) / np.linalg.norm(W)
    assert data.relative_sizes[-1][cell] == pytest.approx(wanted, rel=1e-3)
    figure = shown.figure(data, "light", 800)
    shown.values["step"] = 0
    assert shown.redraw(figure, data)
    assert np.nanmax(figure.data[1].z) == 0  # nothing is learned at step 0
    assert "step 0" in shown.words(data).lower()
    shown.measured(data)
    assert shown.values["step"] == 0, "a slider that was moved back stays there"


def test_intruders_and_the_slider_that_scales_them(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = view(bench, "intruders", epsilon="0.9")
    found = look(shown)
    assert len(found.rows) == 8
    assert sum(row.count for row in found.rows) > 0
    assert shown.complete(found)

    measured: list[list[float]] = []
    real = intruders_module.intruder_curve

    def counted(*args: Any, factors: Any, **kwargs: Any) -> Any:
        measured.append(list(factors))
        return real(*args, factors=factors, **kwargs)

    monkeypatch.setattr(intruders_module, "intruder_curve", counted)
    shown.values["show"] = "curve"
    assert not shown.complete(found)
    curve = look(shown, found)
    assert curve.rows is found.rows, "they are not looked for again"
    assert measured == [[0.0, 0.25, 0.5, 0.75, 1.0]]
    assert shown.complete(curve)
    shown.values["lambda"] = 7
    assert not shown.complete(curve)
    assert "λ = 0.35: not measured yet" in shown.words(curve)
    more = look(shown, curve)
    assert measured[1:] == [[0.35]]
    assert more.curve.factors.tolist() == [0.0, 0.25, 0.35, 0.5, 0.75, 1.0]
    assert f"task loss {more.curve.task_losses[2]:.3f}" in shown.words(more)
    figure = shown.figure(more, "light", 800)
    shown.values["lambda"] = 0
    assert shown.redraw(figure, more)
    assert {s.x0 for s in figure.layout.shapes if s.name == "lambda"} == {0.0}


def test_without_an_intruder_nothing_is_scaled(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intruders_module, "intruder_curve", None)
    shown = view(bench, "intruders", epsilon="0.4", top_k="5", show="curve")
    found = look(shown)
    assert sum(row.count for row in found.rows) == 0
    assert shown.complete(found)
    assert "Nothing to scale: raise ε" in shown.words(found)


def test_a_sweep_over_the_runs_on_disk(bench: Workbench) -> None:
    shown = view(bench, "sweep")
    assert [c["name"] for c in shown.controls()] == ["group", "metric", "show"]
    data = look(shown)
    own = bench.run.result().metrics["loss_after"]
    assert np.isclose(data.values, own, rtol=1e-4).any()


@pytest.mark.parametrize("shown", ["rates", "parameters", "seconds", "memory"])
def test_methods_over_their_rates_and_against_what_they_cost(bench: Workbench, shown: str) -> None:
    made = view(bench, "sweep", show=shown)
    made.controls()
    _, found = look(made)
    scores = {record.summary["metrics"]["loss_after"] for record in made.records()}
    assert {value for row in found.rows for value in row.values} <= scores
    assert {row.method for row in found.rows} == {"LoRA"}


def test_the_capacity_gauge(bench: Workbench) -> None:
    data = look(view(bench, "capacity"))
    assert data.parameters == bench.savings.budget.parameters_trainable
    assert data.bits == 2 * data.parameters


def test_a_new_run_is_chosen_as_soon_as_it_can_be(bench: Workbench) -> None:
    shown = view(bench, "capacity")
    first, second = shown.records()[-1], shown.records()[0]
    assert shown.values["run"] == str(second.folder) == str(bench.run.folder)
    shown.values["run"] = str(first.folder)  # chosen by hand, and so it stays
    shown.controls()
    assert shown.values["run"] == str(first.folder)
    assert shown.live_run(bench.run.snapshot) is None
    shown.followed = None  # another run has begun since
    sites = second.folder / "sites.json"
    hidden = sites.rename(sites.with_name("sites.later"))
    try:
        shown.controls()
        assert (shown.values["run"], shown.due) == (str(first.folder), False)
    finally:
        hidden.rename(sites)
    assert shown.due
    shown.controls()
    assert (shown.values["run"], shown.due) == (str(second.folder), False)
    assert shown.live_run(bench.run.snapshot) == (4, True)


def test_runs_of_which_none_has_ended_with_a_score_are_an_empty_state(
    bench: Workbench, tmp_path: Path
) -> None:
    for record in view(bench, "sweep").records():
        shutil.copytree(record.folder, tmp_path / record.id)
    empty = SweepView(bench.session.live_adapter, bench.session.anatomy, tmp_path)
    runs = sorted(tmp_path.iterdir())
    for run in runs:  # as they stand while they train
        (run / "summary.json").rename(run / "summary.later")
    empty.controls()
    assert empty.wanted() is None
    assert empty.empty() == (
        "Scores of many runs show here, rank by rate or method by method. None has ended with one "
        "yet: open the sweep below, or press Start a few times with other settings."
    )
    (runs[1] / "summary.later").rename(runs[1] / "summary.json")
    controls = empty.controls()
    assert "1 run" in controls[0]["options"][0][0]
    assert empty.wanted() is not None
    assert np.isfinite(look(empty).values).all()


def test_a_sweep_offers_the_metrics_of_its_own_runs_alone(bench: Workbench, tmp_path: Path) -> None:
    folders = [record.folder for record in view(bench, "sweep").records()]
    for folder, task in zip(folders, ("a", "b"), strict=True):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        config = json.loads((copy / "config.json").read_text())
        config["task"]["name"] = task  # of two tasks, and so two maps
        (copy / "config.json").write_text(json.dumps(config))
        summary = json.loads((copy / "summary.json").read_text())
        summary["metrics"] = {f"loss{'_b' * (task == 'b')}_after": 1.0}
        (copy / "summary.json").write_text(json.dumps(summary))
    shown = SweepView(bench.session.live_adapter, bench.session.anatomy, tmp_path)
    for group in "01":
        shown.values["group"] = group
        shown.controls()
        assert np.nanmax(look(shown).values) == 1


def test_without_an_adapter_or_a_run_every_view_says_what_to_do(untrained: Workbench) -> None:
    for kind in VIEWS:
        empty = view(untrained, kind.key)
        assert empty.wanted() is None
        assert empty.empty().endswith(".")
        assert "Start" in empty.empty() or "train" in empty.empty()


def test_a_site_that_lost_its_adapter_is_an_error(bench: Workbench) -> None:
    with pytest.raises(AdapterError, match="has no adapter; pick another matrix"):
        view(bench, "spectrum").measure({"site": "nowhere"}, None, Watch())


def test_runs_that_went_away_are_an_error(bench: Workbench, tmp_path: Path) -> None:
    shown = view(bench, "steps")
    shown.values["run"] = str(tmp_path / "gone")
    with pytest.raises(RunError, match="gone"):
        look(shown)
