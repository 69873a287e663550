"""The workbench without a browser: messages go to the handlers as the comm would bring them."""

from __future__ import annotations

import dataclasses
import time

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.lora.targets import ranks as ranks_of
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.snapshot import Failure
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_run import tiny_lm, tiny_task

PARTS = ("weights", "gradients", "optimizer", "activations")
QUICK = {"max_steps": 4, "per_device_train_batch_size": 2, "max_length": 96, "eval_examples": 0}


@pytest.fixture
def wb(tmp_path):
    bench = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    yield bench
    if bench.run is not None and not bench.run.state.final:
        bench.run.stop()
        bench.run.wait(60)


def tick(wb, theme="light", width=1000):
    wb.panel._handle({"type": "tick", "seq": "t", "theme": theme, "width": width})
    return wb.panel.snapshot


def command(wb, name, **settings):
    wb.panel._handle({"type": "command", "name": name, "seq": "c", "settings": settings})
    return wb.panel.snapshot


def send(wb, **content):
    wb.history._handle_custom_msg(content, [])


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_started_takes_the_ranks_that_the_page_shows(wb):
    """They come with the command: the grid's own message may be late, or come after it."""
    late = dict(wb.grid.ranks)
    shown = {"model.layers.1.mlp.down_proj": 2}
    content = {"type": "command", "name": "start", "seq": "c", "settings": {}}
    wb.panel._handle({**content, "ranks": {}})
    problem = "no rank is painted; give at least one matrix a rank"
    assert wb.panel.snapshot["problem"]["message"] == problem
    assert wb.run is None
    wb.panel._handle({**content, "ranks": {"model.layers.1.mlp.down_prj": 2}})
    assert "did you mean 'model.layers.1.mlp.down_proj'?" in wb.panel.snapshot["problem"]["message"]
    wb.grid.ranks = late
    wb.panel._handle({**content, "ranks": shown})
    assert ranks_of(wb.anatomy, wb.run.configs[0]) == wb.grid.ranks == shown
    wb.run.wait(60)


def test_it_starts_as_the_paper_does(wb):
    assert wb.config == ll.LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"])
    assert {wb.anatomy.by_name[site].role for site in wb.grid.ranks} == {"q", "v"}
    whole = "ll.LoraConfig(r=8, lora_alpha=16, target_modules=('q', 'v'))"
    assert whole in wb.grid.code, "what is a default is said too"
    assert wb.header.chips[2:] == ["mini-e2e · synthetic", "α 16 · dropout 0"]


def test_config_round_trip_and_repaint(wb):
    config = ll.LoraConfig(
        r=2,
        lora_alpha=4,
        lora_dropout=0.1,
        target_modules=["down", "model.layers.1.self_attn.k_proj"],
        rank_pattern={r"^model\.layers\.0\.mlp\.down_proj": 16},
        use_rslora=True,
    )
    wb.config = config
    assert wb.grid.ranks == ranks_of(wb.anatomy, config)
    assert wb.savings.ranks == wb.grid.ranks
    assert ranks_of(wb.anatomy, wb.config) == wb.grid.ranks
    assert (wb.config.lora_alpha, wb.config.lora_dropout, wb.config.use_rslora) == (4, 0.1, True)


def test_painting_reprices_and_the_price_is_the_budget(wb):
    wb.grid.ranks = {"model.layers.0.self_attn.q_proj": 4}
    shown = wb.savings.budget
    assert shown.parameters_trainable == 4 * (64 + 64)
    tokens = int(wb.savings.settings_text.split("×")[1].split()[0])
    step = {"batch_size": 2, "sequence_length": tokens, "padding_mask": True}
    step["label_length"] = wb.plan.planned.price.inputs["label_length"]
    expected = ll.budget(wb.lm.model, wb.config, **step)
    assert shown.to_json()["memory"] == expected.to_json()["memory"]


def test_a_run_from_start_to_delta_w(wb):
    assert command(wb, "start")["problem"] is None
    assert tick(wb)["run_id"] == wb.run.id
    until(lambda: tick(wb)["state"] == "done")
    assert len(tick(wb)["losses"]) == 4
    assert wb.savings.measured["kind"] == "tensor bytes on the CPU"
    measured = wb.savings.measured
    assert measured["peak"] > measured["current"] > 0
    assert sum(measured[part] for part in PARTS) == measured["peak"]
    assert wb.savings.run_ranks == wb.grid.ranks
    assert set(wb.delta_w.ranks) == set(wb.grid.ranks)
    until(lambda: (tick(wb), "amplification" in wb.delta_w._line.value)[1])
    assert not wb.grid.locked


