"""Data cards: every embedded task has one, and its numbers are counted again by other code."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import sacrebleu

from lora_lab.tasks import load_task, register_task
from lora_lab.tasks.cards import card_of
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.embedded.api import EMBEDDED


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_task_shows_its_card(name: str) -> None:
    task = load_task(name)
    card = card_of(task)
    assert card is not None
    assert card is EMBEDDED[name].card
    assert repr(task).endswith(f"\n{card}")
    assert "invented" in str(card)
    assert set(card.floor) <= {metric.label for metric in task.metrics}
    assert card_of(load_task(name, seed=1)) is card
    assert card_of(dataclasses.replace(task, validation=task.test)) is None, "other examples"


@pytest.mark.parametrize("name", EMBEDDED)
def test_floor_and_ceiling_are_counted_again(name: str) -> None:
    task = load_task(name)
    card = card_of(task)
    assert card is not None
    if isinstance(task, ClassificationTask):
        counts = Counter(example.label for example in task.validation)
        share = 100 * max(counts.values()) / len(task.validation)
        assert card.floor == {"accuracy": pytest.approx(share, abs=0.05)}
        return
    firsts = [example.completion for example in task.validation]
    labels = {metric.name: metric.label for metric in task.metrics}
    found = task.score([*firsts[1:], firsts[0]], task.validation)
    for label, value in card.floor.items():
        key = next(key for key, own in labels.items() if own == label)
        assert value == pytest.approx(found[key], abs=0.05)
    if not card.ceiling:
        return
    rest = [dataclasses.replace(e, references=e.references[1:]) for e in task.validation]
    best = task.score(firsts, rest)
    for label, value in card.ceiling.items():
        key = next(key for key, own in labels.items() if own == label)
        assert value == pytest.approx(best[key], abs=0.05)
    if name == "mini-e2e":  # by sacrebleu itself
        streams = [[*e.references[1:], None, None, None, None][:4] for e in task.validation]
        peer = sacrebleu.corpus_bleu(firsts, [list(s) for s in zip(*streams, strict=True)]).score
        assert card.ceiling["BLEU (cased)"] == pytest.approx(peer, abs=0.05)


def test_a_task_of_ones_own_may_do_without() -> None:
    @register_task("mini-none", ClassificationTask)
    def made(seed: int = 0) -> ClassificationTask:
        return dataclasses.replace(load_task("mini-rating"), name=f"none {seed}")

    try:
        assert card_of(load_task("mini-none")) is None
        assert repr(load_task("mini-none")).count("\n") == 0
    finally:
        del EMBEDDED["mini-none"]
