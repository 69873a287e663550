"""What stands around a prompt: as the rows have it, or as it is asked for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import GenerationTask, load_task
from lora_lab.training.description import describe
from tests.helpers.tiny_run import CONFIG, tiny_lm

LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nhi {}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def written(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"p": prompt, "c": completion}) for prompt, completion in pairs]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def loaded(path: Path, **options: Any) -> GenerationTask:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_task(path, prompt="p", completion="c", **options)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("def f{}(x):\n", "    return x\n"),
        (LLAMA3, "hello"),
        ("Review: good {}\nSentiment:", " positive"),
        ("a{}\t", "b"),
        ("a{}", "\nb"),
    ],
)
def test_rows_with_white_space_of_their_own_stand_as_they_are(
    tmp_path: Path, prompt: str, completion: str
) -> None:
    pairs = [(prompt.format(i), completion) for i in range(12)]
    task = loaded(written(tmp_path, pairs))
    assert {(task.prompt_text(e.prompt), e.completion) for e in task.train} < set(pairs)
    assert task.template == "plain"
    assert "; framing: the text as it stands in the data; scored by" in task.describe()


def test_other_rows_get_a_line_of_their_own(tmp_path: Path) -> None:
    task = loaded(written(tmp_path, [(f"hi {i}", "yo") for i in range(12)]))
    assert task.prompt_text("hi") == "hi\n"
    assert "; framing: the prompt on a line of its own; scored by" in task.describe()


@pytest.mark.parametrize(("own", "seen"), [(1, "hi\n"), (11, "hi")])
def test_rows_that_differ_are_told_once(tmp_path: Path, own: int, seen: str) -> None:
    pairs = [(f"hi {i}", " yo" if i < own else "yo") for i in range(12)]
    with pytest.warns(UserWarning, match=r"of 11 rows .* \(template= chooses it\)") as told:
        task = load_task(written(tmp_path, pairs), prompt="p", completion="c")
    assert len(told) == 1
    assert task.prompt_text("hi") == seen


@pytest.mark.parametrize(
    ("template", "seen"),
    [("plain", "hi {x}"), ("Q: {prompt} {}\nA:", "Q: hi {x} {}\nA:"), ("{prompt}\n", "hi {x}\n")],
)
def test_a_template_is_chosen(tmp_path: Path, template: str, seen: str) -> None:
    path = written(tmp_path, [(f"hi {i}", "yo") for i in range(12)])
    assert loaded(path, template=template).prompt_text("hi {x}") == seen
    assert load_task("mini-e2e", template=template).prompt_text("hi {x}") == seen


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [(f"hi {i}", "yo") for i in range(12)])
    with pytest.raises(TaskError, match=r"template is 'chatml'; use 'chat' .* \{prompt\} in it"):
        loaded(path, template="chatml")
    with pytest.raises(TaskError, match="mini-nli: template is for prompts"):
        load_task("mini-nli", template="plain")


def test_a_run_writes_down_the_framing_and_the_template(tmp_path: Path) -> None:
    import lora_lab as ll

    path = written(tmp_path, [(f"hi {i}", "yo") for i in range(12)])
    run = ll.train(
        tiny_lm(), loaded(path, template="Q: {prompt} A:"), CONFIG, output_dir=tmp_path, start=False
    )
    told = describe(run)
    assert told["task"]["framing"] == "'Q: {prompt} A:'"
    assert told["sources"]["task"]["template"] == "Q: {prompt} A:"
