"""NIST, CIDEr-D and COCO's ROUGE-L: the example of E2E's script, by that script's own code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu

from lora_lab.tasks import load_task, nlg_scores
from lora_lab.tasks.metrics import CIDER, COCO_ROUGE_L, NIST, TER, metric_of
from tests.helpers import e2e_metrics

SAID, RIGHT = e2e_metrics.example()
OTHERS = [SAID[0], "", "word", SAID[3] * 2, *SAID[5:], "nothing of it is there", SAID[4]]


@pytest.mark.parametrize("said", [SAID, OTHERS, [texts[0] for texts in RIGHT]], ids=len)
def test_nist_is_that_of_the_challenges_script(said: list[str]) -> None:
    said = said[: len(RIGHT)]
    if min(map(len, said)) > 20:  # the script counts fewer than no n-grams in a shorter text
        assert NIST.compute(said, RIGHT) == pytest.approx(e2e_metrics.nist(said, RIGHT), rel=1e-12)
    low, high = NIST.between(said, RIGHT)
    assert low < NIST.compute(said, RIGHT) < high or low <= high


def test_nist_by_doddingtons_formula() -> None:
    # One reference of four words: each says log2 4, a word behind another one nothing more.
    assert NIST.compute(["a b c d"], [["a b c d"]]) == pytest.approx(2.0)
    # Half the score at two thirds of the length; "a b" twice, so that b behind a says nothing.
    three = NIST.compute(["a b"], [["a b c"]])
    assert three == pytest.approx(0.5 * math.log2(3))
    assert NIST.compute(["", "x"], [["a"], ["b"]]) == 0.0
    assert NIST.compute(["A B c D"], [["a b c d"]]) == pytest.approx(2.0)


def captions(texts: list[str]) -> list[str]:
    cut = nlg_scores.captions(RIGHT)
    return [" ".join(cut(text)) for text in texts]


@pytest.mark.parametrize("said", [SAID, SAID[::-1], OTHERS[: len(RIGHT)]], ids=lambda s: s[0][:12])
def test_cider_and_rouge_are_those_of_coco_caption(said: list[str]) -> None:
    plain, right = captions(said), [captions(texts) for texts in RIGHT]
    assert CIDER.compute(said, RIGHT) == pytest.approx(e2e_metrics.cider(plain, right), rel=1e-12)
    expected = 100 * e2e_metrics.rouge_l(plain, right)
    assert COCO_ROUGE_L.compute(said, RIGHT) == pytest.approx(expected, rel=1e-12)


def test_captions_are_cut_as_ptb_cuts_these() -> None:
    # Stanford's PTBTokenizer with -lowerCase, less the punctuation that coco-caption drops.
    given = "Aromi's a non-family place, isn't it? (It's rated 3.5 of 5.)"
    words = [
        *("aromi", "'s", "a", "non-family", "place", "is", "n't", "it", "it", "'s"),
        *("rated", "3.5", "of", "5"),
    ]
    assert nlg_scores.captions([["a"]])(given) == words


def test_intervals_hold_the_score_and_one_example_has_no_cider() -> None:
    for metric in (NIST, CIDER, COCO_ROUGE_L, TER):
        low, high = metric.between(SAID, RIGHT)
        assert low <= metric.compute(SAID, RIGHT) <= high
        assert low < high
    assert CIDER.unfit([["a"]]).startswith("of one example")
    assert CIDER.unfit([["a"], ["b"]]) == ""


def test_ter_is_sacrebleus_and_less_is_better() -> None:
    streams = [[texts[i] if i < len(texts) else None for texts in RIGHT] for i in range(40)]
    streams = [stream for stream in streams if any(stream)]
    peer = sacrebleu.corpus_ter(SAID, streams).score
    assert TER.compute(SAID, RIGHT) == pytest.approx(peer)
    assert TER.compute(["a b c d e f"], [["x"]]) > 100, "more edits than words"
    assert not metric_of("ter_after").higher_is_better
    assert "tok" in TER.signature(RIGHT) or "case" in TER.signature(RIGHT)


def test_each_metric_knows_a_right_answer_from_a_wrong_one() -> None:
    task = load_task("mini-e2e")
    right = [example.references[-1] for example in task.validation]
    references = [example.references for example in task.validation]
    wrong = [*right[1:], right[0]]
    for metric in (NIST, CIDER, COCO_ROUGE_L):
        assert metric.compute(right, references) > 1.5 * metric.compute(wrong, references)
    assert TER.compute(right, references) == 0 < TER.compute(wrong, references)
    assert np.isclose(COCO_ROUGE_L.compute(right, references), 100)
