"""The run panel's form: settings from one table and the registry, each method with its own rate."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from lora_lab.configs import BitFitConfig, FullConfig, LoraConfig
from lora_lab.methods.descriptor import METHODS, Method
from lora_lab.methods.registry import offered
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks import Decoding, load_task
from lora_lab_widgets import Workbench
from lora_lab_widgets.decoding_fields import DECODING, task_to_train
from lora_lab_widgets.run_files import write_run_file
from lora_lab_widgets.training_fields import NAMES, TRAINING, training_values
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

QUICK: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 0,
}


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return tiny_chat_model()


@pytest.fixture
def wb(model: tuple[Any, Any], tmp_path: Path) -> Workbench:
    return Workbench(*model, output_dir=tmp_path, **QUICK)


def choose(wb: Workbench, **settings: Any) -> dict[str, Any]:
    wb.panel._handle({"type": "settings", "seq": "s", "settings": settings})
    return dict(wb.panel.settings)


def test_the_settings_of_training_are_fields_and_start_where_it_starts() -> None:
    default = TrainingConfig()
    for name, value in training_values(default).items():
        assert value == ("" if getattr(default, name) is None else getattr(default, name))
    assert len({field.label for field in TRAINING}) == len(TRAINING)
    assert set(NAMES) <= {*TrainingConfig.__dataclass_fields__}


def test_every_setting_is_a_field_with_label_and_help(wb: Workbench) -> None:
    fields = {field["name"]: field for field in wb.panel.fields}
    assert fields.keys() == wb.panel.settings.keys() - {"task", "method"}
    assert all(field["label"] and field["help"] for field in fields.values())
    assert fields["lr_scheduler_type"]["options"] == ["linear", "constant", "cosine"]
    assert {"B = 0", "PiSSA", "OLoRA", "EVA", "CorDA"} <= {*fields["init_lora_weights"]["options"]}
    behind_more = [*(field.name for field in DECODING)]
    assert [f["name"] for f in wb.panel.fields][-4:] == behind_more
    assert behind_more == [*Decoding.__dataclass_fields__]
    before_more = [f["name"] for f in wb.panel.fields if f["part"] == "training" and not f["more"]]
    assert before_more == [*NAMES[:12]]
    json.dumps(wb.panel.fields)


# What a person changes in the form, and what then trains: the fields of the run's config.
SET = {
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "eval_examples": 3,
    "eval_steps": 5,
    "seed": 7,
    "gradient_checkpointing": True,
    "weight_decay": 0.01,
    "label_smoothing_factor": 0.1,
    "loraplus_lr_ratio": 16,
    "early_stopping_patience": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "bleu",
    "kept_texts": 4,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "kept_data": "notes.txt",
}


def test_what_is_set_is_what_trains_and_what_a_run_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wb = Workbench(tiny_lm(), task=tiny_task(32), output_dir=tmp_path, **QUICK)
    choose(wb, **SET)
    assert wb.panel.plan["wrong"] == {}
    training = TrainingConfig.from_dict(wb.plan.training(wb.plan.typed()))
    assert {name: getattr(training, name) for name in SET} == SET
    assert training.max_steps == -1, "epochs take the place of steps"
    assert wb.panel.plan["schedule"][-1][0] == 2 * 32 // (2 * 4)
    monkeypatch.setattr("lora_lab_widgets.run_files.model_source", lambda *_: {"name": "a/b"})
    monkeypatch.setattr("lora_lab_widgets.run_files.task_source", lambda *_: {"name": "mini-e2e"})
    write_run_file(wb.plan, wb.plan.typed(), tmp_path)
    assert RunConfig.read(tmp_path / "run.yaml").training == training


def test_decoding_is_set_for_answers_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = load_task("mini-e2e", decoding={"num_beams": 2, "length_penalty": 0.9})
    wb = Workbench(tiny_lm(), task=task, output_dir=tmp_path, **QUICK)
    assert {*Decoding.__dataclass_fields__} <= {*wb.panel.plan["more"]}
    assert task_to_train(wb.plan) is task, "as the task says"
    choose(wb, num_beams=3, max_new_tokens=9)
    assert wb.panel.plan["wrong"] == {}
    found: Any = task_to_train(wb.plan, wb.plan.typed())
    assert found.decoding == Decoding(num_beams=3, length_penalty=0.9, max_new_tokens=9)
    monkeypatch.setattr("lora_lab_widgets.run_files.model_source", lambda *_: {"name": "a/b"})
    write_run_file(wb.plan, wb.plan.typed(), tmp_path)
    read = RunConfig.read(tmp_path / "run.yaml")
    assert load_task(**read.task) == found
    wb.panel._handle({"type": "command", "name": "start", "seq": "c", "settings": {}})
    assert wb.run.task == found
    wb.run.result(60)
    choose(wb, num_beams=0)
    assert wb.panel.plan["wrong"] == {
        "num_beams": "beams is 0; it must be a whole number from 1 on"
    }


def test_classes_have_no_decoding(tmp_path: Path) -> None:
    wb = Workbench(tiny_classifier(), task=tiny_classes(), output_dir=tmp_path, **QUICK)
    assert not {*Decoding.__dataclass_fields__} & {*wb.panel.plan["more"]}
    assert task_to_train(wb.plan) is wb.plan.task


def test_loras_own_are_behind_more_and_become_its_config(wb: Workbench) -> None:
    own = ["use_rslora", "use_dora", "init_lora_weights", "modules_to_save"]
    assert wb.panel.plan["more"][:4] == own
    settings = {"use_rslora": True, "use_dora": True, "modules_to_save": "lm_head, model.norm"}
    choose(wb, **settings)
    expected = LoraConfig(
        lora_alpha=16, use_rslora=True, use_dora=True, modules_to_save=["lm_head", "model.norm"]
    )
    assert wb.config == expected
    assert wb.header.chips[-1].endswith("rsLoRA · DoRA · modules to save lm_head model.norm")
    choose(wb, use_dora=False, modules_to_save="", init_lora_weights="PiSSA")
    assert wb.config == LoraConfig(lora_alpha=16, use_rslora=True, init_lora_weights="pissa")
    choose(wb, method="AdaLoRA")
    assert not {*own} & {*wb.panel.plan["more"]}, "AdaLoRA goes without"


@pytest.mark.parametrize("start", [True, False, "gaussian", "pissa", "pissa_niter_4", "corda"])
def test_every_start_goes_there_and_back(wb: Workbench, start: bool | str) -> None:
    wb.config = LoraConfig(r=2, init_lora_weights=start)
    assert wb.config.to_dict()["init_lora_weights"] == start
    assert wb.panel.plan["wrong"] == {}
    json.dumps(wb.panel.settings)


# Table 12 of the LoRA paper (GPT-3): peak rates, of which the workbench takes the ratios to LoRA's.
TABLE_12 = {
    "LoRA": 2e-4,
    "FT": 5e-6,
    "BitFit": 1.6e-3,
    "PreEmbed": 5e-4,
    "PreLayer": 1e-4,
    "Adapter^H": 1e-4,
}


# What study 4 found best on mini-llama; the tests' model is smaller still.
SMALL = {"LoRA": 1e-2, "FT": 2e-3, "BitFit": 1e-1}


def test_rates_stand_to_loras_as_in_the_papers_table() -> None:
    known = offered()
    for name, rate in TABLE_12.items():
        ratio = known[name].learning_rate / known["LoRA"].learning_rate
        assert ratio == pytest.approx(rate / TABLE_12["LoRA"]), name
    assert known["LoRA"].learning_rate == TrainingConfig.learning_rate
    assert all(method.rate_from for method in known.values())


def test_a_method_brings_its_own_rate_and_says_so(wb: Workbench) -> None:
    assert wb.panel.settings["learning_rate"] == SMALL["LoRA"]
    assert choose(wb, method="FT")["learning_rate"] == SMALL["FT"]
    said = (
        "learning rate 0.002 is FT's own: for models as small as mini-llama (192 wide), "
        "found by a sweep with one seed, of this method or a near one; from 576 wide on it is "
        "5e-5, LoRA's / 40, as in the paper's Table 12"
    )
    assert wb.panel.plan["rate"] == said
    assert wb.plan.training(wb.plan.typed())["learning_rate"] == SMALL["FT"]
    choose(wb, learning_rate=3e-3)
    assert wb.panel.plan["rate"].startswith("FT's own learning rate is 0.002: ")
    assert choose(wb, method="LoRA+PL")["learning_rate"] == SMALL["LoRA"], "the lower of its parts"
    assert choose(wb, method="FT")["learning_rate"] == 3e-3, "what was typed is not lost"
    assert choose(wb, method="BitFit", learning_rate=7e-4)["learning_rate"] == 7e-4


def test_what_starts_is_what_the_page_shows_of_the_rate(wb: Workbench) -> None:
    """A page sets it by itself, for Python may be busy: it has been told the rates."""
    rates = wb.panel.plan["rates"]
    assert {name: rates[name] for name in SMALL} == SMALL
    settings = {**wb.panel.settings, "method": "FT", "learning_rate": rates["FT"]}
    wb.panel._handle({"type": "command", "name": "start", "seq": "c", "settings": settings})
    assert wb.run is not None
    wb.run.wait(60)
    assert wb.run.training.learning_rate == SMALL["FT"]
    assert wb.run.configs == (FullConfig(),)


def test_a_config_from_python_brings_its_rate_unless_one_is_given(model: Any, wb: Any) -> None:
    own = Workbench(*model, config=FullConfig()).panel.settings["learning_rate"]
    assert own == SMALL["FT"]
    given = Workbench(*model, config=FullConfig(), learning_rate=1e-4)
    assert given.panel.settings["learning_rate"] == 1e-4
    wb.config = FullConfig()
    assert wb.panel.settings["learning_rate"] == SMALL["FT"]
    wb.config = [LoraConfig(r=2), BitFitConfig(new_biases=True)]
    assert wb.panel.settings["learning_rate"] == SMALL["LoRA"], "the lowest of what is combined"


def test_a_model_of_the_literatures_width_has_its_rates() -> None:
    small, tokenizer = tiny_chat_model()
    config = copy.deepcopy(small.config)
    config.update({"hidden_size": 576, "num_hidden_layers": 1, "head_dim": 16})
    wb = Workbench(LlamaForCausalLM(config), tokenizer, **QUICK)
    rates = wb.panel.plan["rates"]
    assert (rates["LoRA"], rates["FT"], rates["BitFit"]) == (2e-3, 5e-5, 1.6e-2)
    choose(wb, method="FT")
    said = "learning rate 5e-5 is FT's own: LoRA's / 40, as in the paper's Table 12"
    assert wb.panel.plan["rate"] == said


def test_a_method_without_a_finding_of_its_own_starts_at_loras_rate_in_silence(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = METHODS["FT"]
    own = Method("Bare", bare.config, bare.adapter, bare.cost, "bare", fixed=bare.fixed)
    monkeypatch.setitem(METHODS, "Bare", own)
    bench = Workbench(*model, **QUICK)
    assert choose(bench, method="Bare")["learning_rate"] == 2e-3
    assert bench.panel.plan["rate"] == ""


def test_a_resumed_runs_settings_are_shown(tmp_path: Path) -> None:
    wb = Workbench(tiny_lm(), task=tiny_task(32), output_dir=tmp_path, **QUICK)
    choose(wb, gradient_accumulation_steps=2, label_smoothing_factor=0.1, warmup_steps=2)
    run = wb.start()
    run.wait(60)
    again = Workbench(tiny_lm(), task=tiny_task(32), output_dir=tmp_path, **QUICK)
    again.session.begin = lambda *_: _[1]()  # type: ignore[method-assign]
    again.session.go_on(run)
    names = "gradient_accumulation_steps", "label_smoothing_factor", "warmup_steps"
    assert [again.panel.settings[name] for name in names] == [2, 0.1, 2]


def test_best_by_offers_the_metrics_of_the_task(wb: Workbench) -> None:
    offers = wb.panel.plan["best_by"]
    assert offers[0] == ["", "loss"]
    assert [name for name, _ in offers[1:]] == [metric.name for metric in wb.task.metrics]
