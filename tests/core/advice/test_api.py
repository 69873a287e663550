"""Advice: each setting has a source that says so, fits the memory, and can be trained with."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab import anatomy, budget
from lora_lab.advice.facts import bytes_of
from lora_lab.advice.rules import RANKS, Recommendation
from lora_lab.errors import ConfigError, TaskError
from lora_lab.methods.descriptor import METHODS
from lora_lab.models import LoadedModel
from lora_lab.paper import published
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny, tiny_config
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

GIB = 2**30
_TABLE = re.compile(r"(Hu|Zhang) et al\., \d+, table (\d+)")
# What is in a finding and not in its table: counts of models and of parameters, formulas.
_OTHERS = {"GPT-3", "18M", "0.3M", "3"}


def found(advice: Any) -> dict[str, Recommendation]:
    return {each.setting: each for each in advice.recommendations}


@functools.cache
def everything() -> list[Recommendation]:
    """Recommendations of many situations."""
    made: list[Recommendation] = []
    for model, memory in (("smollm2-135m", GIB), ("roberta-base", 10**15), ("gpt2-medium", GIB)):
        for examples in (None, 100, 40_000, 10**6):
            made += ll.advise(model, examples=examples, memory=memory).recommendations
    made += ll.advise(tiny_classifier(), tiny_classes()).recommendations
    made += ll.advise(tiny_lm(), tiny_task()).recommendations
    return made


def test_numbers_stand_in_the_tables_that_are_named() -> None:
    """Every number with decimals of a finding, and those of its settings, are the table's."""
    seen = set()
    for each in everything():
        assert each.source
        for author, number in _TABLE.findall(each.source):
            paper: Any = {"Hu": "LoRA", "Zhang": "AdaLoRA"}[author]
            table = published.table(number, paper)
            text = " ".join([table.title, table.unit, *table.notes, *sum(table.rows, ())])
            for value in re.findall(r"\d+\.\d+", each.finding) if number != "9" else ():
                if value + "M" in each.finding or value in _OTHERS:
                    continue
                if each.setting in ("per_device_train_batch_size", "learning_rate", "lora_alpha"):
                    continue  # memory and formulas
                assert value in text, (each.finding, table.source)
                seen.add(value)
    assert {"63.8", "60.2", "91.7", "89.5", "90.30", "89.80", "73.7"} <= seen


@pytest.mark.parametrize(
    ("table", "setting", "value"),
    [(11, "batch size", "8"), (11, "epochs", "5"), (17, "epochs", "40"), (17, "epochs", "2")],
)
def test_habits_are_the_papers(table: int, setting: str, value: str) -> None:
    rows = {row[0]: row[1:] for row in published.table(table).rows}
    assert value in rows[setting]


def test_what_is_no_finding_is_called_a_heuristic() -> None:
    for each in everything():
        plain = each.setting in ("method", "target_modules", "max_length", "gradient_checkpointing")
        assert each.heuristic or plain
        assert each.finding[-1] != " "
        assert len(each.finding) > 20


def test_the_rate_is_the_published_formula() -> None:
    # tinker-cookbook's own example: Llama-3.1-8B at 2.86e-4.
    config: Any = tiny_config("llama", hidden_size=4096)
    advice = ll.advise(anatomy(config), memory="100 TB")
    rate = found(advice)["learning_rate"].value
    assert rate == pytest.approx(5e-5 * 10 * (2000 / 4096) ** 0.781, rel=0.02)
    assert found(advice)["lora_alpha"].value == 32
    assert advice.config.lora_alpha == 32  # type: ignore[attr-defined]
    qwen: Any = tiny_config("qwen3", hidden_size=1024)
    rate = found(ll.advise(anatomy(qwen), memory="1 TB"))["learning_rate"].value
    assert rate == pytest.approx(5e-4 * (2000 / 1024) ** 0.0775, rel=0.02)
    short = found(ll.advise(anatomy(qwen), examples=10, memory="1 TB"))["learning_rate"].value
    assert short == pytest.approx(1.5 * rate, rel=0.03)


