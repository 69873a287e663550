"""A task's decoding settings: answers are those of transformers' generate with the same ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.tasks import Decoding, load_task
from lora_lab.tasks.decoding import E2E_OF_THE_PAPER
from tests.helpers.tiny_run import tiny_lm, tiny_task

BEAMS = Decoding(num_beams=3, length_penalty=0.5, no_repeat_ngram_size=2, max_new_tokens=7)


def test_answers_are_those_of_transformers_beam_search(tmp_path: Path) -> None:
    lm, task = tiny_lm(), dataclasses.replace(tiny_task(), decoding=BEAMS)
    found = ll.evaluate(lm, task, part="validation", output_dir=tmp_path)
    greedy = ll.evaluate(lm, tiny_task(), part="validation")
    for row, example in zip(found.predictions, task.validation, strict=True):
        ids = lm.tokenizer(task.prompt_text(example.prompt), return_tensors="pt")
        with torch.no_grad():
            out = lm.model.generate(
                **ids,
                num_beams=3,
                length_penalty=0.5,
                no_repeat_ngram_size=2,
                max_new_tokens=7,
                do_sample=False,
                pad_token_id=lm.tokenizer.pad_token_id,
                eos_token_id=lm.tokenizer.eos_token_id,
            )
        text = lm.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row["prediction"] == text.strip()
    assert found.predictions != greedy.predictions
    assert found.decoding["num_beams"] == 3
    assert found.decoding["no_repeat_ngram_size"] == 2
    assert greedy.decoding["num_beams"] == 1


def test_a_run_writes_down_what_it_decoded_with(tmp_path: Path) -> None:
    task = dataclasses.replace(tiny_task(), decoding=BEAMS)
    settings: dict[str, Any] = {"max_steps": 1, "eval_examples": 2, "output_dir": tmp_path}
    run = ll.train(tiny_lm(), task, ll.LoraConfig(r=2), **settings)
    run.result(60)
    told = json.loads((run.folder / "summary.json").read_text())["decoding"]
    assert (told["num_beams"], told["length_penalty"], told["max_new_tokens"]) == (3, 0.5, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be a whole number from 1 on"),
        ({"num_beams": True}, "num_beams is True"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"length_penalty": "1"}, "length_penalty is '1'; it must be a number"),
    ],
)
def test_what_cannot_be_gets_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**given)


def test_e2e_has_its_own_scores_and_the_papers_decoding_is_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "e2e.csv"
    lines = [f'"name[A{i // 2}], area[x]","A{i // 2} is at X, {i}."' for i in range(40)]
    path.write_text("\n".join(['"mr","ref"', *lines]))
    for options in ({}, {"prompt": "mr", "completion": "ref"}):
        task = load_task(path, **options)
        names = [metric.name for metric in task.metrics]
        assert names == ["bleu_lowercase", "rouge_l", "bleu", "chrf", "exact_match"]
        assert all(len(example.references) == 2 for example in task.validation)
    assert dataclasses.astuple(E2E_OF_THE_PAPER) == (10, 0.9, 4, None)
