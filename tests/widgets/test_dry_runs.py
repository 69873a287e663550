"""Dry runs in the background: which, when, and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import price_table
from lora_lab.budget.costs import Memory
from lora_lab.errors import ModelError
from lora_lab.models import model_config
from lora_lab_widgets import dry_runs
from lora_lab_widgets.dry_runs import DryRuns
from lora_lab_widgets.savings import Plan, Savings
from tests.helpers.fake_views import until

A, B = {"a": 8}, {"a": 16}


class Bench:
    def __init__(self, price: dict[str, Any]) -> None:
        self.savings = Savings(price=price, ranks=A)
        self.asked: list[Plan] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.runs = DryRuns(self.savings, self.prepare)

    def prepare(self, plan: Plan) -> Callable[[], Memory]:
        self.asked.append(plan)

        def run() -> Memory:
            assert self.gate.wait(10)
            if self.error:
                raise self.error
            return Memory(1, 2, 3, 4 if plan is None else plan["a"])

        return run

    def settle(self, quiet: bool = True) -> None:
        def tick() -> bool:
            self.runs.update(quiet=quiet)
            return not self.runs._job.busy

        until(tick)


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return anatomy(model_config("minilm-l6"))


@pytest.fixture
def bench(model: Anatomy, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(dry_runs, "SETTLED", 0.0)
    return Bench(price_table(model))


def test_the_plan_first_then_full_fine_tuning_each_once(bench: Bench) -> None:
    for _ in range(4):
        bench.settle()
    assert bench.asked == [A, None]
    assert bench.savings.dry_run["ranks"] == A
    assert bench.savings.dry_run["plan"]["activations"] == 8
    assert bench.savings.dry_run["full"]["activations"] == 4
    assert bench.savings.note == ""
    bench.savings.ranks = B
    for _ in range(3):
        bench.settle()
    assert bench.asked == [A, None, B]
    assert bench.savings.dry_run["ranks"] == B


def test_not_while_something_trains(bench: Bench) -> None:
    for _ in range(3):
        bench.settle(quiet=False)
    assert bench.asked == []


def test_nothing_painted_tries_only_full_fine_tuning(bench: Bench) -> None:
    bench.savings.ranks = {}
    for _ in range(3):
        bench.settle()
    assert bench.asked == [None]


def test_painting_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "SETTLED", 60.0)
    bench.settle()
    assert bench.asked == []


def test_what_came_for_other_settings_is_dropped(bench: Bench, model: Anatomy) -> None:
    bench.gate.clear()
    bench.runs.update(quiet=True)
    assert bench.savings.note == "a dry run of this plan is under way…"
    bench.savings.price = price_table(model, batch_size=2)
    assert bench.savings.note == ""
    bench.gate.set()
    until(lambda: bench.runs._job._outcome)
    bench.runs.update(quiet=False)
    assert bench.savings.dry_run == {}
    for _ in range(3):
        bench.settle()
    assert bench.asked == [A, A, None]


def test_an_error_is_said_once_and_not_tried_again(bench: Bench, model: Anatomy) -> None:
    bench.error = ModelError("this model cannot be run on fake tensors\nand more")
    for _ in range(4):
        bench.settle()
    assert bench.asked == [A, None]
    assert bench.savings.note == "no dry run: this model cannot be run on fake tensors"
    bench.error = ValueError("shape")
    bench.savings.price = price_table(model, batch_size=2)
    for _ in range(4):
        bench.settle()
    assert bench.asked == [A, None, A, None]
    assert bench.savings.note == "no dry run: ValueError: shape"