def test_dry_runs_come_by_themselves_and_meet_the_measurement(wb):
    until(lambda: (tick(wb), "full" in wb.savings.dry_run)[1])
    assert wb.savings.dry_run["ranks"] == wb.grid.ranks
    forecast = wb.savings.dry_run["plan"]
    assert wb.savings.note == ""
    # A batch of the longest example and a padded one, so that the forecast is of just these steps;
    # and nearly all of it is learned, as the dry run takes it.
    by_length = sorted(wb.task.train, key=lambda e: len(e.prompt + e.completion))
    learned = [
        dataclasses.replace(e, prompt="a", completion=f"{e.prompt} {e.completion}")
        for e in by_length[-2:]
    ]
    wb.plan.add_task(dataclasses.replace(wb.task, train=learned))
    until(lambda: (tick(wb), "full" in wb.savings.dry_run)[1])
    wb.start().result()
    tick(wb)
    measured = wb.savings.measured
    assert measured["settled"]
    assert sum(wb.savings.dry_run["plan"].values()) == pytest.approx(measured["peak"], rel=0.05)
    assert measured["weights"] == forecast["weights"]
    assert wb.savings.difference == ""


def test_the_analysis_looks_at_what_is_selected_and_at_the_latest_adapter(wb):
    lab = wb.laboratory
    lab.panel._handle_custom_msg({"type": "open", "value": True, "seq": "1"}, [])
    tick(wb)
    assert (
        lab.panel.state["note"]
        == "There is no ΔW yet: press Start, and it shows here while it trains."
    )
    wb.start().result()
    until(lambda: (tick(wb), "step 4" in lab.figure_area._words.value)[1])
    assert wb.delta_w.selected in lab.figure_area._words.value
    site = "model.layers.0.self_attn.q_proj"
    wb.delta_w.selected = site
    until(lambda: (tick(wb), site in lab.figure_area._words.value)[1])
    wb.config = ll.LoraConfig(r=2, target_modules=["o"])
    wb.start().result()
    until(lambda: (tick(wb), "self_attn.o_proj" in lab.figure_area._words.value)[1])
    assert lab.panel.problem is None


def test_the_grid_is_locked_while_it_trains_and_the_plan_cannot_change(wb):
    command(wb, "start", max_steps=10_000)
    until(lambda: tick(wb)["step"] > 0)
    assert wb.grid.locked
    with pytest.raises(RunError, match="is running; stop it to change the plan"):
        wb.config = ll.LoraConfig()
    assert "stop it to start another run" in command(wb, "start")["problem"]["message"]
    command(wb, "pause")
    until(lambda: tick(wb)["state"] == "paused")
    assert wb.grid.locked, "the form is, and the run goes on with the ranks that it has"
    before = dict(wb.grid.ranks)
    with pytest.raises(RunError, match="is paused; stop it to change the ranks"):
        wb.grid.ranks = {}
    wb.grid.set_state({"ranks": {}, "rank": 4})  # of a page that has not heard of the lock
    assert (wb.grid.ranks, wb.plan.ranks) == (before, before)
    command(wb, "resume")
    until(lambda: tick(wb)["state"] == "running")
    command(wb, "stop")
    until(lambda: tick(wb)["state"] == "done")


def test_a_second_run_replaces_the_adapter_without_a_word(wb, recwarn):
    wb.start().result()
    first = wb.run.adapter
    wb.config = ll.LoraConfig(r=2, target_modules=["o"])
    wb.start().result()
    assert list(ll.attached(wb.lm.model)) == ["default"]
    assert ll.attached(wb.lm.model)["default"] is wb.run.adapter is not first
    assert not [w for w in recwarn if "replaced" in str(w.message)]


def test_base_and_adapted_answers(wb):
    base, adapted = wb.session.answer("name[The Blue Fig]", 4)
    assert isinstance(base, str)
    assert adapted is None, "there is no adapter yet"
    wb.start().result()
    again, adapted = wb.session.answer("name[The Blue Fig]", 4)
    assert again == base
    assert isinstance(adapted, str)
    assert ll.active(wb.lm.model) == "default"


def test_saved_adapters_load_elsewhere(wb, tmp_path):
    wb.start().result()
    twin, _ = tiny_chat_model()
    loaded = ll.load_adapter(twin, wb.save(tmp_path / "adapter"))
    assert loaded.sites.keys() == wb.run.adapter.sites.keys()


