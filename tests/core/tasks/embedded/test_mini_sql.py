"""mini-sql: what it promises of its questions and queries."""

from __future__ import annotations

import pytest

from lora_lab.tasks import GenerationTask, load_task


@pytest.fixture(scope="module")
def task() -> GenerationTask:
    return load_task("mini-sql")


def test_sizes_and_parts(task: GenerationTask) -> None:
    assert task.synthetic
    assert (len(task.train), len(task.validation), len(task.test)) == (1600, 100, 100)
    parts = [{e.completion for e in part} for part in (task.train, task.validation, task.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert load_task("mini-sql").train == task.train
    assert load_task("mini-sql", seed=1).train != task.train


def test_right_queries_run_and_a_wrong_value_is_wrong(task: GenerationTask) -> None:
    right = [example.completion for example in task.validation]
    assert task.score(right, task.validation) == {"execution": 100.0, "exact_match": 100.0}
    assert task.score(right[::-1], task.validation)["execution"] < 20
    spaced = [query.replace(" = ", "=").replace("SELECT", "select") for query in right]
    found = task.score(spaced, task.validation)
    assert found == {"execution": 100.0, "exact_match": 0.0}


def test_a_question_says_all_that_its_query_asks(task: GenerationTask) -> None:
    for example in task.train:
        columns, _, question = example.prompt.partition("\n")
        assert columns == "columns: name, kind, food, price, rating, area, family"
        values = example.completion.replace("''", "\0").split("'")[1::2]
        assert values
        assert all(value.replace("\0", "'") in question for value in values)
