"""A tiny model with a head of one output, and a task that it learns in a second or two."""

from __future__ import annotations

import random

from lora_lab.models import LoadedModel
from lora_lab.tasks import RegressionTask, ScoredText
from tests.helpers.tiny_classes import tiny_classifier


def tiny_scorer(kind: str = "bert", seed: int = 0) -> LoadedModel:
    """A random model of 2 layers, 32 wide, with a head of one output, without dropout."""
    lm = tiny_classifier(kind, classes=1, seed=seed)
    lm.model.config.problem_type = "regression"
    return lm


def tiny_scores(training: int = 64, held_out: int = 16, pairs: bool = False) -> RegressionTask:
    """How many of six letters are an a; of a pair, how many stand in both at the same place."""
    rng = random.Random(0)

    def example() -> ScoredText:
        first, second = ("".join(rng.choices("ab", k=6)) for _ in range(2))
        if not pairs:
            return ScoredText(first, float(first.count("a")))
        return ScoredText(first, float(sum(map(str.__eq__, first, second))), second)

    rows = [example() for _ in range(training + held_out)]
    return RegressionTask("counts", True, rows[:training], rows[training:])
