"""Scores of predictions."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask


def _bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 by Papineni et al. (2002) on whitespace tokens; closest reference length."""
    matched, total = [0] * 4, [0] * 4
    length = closest = 0
    for text, refs in zip(predictions, references, strict=True):
        tokens, ref_tokens = text.split(), [r.split() for r in refs]
        length += len(tokens)
        closest += min((abs(len(r) - len(tokens)), len(r)) for r in ref_tokens)[1]
        for n in range(1, 5):
            grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
            allowed: Counter = Counter()
            for r in ref_tokens:
                allowed |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            matched[n - 1] += sum((grams & allowed).values())
            total[n - 1] += sum(grams.values())
    precision = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - closest / length)) * math.exp(precision)


def test_bleu_with_ragged_references_by_the_formula():
    references = [
        ["the cat sat on the mat", "a cat was sitting on the mat today", "there is a cat there"],
        ["it rains in the city centre"],
        ["the pub by the river is cheap and friendly", "a cheap and friendly pub by the river"],
    ]
    predictions = [
        "a cat sat on the mat today",
        "it rains in the city",
        "the cheap pub by the river is friendly",
    ]
    examples = [Example("p", r[0], tuple(r)) for r in references]
    task = GenerationTask("t", False, (), ())
    score = task.score(predictions, examples)
    assert score["bleu"] == pytest.approx(_bleu(predictions, references), rel=1e-9)
    assert 0 < score["bleu"] < 100
    assert score.keys() == {"bleu", "chrf", "exact_match"}


@pytest.mark.parametrize(("predictions", "count"), [([], 0), (["a"], 2)])
def test_score_needs_one_prediction_an_example(predictions, count):
    with pytest.raises(TaskError, match=f"{len(predictions)} predictions for {count} examples"):
        GenerationTask("t", False, (), ()).score(predictions, [Example("p", "c", ("c",))] * count)
