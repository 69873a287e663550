"""What cannot be is marked at its field before Start, in the words of the form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import ConfigError
from lora_lab.methods.descriptor import Field
from lora_lab.training.api import train
from lora_lab_widgets import Workbench
from lora_lab_widgets.wrong_entries import in_labels, wrong_entries
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm

QUICK: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "max_length": 96,
    "eval_examples": 2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(*tiny_chat_model(), output_dir=tmp_path_factory.mktemp("runs"), **QUICK)


@pytest.fixture
def wb(bench: Workbench) -> Iterator[Workbench]:
    before = dict(bench.plan.settings)
    yield bench
    bench.plan.settings = before


def wrong(wb: Workbench, **settings: Any) -> dict[str, str]:
    """Type into fields; return what is marked."""
    wb.panel._handle({"type": "settings", "seq": "s", "settings": settings})
    marked: dict[str, str] = wb.panel.plan["wrong"]
    return marked


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("max_steps", "many", "steps is 'many'; it must be a number"),
        ("max_steps", "", "steps is empty; it must be a number"),
        ("max_steps", 2.5, "steps is 2.5; it must be a whole number"),
        ("max_steps", 0, "steps is 0; it must be a whole number of at least 1"),
        ("max_steps", -1, "steps is -1; it must be a whole number of at least 1"),
        ("num_train_epochs", -1, "epochs is -1; it must be a positive number"),
        ("per_device_train_batch_size", 0, "batch is 0; it must be a whole number of at least 1"),
        ("gradient_accumulation_steps", 0, "accumulation is 0; it must be a whole number"),
        ("learning_rate", 0, "learning rate is 0; it must be a positive number"),
        ("lr_scheduler_type", "lineer", "schedule is 'lineer'; use one of 'linear', 'constant'"),
        ("warmup_steps", -3, "warm-up is -3; it must be a whole number of at least 0, or a share"),
        ("max_length", 4, "max length is 4; it must be at least 8 tokens"),
        ("eval_examples", -1, "held-out is -1; it must be a whole number of at least 0"),
        ("eval_steps", "often", "eval every is 'often'; it must be a number"),
        ("seed", 1.5, "seed is 1.5; it must be a whole number"),
        ("gradient_checkpointing", "yes", "recompute is 'yes'; it must be True or False"),
        ("weight_decay", -1, "weight decay is -1; it must be a number of at least 0"),
        ("label_smoothing_factor", 1, "label smoothing is 1; it must lie in [0, 1)"),
        ("loraplus_lr_ratio", 0, "LoRA+ is 0; it must be a positive number"),
        ("early_stopping_patience", 2, "patience goes by evaluations while the run trains"),
        ("load_best_model_at_end", True, "keep the best goes by evaluations while the run trains"),
        ("lora_alpha", -1, "α is -1; it must be a positive number"),
        ("lora_dropout", 1, "dropout is 1; it must lie in [0, 1)"),
        ("init_lora_weights", "pisa", "init is 'pisa'; use True, False, 'gaussian'"),
        ("modules_to_save", "lmhead", "modules to save entry 'lmhead' names no module"),
    ],
)
def test_a_wrong_entry_is_marked_at_its_field(
    wb: Workbench, field: str, value: Any, line: str
) -> None:
    before = wb.panel.settings[field]
    marked = wrong(wb, **{field: value})
    assert list(marked) == [field]
    assert marked[field].startswith(line)
    assert "\n" not in marked[field]
    wb.panel._handle({"type": "command", "name": "start", "seq": "c", "settings": {}})
    problem = wb.panel.snapshot["problem"]
    assert (problem["field"], problem["message"]) == (field, marked[field])
    assert wb.run is None
    assert wrong(wb, **{field: before}) == {}


def test_what_two_fields_rule_out_together_is_marked_at_one(wb: Workbench) -> None:
    marked = wrong(wb, eval_steps=4, eval_examples=0)
    assert list(marked) == ["eval_examples"]
    assert wrong(wb, eval_examples=2, early_stopping_patience=3) == {}
    marked = wrong(wb, eval_steps=40)
    assert list(marked) == ["eval_steps"]
    assert marked["eval_steps"].startswith("eval every 40 is more than steps 8")
    assert list(wrong(wb, eval_steps="", early_stopping_patience="", use_dora=True)) == []
    marked = wrong(wb, init_lora_weights="PiSSA")
    assert list(marked) == ["use_dora"]
    assert "DoRA and init 'pissa' do not go together" in marked["use_dora"]


def test_every_wrong_entry_is_marked_at_once(wb: Workbench) -> None:
    settings = {"learning_rate": -1, "seed": "x", "lora_alpha": "", "max_length": 2}
    assert wrong(wb, **settings).keys() == settings.keys()


def test_what_the_model_has_no_room_for_is_marked_at_the_length(wb: Workbench) -> None:
    line = "8 learned tokens and max length 2045 do not fit the model's 2048 positions"
    marked = wrong(wb, method="PreEmbed", prefix_length=8, infix_length=0, max_length=2045)
    assert list(marked) == ["max_length"]
    assert marked["max_length"].startswith(line)


@pytest.mark.parametrize(
    ("method", "settings", "field"),
    [
        ("Adapter^P", {"r": 65}, "r"),
        ("AdaLoRA", {"init_r": 40}, "init_r"),  # the line names a rank and a matrix, no field
        ("AdaLoRA", {"tinit": 7, "tfinal": 3}, "tinit"),
        ("FT-Top2", {"top_layers": 5}, "top_layers"),
        ("BitFit", {}, "new_biases"),
        ("PreLayer", {"prefix_length": 0, "infix_length": 0}, "prefix_length"),
        ("OFT", {"oft_block_size": -1}, "oft_block_size"),
        ("IA3", {"target_modules": "nothing"}, "target_modules"),
    ],
)
def test_a_methods_own_field_is_marked(
    wb: Workbench, method: str, settings: dict[str, Any], field: str
) -> None:
    marked = wrong(wb, method=method, **settings)
    assert list(marked) == [field]
    assert wb.panel.plan["bad"]
    assert marked[field] == wb.panel.plan["line"]


def test_fields_that_mean_nothing_now_are_neither_shown_nor_refused(wb: Workbench) -> None:
    assert wrong(wb, max_steps="", num_train_epochs=1) == {}, "epochs stand in the place of steps"
    wrong(wb, max_steps=8, num_train_epochs="", method="BitFit", new_biases=True)
    assert "loraplus_lr_ratio" not in wb.panel.plan["more"]
    assert "head_learning_rate" not in wb.panel.plan["more"]
    wrong(wb, method="LoRA")
    assert "loraplus_lr_ratio" in wb.panel.plan["more"]


def test_what_was_set_and_means_nothing_for_another_method_is_said(wb: Workbench) -> None:
    assert wrong(wb, loraplus_lr_ratio=16) == {}
    marked = wrong(wb, method="BitFit", new_biases=True)
    assert marked["loraplus_lr_ratio"].startswith("LoRA+ is LoRA+'s rate of B, and BitFit has no B")
    assert "loraplus_lr_ratio" in wb.panel.plan["more"], "else nobody could take it back"


def test_a_task_that_the_model_is_not_for_is_marked_before_start(tmp_path: Path) -> None:
    settings = {**QUICK, "max_length": 32}
    wb = Workbench(tiny_lm(), output_dir=tmp_path, **settings)
    wb.plan.add_task(tiny_classes())  # as resuming a run of another model's would
    wb.plan.merge({"task": "halves"})
    assert list(wb.panel.plan["wrong"]) == ["task"]
    assert "has no classification head" in wb.panel.plan["wrong"]["task"]
    fits = Workbench(tiny_classifier("bert"), task=tiny_classes(), output_dir=tmp_path, **settings)
    assert fits.panel.plan["wrong"] == {}
    assert "head_learning_rate" in fits.panel.plan["more"]


def test_from_python_the_line_has_the_fields_name(wb: Workbench) -> None:
    wrong(wb, learning_rate=-1)
    with pytest.raises(ConfigError, match="learning_rate is -1"):
        wb.start()


def test_what_is_not_marked_starts(wb: Workbench) -> None:
    """The check before Start is that of `train`: neither stricter, nor less so."""
    settings = {"eval_steps": 4, "early_stopping_patience": 2, "label_smoothing_factor": 0.1}
    settings |= {"loraplus_lr_ratio": 16, "gradient_accumulation_steps": 2, "weight_decay": 0.01}
    assert wrong(wb, **settings) == {}
    run = train(wb.lm, wb.task, wb.config, start=False, **wb.plan.training(wb.plan.typed()))
    assert {name: getattr(run.training, name) for name in settings} == settings


FIELDS = Field("r", "width", ""), Field("learning_rate", "learning rate", "")


def test_labels_take_the_place_of_names_and_of_words_only_where_they_are_names() -> None:
    assert in_labels("r is 0; use an r of 1", FIELDS) == "width is 0; use an r of 1"
    line = "learning_rate=3 is more than my_learning_rate; use a learning_rate of 2"
    said = "learning rate 3 is more than my_learning_rate; use a learning rate of 2"
    assert in_labels(line, FIELDS) == said


def test_an_error_that_no_entry_is_to_blame_for_marks_none() -> None:
    def check(_: dict[str, Any]) -> None:
        raise ConfigError("nothing is painted")

    starts = {"r": 1.0, "learning_rate": 1.0}
    assert wrong_entries({**starts, "learning_rate": 2.0}, FIELDS, starts, check) == {}
