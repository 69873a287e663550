"""BLEU, chrF and exact match: a right answer is told from a wrong one, in any script.

Oracle: sacrebleu with the tokens named by hand.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import sacrebleu

from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.text_scores import bleu_tokens, chrf, exact_match

LONG = {
    "13a": "the cat sat on the mat",
    "zh": "杭州是一座美丽的城市西湖很有名",
    "char": "서울은 한국의 수도입니다",
}
TEXTS = {
    "yes": None,
    "42": None,
    "New York": None,
    "on my way": None,
    "a": None,
    ".": None,
    "👍": None,
    "好": None,
    "がいい": None,
    **{text: tokens for tokens, text in LONG.items()},
    "日本の首都は東京です": "char",
    "ศิลปะและวัฒนธรรมไทย": "char",
    "ພາສາລາວເປັນພາສາ": "char",
    "ភាសាខ្មែរជាភាសា": "char",
    "မြန်မာဘာသာစကား": "char",
    "GPT 是一个模型": "zh",
    "это простое русское предложение": "13a",
    "هذه جملة عربية بسيطة": "13a",
    "यह एक सरल वाक्य है": "13a",
}


def scores(predictions, references, **task):
    examples = [Example("q", right[0], tuple(right)) for right in references]
    made = GenerationTask("t", False, examples, examples, **task)
    return made.score(predictions, examples), made.scoring(examples)


@pytest.mark.parametrize("text", TEXTS)
def test_right_answers_have_100_of_whatever_is_shown(text):
    found, told = scores([text] * 16, [[text]] * 16)
    assert set(found.values()) == {100.0}
    assert {"chrf", "exact_match"} <= found.keys()
    if TEXTS[text] is None:
        assert "bleu" not in found
        assert told["bleu"] == "left out: 16 of 16 right answers have fewer than 4 words"
    else:
        assert f"tok:{TEXTS[text]}|" in told["bleu"]
        assert "nc:6|nw:0" in told["chrf"]


@pytest.mark.parametrize("tokens", LONG)
def test_what_is_half_right_is_what_sacrebleu_says(tokens):
    right = LONG[tokens]
    said = [right[: len(right) // 2], right, right[::-1]]
    found, _ = scores(said, [[right]] * 3)
    peer = sacrebleu.corpus_bleu(said, [[right] * 3], tokenize=tokens).score
    assert found["bleu"] == pytest.approx(peer, rel=1e-12)
    assert 5 < peer < 95
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [[right] * 3]).score)
    assert found["exact_match"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        ([LONG["13a"]] * 8 + [LONG["zh"]] * 8, "zh"),
        ([LONG["13a"]] * 8 + [LONG["char"]] * 8, "char"),
        ([LONG["zh"]] * 8 + ["日本の首都は東京です"] * 8, "char"),
        ([LONG["13a"]] * 19 + [LONG["zh"]], "13a"),  # one name does not make a script
        (["the 东京 tower is tall"] * 4, "13a"),
    ],
)
def test_mixed_sets_have_the_tokens_that_tell_right_from_wrong(texts, tokens):
    assert bleu_tokens([[text] for text in texts]) == tokens
    found, _ = scores(texts, [[text] for text in texts])
    assert found["bleu"] == 100.0


def test_of_short_and_long_answers_the_most_decide():
    short, long = "New York", LONG["13a"]
    for count in range(17):
        texts = [short] * count + [long] * (16 - count)
        found, _ = scores(texts, [[text] for text in texts])
        assert ("bleu" in found) == (count < 8)
        assert set(found.values()) == {100.0}
    # One short completion among those that count as right: any of them has to have its 100.
    found, _ = scores([short] * 4, [[long, short]] * 4)
    assert "bleu" not in found


def _chrf(predictions, references):
    """Popović (2015): F2 of the mean precision and the mean recall, n = 1 to 6, no spaces."""
    precisions, recalls = [], []
    for n in range(1, 7):
        matched = said = right = 0
        for prediction, reference in zip(predictions, references, strict=True):
            texts = [text.replace(" ", "") for text in (prediction, reference)]
            p, r = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in texts)
            matched += (p & r).total()
            said, right = said + p.total(), right + r.total()
        if said and right:
            precisions.append(matched / said)
            recalls.append(matched / right)
    p, r = (math.fsum(values) / len(values) for values in (precisions, recalls))
    return 100 * 5 * p * r / (4 * p + r)


def test_chrf_by_the_formula():
    predictions = ["a cat sat on the mat", "no", "it rains"]
    references = ["the cat sat on a mat", "yes", "it is raining"]
    found = chrf(predictions, [[text] for text in references])
    assert found == pytest.approx(_chrf(predictions, references), rel=1e-9)


def test_an_exact_match_is_one_of_the_right_answers_letter_for_letter():
    right = [["yes", "yes ."], ["New York"], ["é"], [" indented"]]
    assert exact_match(["yes .", "new york", "e\u0301", "indented\n"], right) == 50.0