def test_bad_input_is_said_and_nothing_is_lost(wb):
    before = dict(wb.grid.ranks)
    wb.grid.ranks = {}
    assert "no rank is painted" in command(wb, "start")["problem"]["message"]
    assert wb.run is None
    wb.grid.ranks = before
    shown = command(wb, "start", learning_rate=-1)["problem"]
    assert shown["message"] == "learning rate is -1; it must be a positive number"
    assert shown["field"] == "learning_rate"
    assert "press Start first" in command(wb, "pause")["problem"]["message"]
    labels = {"lora_alpha": "α", "lora_dropout": "dropout", "max_length": "max length"}
    for field, label in labels.items():
        kept = wb.panel.settings[field]
        message = command(wb, "start", learning_rate=1e-3, **{field: "abc"})["problem"]["message"]
        assert message == f"{label} is 'abc'; it must be a number"
        wb.panel.settings = {**wb.panel.settings, field: kept}
    with pytest.raises(ConfigError, match="no field 'max_step'; did you mean 'max_steps'"):
        Workbench(*tiny_chat_model(), max_step=3)
    with pytest.raises(ConfigError, match=r"needs its tokenizer: Workbench\(model, tokenizer\)"):
        Workbench(tiny_chat_model()[0])


def test_it_shows_as_a_view_with_a_table_for_github(wb):
    bundle = wb._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == wb.box.model_id
    assert "<table" in bundle["text/html"]
    assert bundle["text/plain"].startswith("<Workbench LlamaForCausalLM: 8 of 28 matrices")


def test_names_are_escaped_where_they_meet_html(tmp_path):
    from lora_lab.models import LoadedModel

    model, tokenizer = tiny_chat_model()
    wb = Workbench(LoadedModel.given(model, tokenizer, "<script>alert(1)</script>"))
    assert "<script>" not in wb.fallback_html()
    assert "&lt;script&gt;" in wb.fallback_html()


def test_two_workbenches_on_one_page_have_benches_of_their_own(wb):
    other = Workbench(*tiny_chat_model())
    assert other.grid.bench != wb.grid.bench
    assert wb.grid.bench == wb.savings.bench


@pytest.fixture
def training(tmp_path):
    """Return a workbench of another model that trains and does not end by itself."""
    other = Workbench(*tiny_chat_model(), output_dir=tmp_path, **{**QUICK, "max_steps": 100_000})
    other.start()
    yield other
    other.run.stop()
    other.run.wait(60)


def test_a_start_while_another_run_trains_waits_in_line_and_stop_leaves_it(wb, training):
    assert command(wb, "start")["problem"] is None
    shown = tick(wb)
    assert (shown["state"], shown["phase"]) == ("queued", f"queued behind run {training.run.id}")
    assert "press Start" not in wb.session.live_adapter.nothing
    assert wb.grid.locked
    assert "is queued; stop it to start another run" in command(wb, "start")["problem"]["message"]
    assert "starts by itself when its turn comes" in command(wb, "pause")["problem"]["message"]
    shown = command(wb, "stop")
    assert (shown["state"], shown["problem"]) == ("done", None)
    tick(wb)
    assert not wb.grid.locked
    assert training.run.state == "running"


def test_a_queued_run_starts_by_itself_and_its_adapter_comes_on_show(wb, training):
    assert command(wb, "start")["problem"] is None
    tick(wb)
    assert wb.delta_w.ranks == {}
    training.run.stop()
    until(lambda: tick(wb)["state"] == "done")
    assert tick(wb)["step"] == 4
    assert set(wb.delta_w.ranks) == set(wb.grid.ranks)


def test_one_click_takes_the_batch_that_would_have_fitted(wb):
    assert "press Start first" in command(wb, "take")["problem"]["message"]
    wb.start().result()
    assert "no settings are proposed" in command(wb, "take")["problem"]["message"]
    fields = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    wb.run.publish(failure=Failure("out of memory", "try less", proposal=fields))
    assert command(wb, "take")["problem"]["proposal"] == ""
    assert wb.panel.settings["per_device_train_batch_size"] == 1
    training = wb.start().training
    assert training.per_device_train_batch_size == 1
    assert training.gradient_accumulation_steps == 2


