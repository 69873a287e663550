"""A task's decoding settings: answers are those of transformers' generate with the same ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lora_lab as ll
from lora_lab.cli import main
from lora_lab.errors import ConfigError
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import Decoding, load_task
from lora_lab.tasks.decoding import E2E_OF_THE_PAPER, TRIPLES_OF_THE_PAPER
from lora_lab.tasks.sources import task_source, with_decoding
from lora_lab.training.fingerprints import task_fingerprints
from tests.helpers.tiny_files import tiny_recipe
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
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be a number"),
        ({"length_penalty": float("-inf")}, "length_penalty is -inf; it must be a number"),
        (
            {"length_penalty": 0.9},
            "length_penalty is 0.9, which acts on the scores of beams; set n",
        ),
        ({"length_penalty": 2, "num_beams": 1}, "length_penalty is 2, which acts on"),
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
        assert names[:5] == ["bleu_lowercase", "nist", "meteor_coco", "rouge_l_coco", "cider"]
        assert names[5:] == ["rouge_l", "bleu", "chrf", "exact_match"]
        assert all(len(example.references) == 2 for example in task.validation)
    # Table 11: beam size, length penalty, no-repeat n-gram size; E2E, then WebNLG and DART.
    assert dataclasses.astuple(E2E_OF_THE_PAPER) == (10, 0.9, 4, None)
    assert dataclasses.astuple(TRIPLES_OF_THE_PAPER) == (10, 0.8, 4, None)


def test_load_task_takes_it_and_a_run_is_loaded_and_gone_on_with_by_it(tmp_path: Path) -> None:
    fields = {"num_beams": 3, "length_penalty": 0.5}
    task = load_task("mini-e2e", decoding=fields)
    assert task.decoding == Decoding(**fields)
    assert task == dataclasses.replace(load_task("mini-e2e"), decoding=Decoding(**fields))
    assert task_source(task) == {"name": "mini-e2e", "decoding": fields}
    same = load_task("mini-e2e", decoding=Decoding(**fields))
    assert task_source(same) == task_source(task)
    assert load_task(**task_source(task)) == task
    rows = load_task([("a b", "c d")] * 3 + [("e", "f")], decoding=fields)
    assert rows.decoding == task.decoding
    with pytest.raises(ConfigError, match=r"mini-nli: no answers are written .*leave out decoding"):
        load_task("mini-nli", decoding=fields)
    for wrong, line in (
        ({"beams": 3}, r"decoding has no 'beams'; its fields are num_beams, length_penalty"),
        (3, "decoding is 3; it must hold fields"),
        ({"num_beams": 0}, "num_beams is 0"),
    ):
        with pytest.raises(ConfigError, match=line):
            load_task("mini-e2e", decoding=wrong)


def test_runs_that_decode_otherwise_are_of_other_tasks() -> None:
    found = [
        task_fingerprints(dataclasses.replace(tiny_task(), decoding=decoding))
        for decoding in (Decoding(), BEAMS, Decoding(num_beams=3))
    ]
    assert len({each["task"] for each in found}) == 3
    assert len({(each["data"], each["held_out"]) for each in found}) == 1
    assert found[0] == task_fingerprints(tiny_task())


def test_evaluate_takes_another_than_the_run_had(tmp_path: Path) -> None:
    lm, task = tiny_lm(), dataclasses.replace(tiny_task(), decoding=BEAMS)
    expected = ll.evaluate(lm, task, part="validation")
    given = {name: getattr(BEAMS, name) for name in ("num_beams", "length_penalty")}
    given |= {"no_repeat_ngram_size": 2, "max_new_tokens": 7}
    found = ll.evaluate(lm, tiny_task(), part="validation", decoding=given)
    assert found.predictions == expected.predictions
    assert found.decoding == expected.decoding


def test_a_mapping_says_what_of_the_tasks_decoding_is_otherwise() -> None:
    lm, task = tiny_lm(), dataclasses.replace(tiny_task(), decoding=BEAMS)

    def told(given: Any) -> tuple[Any, ...]:
        return dataclasses.astuple(with_decoding(task, given).decoding)

    found = ll.evaluate(lm, task, part="validation", decoding={"num_beams": 2}).decoding
    assert (found["num_beams"], found["length_penalty"]) == (2, 0.5)
    assert told({"num_beams": 2}) == (2, 0.5, 2, 7)
    assert told({"length_penalty": 0.8}) == (3, 0.8, 2, 7)
    assert told({}) == (3, 0.5, 2, 7)
    greedy = told({"num_beams": 1})  # whose scores no penalty divides
    assert greedy == (1, 1.0, 2, 7)
    assert told(Decoding(max_new_tokens=4)) == (1, 1.0, 0, 4), "one of Decoding is the whole"
    with pytest.raises(ConfigError, match=r"length_penalty is 0\.8, which acts on the scores of b"):
        told({"num_beams": 1, "length_penalty": 0.8})


def test_the_command_line_and_run_files_take_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe["task"]["decoding"] = {"num_beams": 2, "no_repeat_ngram_size": 3}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def told(*more: str) -> dict[str, Any]:
        assert main(["train", str(path), *more, "--json"]) == 0
        folder = Path(json.loads(capsys.readouterr().out)["folder"])
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["decoding"]
        sources = json.loads((folder / "config.json").read_text())["sources"]
        assert sources["task"]["decoding"]["num_beams"] == found["num_beams"]
        assert main(["train", str(folder), "--resume", "--num-beams", "4"]) == 2
        assert "the run's own decoding" in capsys.readouterr().err
        assert main(["evaluate", str(folder), "--part", "validation", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["decoding"] == found
        return found

    found = told()
    assert (found["num_beams"], found["no_repeat_ngram_size"]) == (2, 3)
    found = told("--num-beams", "3", "--length-penalty", "0.9")
    assert (found["num_beams"], found["no_repeat_ngram_size"]) == (3, 3)
    assert found["length_penalty"] == 0.9
    assert RunConfig.from_dict(RunConfig.read(path).to_dict()) == RunConfig.read(path)
    for wrong, line in (({"beams": 1}, "decoding has no 'beams'"), (4, "decoding is 4; it must")):
        recipe["task"]["decoding"] = wrong
        path.write_text(yaml.safe_dump(recipe))
        assert main(["train", str(path)]) == 2
        assert line in capsys.readouterr().err
