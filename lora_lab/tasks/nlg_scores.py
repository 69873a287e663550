"""NIST, CIDEr-D and COCO's ROUGE-L: what the script of the E2E challenge counts beside BLEU.

NIST is Doddington's (2002) as mteval-v13a has it, without regard to case. CIDEr-D (Vedantam et al.,
2015, https://arxiv.org/abs/1411.5726) and ROUGE-L are coco-caption's, but for its tokens, which a
Java program cuts: here they are mteval's, clitics apart, without punctuation. METEOR, which needs
its authors' program, is in `meteor`.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lora_lab.tasks.intervals import Interval, between, drawn
from lora_lab.tasks.rouge import longest_common
from lora_lab.tasks.text_scores import References, words

_NIST_ORDER, _CIDER_ORDER = 5, 4
_BETA = math.log(0.5) / math.log(1.5) ** 2  # half the score at two thirds of the length
_SIGMA, _TIMES = 6.0, 10.0  # of CIDEr-D
_ROUGE_BETA = 1.2
_CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))\b")
_PUNCTUATION = {*"'\"`.,?!:;-()[]{}", "''", "``", "--", "..."}

Gram = tuple[str, ...]


def nist(predictions: Sequence[str], references: References) -> float:
    """Return corpus NIST: how much the words that are right say, up to 5 in a row; from 0 on."""
    return _nist(_nist_counts(predictions, references).sum(0))


def nist_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `nist`, by the bootstrap; what words say is not drawn again."""
    counts = _nist_counts(predictions, references)
    return between([_nist(counts[rows].sum(0)) for rows in drawn(len(counts))])


def cider(predictions: Sequence[str], references: References) -> float:
    """Return mean CIDEr-D, from 0 to 10: rare words weigh more, in the references as a whole."""
    return float(_cider_each(predictions, references).mean())


def cider_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `cider`, by the bootstrap; the weights are not drawn again."""
    each = _cider_each(predictions, references)
    return between(each[drawn(len(each))].mean(1))


def no_cider(references: References) -> str:
    """Return why CIDEr-D says nothing of answers to these references; "" where it does."""
    return "" if len(references) > 1 else "of one example no word is rarer than another"


def coco_rouge_l(predictions: Sequence[str], references: References) -> float:
    """Return mean ROUGE-L from 0 to 100: recall weighs 1.2 times, each side its best reference."""
    return 100 * float(_rouge_each(predictions, references).mean())


def coco_rouge_l_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `coco_rouge_l`, by the bootstrap."""
    each = _rouge_each(predictions, references)
    return between(100 * each[drawn(len(each))].mean(1))


def _grams(text: Sequence[str], order: int) -> Iterator[Gram]:
    for n in range(1, order + 1):
        yield from zip(*(text[i:] for i in range(n)), strict=False)


def _nist_counts(predictions: Sequence[str], references: References) -> np.ndarray:
    """Return of each example what its matches say and how many n-grams it has, n = 1 to 5.

    Behind them the mean length of its references: (examples, 11).
    """
    cut = words(references)
    right = [[cut(text) for text in texts] for texts in references]
    seen = Counter(gram for texts in right for text in texts for gram in _grams(text, _NIST_ORDER))
    seen[()] = sum(len(text) for texts in right for text in texts)
    rows = np.zeros((len(right), 2 * _NIST_ORDER + 1))
    for row, prediction, texts in zip(rows, predictions, right, strict=True):
        said = cut(prediction)
        allowed = functools.reduce(
            operator.or_, (Counter(_grams(text, _NIST_ORDER)) for text in texts)
        )
        for gram, count in (Counter(_grams(said, _NIST_ORDER)) & allowed).items():
            row[len(gram) - 1] += count * math.log2(seen[gram[:-1]] / seen[gram])
        row[_NIST_ORDER:-1] = [max(len(said) - n, 0) for n in range(_NIST_ORDER)]
        row[-1] = np.mean([len(text) for text in texts])
    return rows


def _nist(total: np.ndarray) -> float:
    told, said, right = total[:_NIST_ORDER], total[_NIST_ORDER:-1], total[-1]
    if not said[0] or not right:
        return 0.0
    penalty = math.exp(_BETA * math.log(min(said[0] / right, 1.0)) ** 2)
    return penalty * float((told / np.maximum(said, 1)).sum())


def captions(references: References) -> Callable[[str], list[str]]:
    """Return what cuts a text as coco-caption does, about: see the head of this file."""
    cut = words(references)

    def captioned(text: str) -> list[str]:
        apart = _CLITIC.sub(r" \1", text.lower().replace("’", "'"))
        return [word for word in cut(apart) if word not in _PUNCTUATION]

    return captioned


def _cider_each(predictions: Sequence[str], references: References) -> np.ndarray:
    cut = captions(references)
    right = [[Counter(_grams(cut(text), _CIDER_ORDER)) for text in texts] for texts in references]
    examples = Counter(gram for texts in right for gram in set().union(*texts))
    least = math.log(len(right))

    def weighed(counts: Counter[Gram]) -> tuple[dict[Gram, float], np.ndarray, int]:
        """Return {n-gram: its weight}, the length of these for each n, and the pairs of words."""
        rare = {g: n * (least - math.log(max(examples[g], 1))) for g, n in counts.items()}
        squares = np.zeros(_CIDER_ORDER)
        for gram, weight in rare.items():
            squares[len(gram) - 1] += weight**2
        return rare, np.sqrt(squares), sum(n for gram, n in counts.items() if len(gram) == 2)

    def alike(said: tuple[dict[Gram, float], np.ndarray, int], text: Counter[Gram]) -> float:
        (own, length, pairs), (other, its_length, its_pairs) = said, weighed(text)
        found = np.zeros(_CIDER_ORDER)
        for gram in own.keys() & other.keys():
            found[len(gram) - 1] += min(own[gram], other[gram]) * other[gram]
        both = length * its_length
        cosines = np.divide(found, both, out=np.zeros(_CIDER_ORDER), where=both > 0)
        return float(cosines.mean() * math.exp(-((pairs - its_pairs) ** 2) / (2 * _SIGMA**2)))

    each = []
    for prediction, texts in zip(predictions, right, strict=True):
        said = weighed(Counter(_grams(cut(prediction), _CIDER_ORDER)))
        each.append(_TIMES * float(np.mean([alike(said, text) for text in texts])))
    return np.array(each)


def _rouge_each(predictions: Sequence[str], references: References) -> np.ndarray:
    cut = captions(references)
    each = []
    for prediction, texts in zip(predictions, references, strict=True):
        said, right = cut(prediction), [cut(text) for text in texts]
        common = [longest_common(said, text) for text in right]
        precision = max(common) / max(len(said), 1)
        recall = max(n / max(len(text), 1) for n, text in zip(common, right, strict=True))
        below = recall + _ROUGE_BETA**2 * precision
        each.append((1 + _ROUGE_BETA**2) * precision * recall / below if below else 0.0)
    return np.array(each)
