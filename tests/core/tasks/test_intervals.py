"""How far a score may be off: against scipy's binomial interval, its bootstrap, and scikit-learn.

A bootstrap's percentiles depend on what is drawn: peers are given the same resamples.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest
import sacrebleu
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from lora_lab.tasks import Example, GenerationTask, intervals
from lora_lab.tasks.metrics import (
    ACCURACY,
    BLEU,
    BLEU_LOWERCASE,
    CHRF,
    EXACT_MATCH,
    F1,
    MACRO_F1,
    MATTHEWS,
    PEARSON,
    SPEARMAN,
    Metric,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 16), (16, 16), (9, 16), (1, 2), (430, 872)])
def test_a_share_of_hits_has_wilsons_interval(hits: int, count: int) -> None:
    peer = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    found = intervals.wilson(hits, count)
    assert found == pytest.approx((100 * peer.low, 100 * peer.high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("count", [1, 3, 16, 40, 872, 10_007])
def test_of_no_hit_it_begins_at_0_and_of_all_ends_at_100(count: int) -> None:
    """By Wilson's formula z²/2n − z·√(z²/4n²) is 0; rounded it is not."""
    assert intervals.wilson(0, count)[0] == 0.0
    assert intervals.wilson(count, count)[1] == 100.0
    assert intervals.wilson(0, count)[1] == pytest.approx(100 - intervals.wilson(count, count)[0])


def resampled(score: Callable, predictions: list, references: list) -> tuple[float, float]:
    said, right = np.array(predictions), np.array(references)
    values = [score(said[rows], right[rows]) for rows in intervals.drawn(len(said))]
    return tuple(np.quantile(values, (0.025, 0.975)))


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_of_classes_are_resampled_as_scikit_learn_counts_them(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 60)
    monkeypatch.setattr(intervals.drawn, "__defaults__", (60,))
    rng = random.Random(classes)
    right = [rng.randrange(classes) for _ in range(25)]
    said = [y if rng.random() < 0.6 else rng.randrange(classes) for y in right]
    peers = {
        MATTHEWS: lambda p, y: 100 * matthews_corrcoef(y, p),
        MACRO_F1: lambda p, y: 100 * f1_score(y, p, average="macro", zero_division=0.0),
    }
    if classes == 2:
        peers[F1] = lambda p, y: 100 * f1_score(y, p, zero_division=0.0)
    for metric, peer in peers.items():
        expected = resampled(peer, said, right)
        assert metric.between(said, right) == pytest.approx(expected, rel=1e-9), metric.name
    assert ACCURACY.between(said, right) == intervals.wilson(
        sum(p == y for p, y in zip(said, right, strict=True)), 25
    )


def test_correlations_are_resampled_as_scipy_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals.drawn, "__defaults__", (60,))
    rng = np.random.default_rng(0)
    right = rng.integers(0, 6, 20).astype(float)  # with ties
    said = right + rng.normal(0, 2, 20)
    for metric, peer in ((PEARSON, stats.pearsonr), (SPEARMAN, stats.spearmanr)):
        expected = resampled(lambda p, y, peer=peer: 100 * peer(p, y).statistic, said, right)
        assert metric.between(said.tolist(), right.tolist()) == pytest.approx(expected, rel=1e-9)


def test_scores_of_texts_are_resampled_as_sacrebleu_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals.drawn, "__defaults__", (40,))
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "rains", "in", "Spain"]
    right = [[" ".join(rng.sample(words, 8)).capitalize()] for _ in range(20)]
    said = [" ".join(w if rng.random() < 0.8 else "X" for w in t[0].split()) for t in right]
    said[0] = said[0].upper()
    said[1] = ""
    for metric, peer in (
        (BLEU, sacrebleu.BLEU()),
        (BLEU_LOWERCASE, sacrebleu.BLEU(lowercase=True)),
        (CHRF, sacrebleu.CHRF()),
    ):
        expected = resampled(
            lambda p, r, peer=peer: peer.corpus_score(p.tolist(), [r[:, 0].tolist()]).score,
            said,
            right,
        )
        assert metric.between(said, right) == pytest.approx(expected, rel=1e-9)
        assert metric.between(["x"] * 20, right)[0] == 0
    assert BLEU_LOWERCASE.compute(said, right) > BLEU.compute(said, right)
    assert EXACT_MATCH.between(said, right)[0] >= 0


def test_a_mean_over_the_parts_of_examples_is_that_of_a_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """scipy's percentile bootstrap of Σ sums / Σ counts, examples drawn as pairs."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, 40)
    before = rng.gamma(2.0, 1.0, 40) * counts
    after = before + rng.normal(0.5, 0.1, 40) * counts

    def peer(*sums: np.ndarray) -> tuple[float, float]:
        def statistic(n: np.ndarray, *each: np.ndarray, axis: int) -> np.ndarray:
            ratios = [one.sum(axis) / n.sum(axis) for one in each]
            return ratios[0] - ratios[1] if len(ratios) > 1 else ratios[0]

        found = stats.bootstrap(
            (counts, *sums), statistic, paired=True, vectorized=True, method="percentile",
            n_resamples=20_000, rng=np.random.default_rng(2),
        )  # fmt: skip
        return tuple(found.confidence_interval)

    pairs = [list(zip(sums.tolist(), counts.tolist(), strict=True)) for sums in (before, after)]
    width = np.ptp(peer(before))
    assert intervals.of_mean(pairs[0]) == pytest.approx(peer(before), abs=0.1 * width)
    rise = peer(after, before)
    assert intervals.of_rise(*pairs) == pytest.approx(rise, abs=0.1 * np.ptp(rise))
    assert np.ptp(rise) < width / 4
    whole = intervals.of_mean(pairs[0])
    assert intervals.of_mean([*pairs[0], (0.0, 0)]) == whole, "what has no token has no weight"
    monkeypatch.setattr(intervals, "_AT_ONCE", 100)  # a few resamples at a time
    assert intervals.of_mean(pairs[0]) == pytest.approx(whole, abs=1e-12)
    assert intervals.of_mean(pairs[0][:1]) is None
    assert intervals.of_mean([(float("nan"), 1), (1.0, 1)]) is None


def test_a_metric_of_ones_own_is_resampled_and_one_example_has_no_interval() -> None:
    longer = Metric("longer", lambda p, r: float(np.mean([len(a) for a in p])))
    texts = ["a" * n for n in range(1, 31)]
    low, high = longer.between(texts, texts)
    spread = np.std([len(t) for t in texts]) / np.sqrt(30)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.15)
    assert longer.between(["a"], ["a"]) is None
    example = Example("q", "b c d e", ("b c d e",))
    task = GenerationTask("t", False, [example], [example])
    assert task.intervals(["b c d e"], [example]) == {}
    task = dataclasses.replace(task, metrics=(BLEU_LOWERCASE,))
    assert task.score(["B C D E"], [example]) == {"bleu_lowercase": pytest.approx(100)}
    assert "case:lc" in task.scoring([example])["bleu_lowercase"]
