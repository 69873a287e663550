"""ROUGE-1, ROUGE-2 and ROUGE-L of texts (Lin, 2004, https://aclanthology.org/W04-1013).

As the package rouge-score has them by default: words are lower-cased runs of letters and digits
(here of any script), nothing is stemmed, a score is F1, and of several references the best counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lora_lab.tasks.intervals import Interval, between, drawn

_WORD = re.compile(r"[^\W_]+")


def rouge_n(predictions: Sequence[str], references: Sequence[Sequence[str]], n: int) -> float:
    """Return the mean F1 of n-grams, from 0 to 100."""
    return 100 * float(np.mean(_each(predictions, references, n)))


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean F1 of the longest common subsequence, from 0 to 100."""
    return 100 * float(np.mean(_each(predictions, references, 0)))


def interval(
    predictions: Sequence[str], references: Sequence[Sequence[str]], n: int = 0
) -> Interval:
    """Return the 95 % interval of `rouge_n`, or with n = 0 of `rouge_l`, by the bootstrap."""
    each = _each(predictions, references, n)
    return between(100 * each[drawn(len(each))].mean(1))


def _each(predictions: Sequence[str], references: Sequence[Sequence[str]], n: int) -> np.ndarray:
    """Return each answer's best score; n = 0: of the longest common subsequence."""
    found = []
    for prediction, texts in zip(predictions, references, strict=True):
        said = _words(prediction)
        found.append(max(_f1(said, _words(text), n) for text in texts))
    return np.array(found)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(said: list[str], right: list[str], n: int) -> float:
    if n == 0:
        return _ratio(longest_common(said, right), len(said), len(right))
    grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (said, right)]
    return _ratio((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def _ratio(matched: int, said: int, right: int) -> float:
    return 2 * matched / (said + right) if said + right else 0.0


def longest_common(a: list[str], b: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for at, other in enumerate(b, 1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]