def test_a_stopped_run_is_resumed_from_the_history_by_another_workbench(tmp_path):
    first = Workbench(*tiny_chat_model(), output_dir=tmp_path, **{**QUICK, "max_steps": 100_000})
    first.config = ll.LoraConfig(r=4, target_modules=["o"])
    run = first.start()
    until(lambda: run.snapshot.step > 1)
    run.stop()
    run.wait(60)
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    send(wb, type="open", value=True)
    until(lambda: (tick(wb), wb.history.form["rows"])[1])
    row = wb.history.form["rows"][0]
    assert (row["id"], row["state"], row["resumable"]) == (run.id, "stopped", True)
    send(wb, type="resume", id=run.id)
    until(lambda: (tick(wb), wb.run is not None or wb.history.problem)[1])
    assert wb.history.problem is None
    assert (wb.run.id, wb.run.folder) == (run.id, run.folder)
    assert wb.config == ll.LoraConfig(r=4, target_modules=["o"])
    assert wb.panel.settings["max_steps"] == 100_000
    assert set(wb.delta_w.ranks) == {n for n in wb.grid.ranks if n.endswith("o_proj")}
    before = run.snapshot.step
    until(lambda: tick(wb)["step"] > before + 2)
    send(wb, type="resume", id=run.id)
    assert "stop it to resume another one" in wb.history.problem["message"]
    send(wb, type="delete", id=run.id)
    until(
        lambda: (tick(wb), wb.history.problem and "is at work" in wb.history.problem["message"])[1]
    )
    wb.run.stop()
    wb.run.wait(60)
    until(lambda: (tick(wb), wb.history.form["rows"][0]["state"] == "stopped")[1])
    send(wb, type="delete", id=run.id)
    until(lambda: (tick(wb), wb.history.form["rows"] == [])[1])
    assert not run.folder.exists()


def test_a_run_of_another_base_is_not_resumed_and_the_reason_is_one_line(wb, tmp_path):
    assert command(wb, "start", max_steps=100_000)["problem"] is None
    until(lambda: tick(wb)["step"] > 0)
    wb.run.stop()
    wb.run.wait(60)
    stopped = wb.run
    model, tokenizer = tiny_chat_model()
    model.lm_head.weight.data.mul_(2)
    other = Workbench(model, tokenizer, output_dir=tmp_path, **QUICK)
    send(other, type="open", value=True)
    until(lambda: (tick(other), other.history.form["rows"])[1])
    send(other, type="resume", id=stopped.id)
    until(lambda: (tick(other), other.history.problem)[1])
    assert "is not the base model of run" in other.history.problem["message"]
    assert other.run is None
    assert ll.attached(model) == {}


def test_what_is_set_up_becomes_a_run_file_or_the_reason_why_not(wb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command(wb, "run_file")
    assert "is a model of your own, which no file can name" in shown["problem"]["message"]
    assert not (tmp_path / "run.yaml").exists()
    card = dataclasses.replace(wb.lm.card, source="hub", name="a/b")
    wb.plan.lm = dataclasses.replace(wb.lm, card=card)
    assert command(wb, "run_file", max_steps=7)["problem"] is None
    written = RunConfig.read(tmp_path / "run.yaml")
    assert written.model["name"] == "a/b"
    assert written.task["name"] == "mini-e2e"
    assert written.configs == (wb.config,)
    assert written.training.max_steps == 7
    assert written.training.max_length == QUICK["max_length"]
    assert written.training.eval_examples == 0
    assert [each["text"] for each in wb.panel.run_file["commands"]] == [
        "lora-lab train run.yaml",
        "torchrun --nproc_per_node gpu -m lora_lab train run.yaml",
    ]
    command(wb, "run_file", max_steps=7)
    assert [path.name for path in tmp_path.glob("*.yaml")] == ["run.yaml"]
    command(wb, "run_file", max_steps=8)
    assert RunConfig.read(tmp_path / "run.yaml").training.max_steps == 7, "what is there stays"
    assert RunConfig.read(tmp_path / "run-2.yaml").training.max_steps == 8
    assert wb.panel.run_file["commands"][0]["text"] == "lora-lab train run-2.yaml"


def test_epochs_and_evaluations_are_settings_that_may_be_empty(tmp_path):
    wb = Workbench(tiny_lm(), task=tiny_task(32), output_dir=tmp_path, **QUICK)
    settings = wb.plan.settings
    assert (settings["num_train_epochs"], settings["eval_steps"]) == ("", "")
    assert wb.plan.training()["max_steps"] == 4
    wb.plan.merge({"num_train_epochs": 1.5, "eval_steps": 6})
    assert wb.plan.steps(wb.plan.settings) == 24, "16 steps of two examples are an epoch"
    assert wb.panel.plan["schedule"][-1][0] == 24
    training = TrainingConfig.from_dict(wb.plan.training(wb.plan.typed()))
    assert (training.max_steps, training.num_train_epochs, training.eval_steps) == (-1, 1.5, 6)
    wb.plan.merge({"num_train_epochs": "many"})
    with pytest.raises(ConfigError, match="num_train_epochs is 'many'; it must be a number"):
        wb.plan.typed()
    given = Workbench(tiny_lm(), task=tiny_task(32), num_train_epochs=2, eval_steps=3)
    assert given.plan.settings["num_train_epochs"] == 2
    assert given.plan.settings["eval_steps"] == 3
