"""Texts alone: packed as run_clm.py packs them, every token learned, perplexity measured."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import lora_lab as ll
from lora_lab.errors import ConfigError, TaskError
from lora_lab.models import LoadedModel
from lora_lab.tasks import LanguageModelingTask, load_task
from lora_lab.tasks.families.language_modeling import LanguageModeling
from lora_lab.tasks.metrics import metric_of
from lora_lab_widgets import Workbench
from tests.helpers.tiny_classes import tiny_classifier
from tests.helpers.tiny_run import tiny_lm, until
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

TEXTS = [f"  Text {i}: " + "abc {x}\n" * (i % 5 + 1) for i in range(23)]


def task_of(texts: list[str] = TEXTS, **options: Any) -> LanguageModelingTask:
    rows = [{"body": text, "n": 1} for text in texts]
    return load_task(rows, text="body", validation=[{"body": "Held out " * 9}], **options)


def group_texts(examples: list[list[int]], block_size: int) -> list[list[int]]:
    """transformers' examples/pytorch/language-modeling/run_clm.py, the remainder not dropped."""
    concatenated = list(chain(*examples))
    return [concatenated[i : i + block_size] for i in range(0, len(concatenated), block_size)]


@pytest.mark.parametrize("adds_bos", [False, True], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("length", [16, 50, 10_000])
def test_texts_are_put_end_to_end_and_cut_into_blocks(adds_bos: bool, length: int) -> None:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    lm = LoadedModel.given(tiny_llama(), tokenizer)
    encoded, cut = LanguageModeling(lm, task_of(), length).encode(TEXTS)
    tokens = tokenizer([f"{text}</s>" for text in TEXTS])["input_ids"]
    assert [item["input_ids"] for item in encoded] == [
        block for block in group_texts(tokens, length) if len(block) > 1
    ]
    assert all(item["labels"] == item["input_ids"] for item in encoded)
    assert cut == 0


def test_no_text_begins_or_ends_twice() -> None:
    lm = LoadedModel.given(tiny_llama(), tiny_tokenizer(adds_bos=True))
    plain, marked = (
        LanguageModeling(lm, task_of(), 64).encode(texts)[0]
        for texts in (["ab", "c"], ["<s>ab</s>", "c</s>"])
    )
    assert marked == plain


def test_a_last_block_of_one_token_is_left_out() -> None:
    tokens = len(tiny_tokenizer()(TEXTS[0])["input_ids"]) + 1
    encoded, _ = LanguageModeling(tiny_lm(), task_of(), tokens - 1).encode(TEXTS[:1])
    assert [len(item["input_ids"]) for item in encoded] == [tokens - 1]


def test_the_loss_is_the_mean_of_all_tokens_but_a_blocks_first() -> None:
    lm, task = tiny_lm(), task_of()
    family = LanguageModeling(lm, task, 24)
    encoded, _ = family.encode(TEXTS[:4])
    batches = [family.collate(encoded[i : i + 3]) for i in range(0, len(encoded), 3)]
    found = family.evaluate(TEXTS[:4], batches, lambda: False)
    total, count = 0.0, 0
    for block in (torch.tensor([item["input_ids"]]) for item in encoded):
        with torch.no_grad():
            logits = lm.model.double()(block).logits[0]
        total += cross_entropy(logits[:-1], block[0, 1:], reduction="sum").item()
        count += block.shape[1] - 1
    assert found is not None
    assert found.scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found.scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_run_learns_texts_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"the cat sat on mat {i % 4}." for i in range(200)))
    held_out = tmp_path / "held.txt"
    held_out.write_text("the cat sat on mat 9.\nthe cat sat on mat 8.\n")
    task: Any = load_task(path, validation=held_out)
    assert isinstance(task, LanguageModelingTask)
    assert "read as texts alone (text)" in task.describe()
    settings = {"max_steps": 30, "learning_rate": 2e-2, "max_length": 32, "save_steps": 0}
    run = ll.train(tiny_lm(), task, ll.LoraConfig(r=8), output_dir=tmp_path, **settings)
    metrics = run.result(60).metrics
    assert metrics["loss_after"] < 0.75 * metrics["loss_before"]
    assert run.notes[0].startswith("read as texts alone")
    for when in ("before", "after"):
        assert metrics[f"perplexity_{when}"] == pytest.approx(math.exp(metrics[f"loss_{when}"]))
    assert not metric_of("perplexity_after").higher_is_better
    assert "bleu_after" not in metrics


def test_the_workbench_continues_a_text(tmp_path: Path) -> None:
    bench = Workbench(tiny_lm(), task=task_of(), output_dir=tmp_path, max_steps=2, max_length=32)
    assert bench.try_it.prompt == ("Held out " * 9)[:100]
    bench.start().result(60)
    assert isinstance(bench.session.answer("Text", 4)[1], str)
    (record,) = ll.list_runs(tmp_path)
    assert "perplexity" in bench.session.report(record).read_text(encoding="utf-8")
    assert bench.session.live_adapter.examples(1).validation == ["Held out " * 9]


def test_a_run_of_texts_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"max_steps": 12, "max_length": 32, "save_steps": 4, "eval_examples": 0}
    alone = ll.train(tiny_lm(), task_of(), output_dir=tmp_path, **settings).result(60)
    run = ll.train(tiny_lm(), task_of(), output_dir=tmp_path, **settings)
    until(lambda: run.snapshot.step >= 5 or run.state.final)
    run.stop()
    run.result(60)
    again = ll.resume(run.folder, tiny_lm(), task_of())
    assert again.result(60).losses == alone.losses


def test_a_column_of_answers_beside_the_text_is_told() -> None:
    rows = [{"body": text, "label": "x"} for text in TEXTS]
    with pytest.warns(UserWarning, match="all tokens of column 'body' are learned, and"):
        load_task(rows, text="body")


def test_texts_of_several_columns() -> None:
    rows = [{"title": f"T{i}", "body": text} for i, text in enumerate(TEXTS)]
    task = load_task(rows, text="{title}\n\n{body}")
    assert f"T0\n\n{TEXTS[0]}" in (*task.train, *task.validation)


def test_rows_without_text_are_left_out_and_none_at_all_is_refused() -> None:
    with pytest.warns(UserWarning, match="2 of 25 rows without 'body' are left out"):
        assert len(task_of([*TEXTS, " ", ""]).train) == 23
    with pytest.raises(TaskError, match="every row lacks 'body'"):
        task_of(["", "\n"])
    with pytest.raises(TaskError, match="no answer to them is scored"):
        task_of().score(["a"], ["b"])


@pytest.mark.parametrize("make", [tiny_classifier, tiny_seq2seq], ids=["classifier", "T5"])
def test_a_model_that_is_no_decoder_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no decoder of text.*every token is learned"):
        ll.train(make(), task_of(), output_dir=tmp_path)
    assert not list(tmp_path.iterdir())
