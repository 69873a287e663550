"""Planted intruders are found, turned equals are not taken for any, and chance is on its line."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError
from tests.helpers.built_matrices import MAKERS, orthonormal

EPSILON = 0.5  # Shuttleworth et al.'s


@settings(max_examples=40)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 5),
    m=st.integers(1, 20),
    library=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**16),
)
def test_matches_are_the_cosines_one_by_one(n, k, m, library, seed):
    rng = np.random.default_rng(seed)
    X, Y = orthonormal(rng, n, min(m, n)), orthonormal(rng, n, min(k, n))
    make = MAKERS[library]
    best = np.asarray(spectra.best_match(make(Y), make(X)))
    np.testing.assert_allclose(best, [max(abs(x @ y) for x in X.T) for y in Y.T], atol=1e-14)
    start, stop = sorted(rng.integers(0, X.shape[1] + 1, 2).tolist())
    window = np.asarray(spectra.window_match(make(Y), make(X), start, stop))
    expected = [np.linalg.norm(X[:, start:stop].T @ y) for y in Y.T]
    np.testing.assert_allclose(window, expected, atol=1e-14)
    whole = np.asarray(spectra.window_match(make(Y), make(X), 0, X.shape[1]))
    assert (whole >= best - 1e-12).all()


def test_every_direction_may_have_its_own_window():
    rng = np.random.default_rng(0)
    X, Y = orthonormal(rng, 12, 12), orthonormal(rng, 12, 3)
    together = spectra.window_match(Y, X, [0, 1, 5], [2, 3, 12])
    for j, (start, stop) in enumerate([(0, 2), (1, 3), (5, 12)]):
        alone = spectra.window_match(Y[:, j : j + 1], X, start, stop)
        assert together[j] == pytest.approx(float(alone[0]))


@pytest.mark.parametrize("make", MAKERS.values())
def test_a_planted_intruder_is_found_and_taken_away_again(make):
    rng = np.random.default_rng(1)
    n, k = 256, 300
    X, V = orthonormal(rng, n, n), orthonormal(rng, k, n)
    sigma = 10 * 0.97 ** np.arange(n)
    W = (X * sigma) @ V.T
    # The intruder lies across all of W₀'s directions alike: 1/16 of it along each.
    intruder = X @ np.full(n, n**-0.5)
    # Beside it the update strengthens W₀'s own fourth direction, which makes no intruder.
    B = np.stack([intruder, X[:, 3]], axis=1)
    A = np.stack([40.0 * orthonormal(rng, k, 1)[:, 0], 0.5 * V[:, 3]])
    Y, s, Zt = spectra.top_directions_of_update(make(W), make(A), make(B), 2.0, 10)
    similarity = np.asarray(spectra.best_match(Y, make(X)))
    found = similarity < EPSILON
    assert found.tolist() == [True] + [False] * 9
    assert spectra.intruder_line(n) < EPSILON
    assert abs(np.asarray(Y)[:, 0] @ intruder) > 0.99
    assert float(s[0]) == pytest.approx(80, rel=0.02)

    # W₀ + ΔW + (λ − 1)·uσvᵀ, built: at λ = 0 no direction is an intruder any more.
    u, v = np.asarray(Y)[:, :1], np.asarray(Zt)[:1]
    tuned = W + 2.0 * B @ A
    for factor, strongest in ((0.5, 40), (0.0, 10.1)):
        scaled = tuned + (factor - 1) * float(s[0]) * u @ v
        U, left, _ = np.linalg.svd(scaled)
        assert left[0] == pytest.approx(strongest, rel=0.05)
        still = spectra.best_match(U[:, :10], X) < EPSILON
        assert still.any() == (factor > 0)


def test_vectors_that_only_turned_among_equals_are_no_intruders():
    # Two σ of W₀ coincide: the smallest update decides which way their vectors point.
    W = np.diag([9.0, 5.0, 5.0, 5.0, 5.0, 1.0])
    turned = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    B = np.zeros((6, 4))
    B[1:5] = turned.T * [4e-3, 3e-3, 2e-3, 1e-3]
    A = np.zeros((4, 6))
    A[:, 1:5] = turned
    Y = spectra.top_directions_of_update(W, A, B, 1.0, 5)[0]
    alone = spectra.best_match(Y, np.eye(6))
    np.testing.assert_allclose(alone, [1, 0.5, 0.5, 0.5, 0.5], atol=1e-9)
    among = spectra.window_match(Y, np.eye(6), [0, 1, 1, 1, 1], [1, 5, 5, 5, 5])
    np.testing.assert_allclose(among, 1, atol=1e-9)


def test_the_line_is_where_chance_is():
    rng = np.random.default_rng(2)
    for n in (64, 128, 256, 768):
        Y = rng.standard_normal((n, 400))
        Y /= np.linalg.norm(Y, axis=0)
        mean = float(spectra.best_match(Y, np.eye(n)).mean())
        assert spectra.intruder_line(n) == pytest.approx(mean, rel=0.15)
    assert spectra.intruder_line(64) == pytest.approx(0.36, abs=5e-3)
    assert spectra.intruder_line(1) == 0


@pytest.mark.parametrize(
    "match", [spectra.best_match, lambda Y, X: spectra.window_match(Y, X, 0, 1)]
)
def test_directions_that_cannot_be_matched_are_refused(match):
    with pytest.raises(AdapterError, match="do not lie in one space"):
        match(np.eye(5, 2), np.eye(6))
    with pytest.raises(AdapterError, match="NaN or infinite"):
        match(np.full((5, 2), math.nan), np.eye(5))
