"""How far a score of so many examples may be off: 95 % intervals.

A share of hits has the binomial's, by Wilson (1927); all else the bootstrap's (Efron, 1979): the
examples are drawn with replacement, and the scores' 2.5th and 97.5th percentile are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]

RESAMPLES = 1000
_OF_A_FUNCTION = 200  # it is called so often
_AT_ONCE = 2**20  # examples of resamples
_Z = 1.959963984540054  # of 95 %, two-sided


def wilson(hits: int, count: int) -> Interval:
    """Return the interval of a share of hits, in percent; of none from 0 on, of all up to 100."""
    share, z2 = hits / count, _Z**2 / count
    middle = share + z2 / 2
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    low, high = (100 * (middle + sign * half) / (1 + z2) for sign in (-1, 1))
    return low if hits else 0.0, high if hits < count else 100.0  # which rounding misses


def drawn(count: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the examples of each resample, (resamples, count); the same ones each time."""
    return np.random.default_rng(0).integers(count, size=(resamples, count))


def between(scores: Sequence[float] | np.ndarray) -> Interval:
    """Return the percentiles of the scores of resamples."""
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


Sums = Sequence[tuple[float, int]]  # of each example, a sum and of how many


def of_mean(each: Sums) -> Interval | None:
    """Return the interval of a mean over the parts of examples (the tokens of texts).

    Examples are drawn, not their parts: what one text holds hangs together.

    Args:
        each: an example's sum, and of how many parts.

    Returns:
        None of fewer than two examples.
    """
    return _of_means([each])


def of_rise(before: Sums, after: Sums) -> Interval | None:
    """Return the interval by which a mean rose on the same examples; see `of_mean`.

    It is narrower than those of the two means by far: how hard each example is drops out.
    """
    return _of_means([after, before])


def _of_means(parts: Sequence[Sums]) -> Interval | None:
    """Return the interval of the first mean, less the second one where there are two."""
    sums = np.array([[one for one, count in each if count] for each in parts])
    counts = np.array([count for _, count in parts[0] if count], dtype=float)
    if len(counts) < 2 or not np.isfinite(sums).all():
        return None
    signs = np.array([1.0, -1.0][: len(parts)])
    generator, means = np.random.default_rng(0), np.empty(RESAMPLES)
    size = max(1, _AT_ONCE // len(counts))
    for start in range(0, RESAMPLES, size):
        part = means[start : start + size]
        rows = generator.integers(len(counts), size=(len(part), len(counts)))
        part[:] = signs @ sums[:, rows].sum(2) / counts[rows].sum(1)
    return between(means)


def of_function(
    function: Callable[[Sequence[Any], Sequence[Any]], float],
    predictions: Sequence[Any],
    references: Sequence[Any],
) -> Interval:
    """Return the interval of any score, which is counted for each resample."""
    rows = drawn(len(predictions), _OF_A_FUNCTION).tolist()
    return between(
        [function([predictions[i] for i in row], [references[i] for i in row]) for row in rows]
    )


def confusions(predictions: Sequence[int], references: Sequence[int]) -> np.ndarray:
    """Return each resample's confusion matrix, (resamples, classes, classes): [reference, said]."""
    said, right = np.asarray(predictions), np.asarray(references)
    size = int(max(said.max(), right.max(), 1)) + 1
    codes = (right * size + said)[drawn(len(said))]
    codes += np.arange(len(codes))[:, None] * size**2
    found = np.bincount(codes.ravel(), minlength=len(codes) * size**2)
    return found.reshape(len(codes), size, size).astype(float)


def matthews(predictions: Sequence[int], references: Sequence[int]) -> Interval:
    """Return the interval of Matthews's correlation times 100 (Gorodkin, 2004)."""
    found = confusions(predictions, references)
    right, said = found.sum(2), found.sum(1)
    hits, count = found.trace(axis1=1, axis2=2), len(predictions)
    above = hits * count - (right * said).sum(1)
    below = np.sqrt((count**2 - (said**2).sum(1)) * (count**2 - (right**2).sum(1)))
    return between(100 * _ratio(above, below))


def f1(predictions: Sequence[int], references: Sequence[int]) -> Interval:
    """Return the interval of the second class's F1, from 0 to 100."""
    return between(100 * _f1_by_class(confusions(predictions, references))[:, 1])


def macro_f1(predictions: Sequence[int], references: Sequence[int]) -> Interval:
    """Return the interval of the mean F1 of the classes that occur, from 0 to 100."""
    found = confusions(predictions, references)
    occur = found.sum(1) + found.sum(2) > 0
    return between(100 * _f1_by_class(found).sum(1) / occur.sum(1))


def _f1_by_class(found: np.ndarray) -> np.ndarray:
    hits = np.diagonal(found, axis1=1, axis2=2)
    return _ratio(2 * hits, found.sum(1) + found.sum(2))


def pearson(predictions: Sequence[float], references: Sequence[float]) -> Interval:
    """Return the interval of Pearson's correlation times 100."""
    rows = drawn(len(predictions))
    return between(100 * _correlations(np.asarray(predictions)[rows], np.asarray(references)[rows]))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> Interval:
    """Return the interval of Spearman's rank correlation times 100."""
    from scipy.stats import rankdata

    rows = drawn(len(predictions))
    ranks = (rankdata(np.asarray(v)[rows], axis=1) for v in (predictions, references))
    return between(100 * _correlations(*ranks))


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return each row's correlation; 0 where one is constant."""
    x, y = (v - v.mean(1, keepdims=True) for v in (x.astype(float), y.astype(float)))
    return _ratio((x * y).sum(1), np.sqrt((x**2).sum(1) * (y**2).sum(1)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)