def test_a_small_model_gets_the_rate_that_the_form_begins_with() -> None:
    small = ll.advise("mini-llama", examples=10_000, memory="8 GB")
    rate, alpha = (found(small)[name] for name in ("learning_rate", "lora_alpha"))
    assert rate.value == small.training["learning_rate"] == METHODS["LoRA"].rate_for(192) == 1e-2
    assert "as small as mini-llama" in rate.finding
    assert alpha.value == 2 * small.config.r  # type: ignore[attr-defined]
    wide = found(ll.advise("smollm2-135m", examples=10_000, memory="8 GB"))["learning_rate"]
    assert wide.value == pytest.approx(5e-4 * (2000 / 576) ** 0.781, rel=0.02)


@pytest.mark.parametrize("memory", [10**15, 40 * GIB, 20 * GIB, 17 * GIB, 15 * GIB, 14 * GIB, GIB])
def test_the_plan_fits_the_memory_or_says_that_none_does(memory: int) -> None:
    advice = ll.advise("llama-2-7b", examples=20_000, length=512, memory=memory, dtype="bfloat16")
    training: Any = dict(advice.training)
    step = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    assert step == 8
    needed = budget(
        "llama-2-7b",
        advice.config,
        batch_size=training["per_device_train_batch_size"],
        sequence_length=512,
        dtype="bfloat16",
        padding_mask=training["per_device_train_batch_size"] > 1,
        gradient_checkpointing=training.get("gradient_checkpointing", False),
    ).adapted.total
    assert needed == advice.budget.adapted.total
    assert advice.fits is (needed <= 0.9 * memory)
    assert any("does not fit" in note for note in advice.notes) is not advice.fits


def test_with_less_memory_batches_shrink_then_blocks_are_recomputed_then_targets_are_few() -> None:
    def order(memory: int) -> tuple[bool, bool, int]:
        advice = ll.advise(grid, examples=20_000, length=512, memory=memory)
        narrow = advice.config.target_modules != "all-linear"  # type: ignore[attr-defined]
        training: Any = advice.training
        batch = training["per_device_train_batch_size"]
        return narrow, bool(training.get("gradient_checkpointing")), -batch

    config: Any = tiny_config("gpt2", n_embd=256, n_layer=12, n_positions=512)
    grid = anatomy(config)
    seen = [order(memory) for memory in range(2 * GIB, GIB // 16, -GIB // 16)]
    assert seen == sorted(seen)
    assert len({*seen}) > 3


def test_the_rank_is_what_stores_the_data() -> None:
    """2 bits a parameter, a bit a learned token at most (LoRA Without Regret)."""
    lm, task = tiny_lm(), tiny_task()
    advice = ll.advise(lm, task, memory="1 GB")
    tokens = len("a b c d .") + 1  # bytes and the end token
    bits = 64 * tokens
    per_rank = budget(lm.model, ll.LoraConfig(r=1, target_modules="all-linear"))
    fitting = [r for r in RANKS if 2 * r * per_rank.parameters_trainable >= bits]
    assert advice.facts.labels == pytest.approx(tokens, abs=1)
    assert advice.config.r == fitting[0]  # type: ignore[attr-defined]
    many = ll.advise(lm, task, examples=10**7, memory="1 GB")
    assert found(many)["method"].value == "FT", "no rank stores them, and the memory is there"
    assert isinstance(many.config, type(ll.FullConfig()))
    small = ll.advise("llama-2-7b", examples=10**9, length=64, memory="18 GB", dtype="bfloat16")
    assert found(small)["method"].value == "LoRA"


def test_of_data_that_are_named_lengths_are_counted() -> None:
    lm, task = tiny_lm(), tiny_task()
    advice = ll.advise(lm, task)
    look = task.look(lm)
    assert advice.facts.length == look.would_do == found(advice)["max_length"].value
    assert advice.facts.examples == 64
    assert found(advice)["max_length"].source == "measured"
    classes = ll.advise(tiny_classifier(), tiny_classes())
    assert classes.facts.bits == math.log2(2)
    assert "leaves the head alone" not in str(classes), "a run of it trains the head too"
    assert "nobody has tried it on classes 32 wide" in found(classes)["learning_rate"].finding
    assert found(classes)["lora_alpha"].value == 2 * classes.config.r  # type: ignore[attr-defined]


def test_a_few_long_examples_do_not_set_the_length() -> None:
    task = tiny_task(training=200)
    rows = [*task.train]
    long = rows[0].__class__("x " * 60 + ">", "y .", ("y .",))
    advice = ll.advise(tiny_lm(), dataclasses.replace(task, train=[*rows, long]))
    length = found(advice)["max_length"]
    assert length.value < 30
    assert "are cut" in length.finding


def test_no_more_is_advised_than_the_model_reads() -> None:
    model: Any = tiny("gpt2", vocab_size=259)  # of 64 positions
    task = tiny_task()
    long = [dataclasses.replace(e, prompt="x " * 40 + ">") for e in task.train]
    lm = LoadedModel.given(model, tiny_tokenizer(), "tiny")
    length = found(ll.advise(lm, dataclasses.replace(task, train=long)))["max_length"]
    assert length.value == 64
    assert length.finding.startswith("the model reads no more")


def test_a_length_that_was_named_is_not_called_measured() -> None:
    lm, task = tiny_lm(), tiny_task()
    for given in ({"examples": 100}, {"task": task}):
        length = found(ll.advise(lm, length=20, **given))["max_length"]
        assert (length.value, length.source) == (20, "as it was named")
        assert "longest training example" not in length.finding
    short = LoadedModel.given(tiny("gpt2", vocab_size=259), tiny_tokenizer(), "tiny")
    for model in (short, anatomy(short.model)):  # of 64 positions
        advice = ll.advise(model, examples=100, length=5_000)
        assert (advice.facts.length, advice.training["max_length"]) == (64, 64)
        assert found(advice)["max_length"].finding == "the model reads no more"


def test_it_is_trained_with_as_it_stands(tmp_path: Path) -> None:
    lm, task = tiny_lm(), tiny_task()
    advice = ll.advise(lm, task)
    training = {**advice.training, "num_train_epochs": 0.1}
    run = ll.train(lm, task, advice.config, output_dir=tmp_path, eval_examples=0, **training)
    assert run.result(60).losses
    lm.model.zero_grad()


def test_it_shows_itself() -> None:
    advice = ll.advise(tiny_lm(), tiny_task(), memory="1 GB")
    text = str(advice)
    for each in advice.recommendations:
        assert f"{each.setting} = {each.shown}" in text
    assert "[heuristic; " in text
    html = advice._repr_html_()
    assert html.count("<tr>") == len(advice.recommendations) + 1
    told = json.loads(json.dumps(advice.to_json()))
    assert told["advice"][0]["setting"] == "method"
    assert told["config"]["class"] == "LoraConfig"
    assert told["facts"]["examples"] == 64
    assert told["fits"] is True


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("16 GB", 16 * GIB), ("16gib", 16 * GIB), ("8", 8 * GIB), ("1.5 g", 3 * GIB // 2)),
        *(("900MB", 900 * 2**20), ("2 TiB", 2 * 2**40), (12345, 12345)),
        *(("17179869184 B", 16 * GIB), ("512 kb", 2**19), ("512b", 512)),
    ],
)
def test_memory_as_people_write_it(text: int | str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "lots", "-3 GB", "0 GB", "0.5 B", "16 PB", 0, -1, 1.5, True])
def test_memory_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match="memory is"):
        ll.advise("smollm2-135m", memory=text)


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match="examples is 0"):
        ll.advise("smollm2-135m", examples=0)
    with pytest.raises(ConfigError, match="length is -1"):
        ll.advise("smollm2-135m", length=-1)
    with pytest.raises(ConfigError, match="an anatomy has no tokenizer"):
        ll.advise(anatomy(tiny_lm().model), tiny_task())
    with pytest.raises(ConfigError, match="tokenizer"):
        ll.advise(tiny_lm().model, tiny_task())
    with pytest.raises(TaskError):
        ll.advise(tiny_lm(), "no-such-task")
    with pytest.raises(ConfigError, match="device 'T5'"):
        ll.advise("smollm2-135m", device="T5")


def test_a_model_of_ones_own_without_data() -> None:
    lm: LoadedModel = tiny_lm()
    advice = ll.advise(lm.model)
    assert advice.facts.memory is None or advice.facts.memory > 0
    assert any("name a task" in note for note in advice.notes)
    assert "max_length" not in found(advice)
