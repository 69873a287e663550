"""Every expected value comes from the built matrix in float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError
from tests.helpers.built_matrices import MAKERS, built, factors, orthonormal

SHAPES = {"d": st.integers(1, 40), "k": st.integers(1, 40), "seed": st.integers(0, 2**16)}
LIBRARIES = st.sampled_from(sorted(MAKERS))


def check_triplets(triplets, W, m, size, dtype=np.float32):
    """Assert the thin SVD of W, to float32's rounding of the factors' size."""
    U, s, Vt = (np.asarray(x) for x in triplets)
    d, k = W.shape
    assert (U.shape, s.shape, Vt.shape) == ((d, m), (m,), (m, k))
    assert U.dtype == s.dtype == Vt.dtype == dtype
    close = 1e-5 * size + 1e-30
    np.testing.assert_allclose(s, np.linalg.svd(W, compute_uv=False)[:m], atol=close)
    assert (np.diff(s) <= 0).all()
    np.testing.assert_allclose((U * s) @ Vt, W, atol=close)
    np.testing.assert_allclose(U.T @ U, np.eye(m), atol=1e-5)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(m), atol=1e-5)


@settings(max_examples=60)
@given(
    **SHAPES,
    r=st.integers(1, 12),
    zeros=st.integers(0, 3),
    scale=st.sampled_from([1.0, 2.0, 0.125, -3.0, 1e-4]),
    library=LIBRARIES,
)
def test_triplets_are_the_svd_of_the_built_matrix(d, k, r, zeros, scale, library, seed):
    A, B = factors(np.random.default_rng(seed), r, d, k)
    B[:, :zeros] = 0  # a lower rank than r, down to none
    W, m = built(A, B, scale), min(r, d, k)
    size = abs(scale) * np.linalg.norm(A) * np.linalg.norm(B)
    make = MAKERS[library]
    check_triplets(spectra.singular_triplets(make(A), make(B), scale), W, m, size)
    values = np.asarray(spectra.singular_values(make(A), make(B), scale))
    expected = np.linalg.svd(W, compute_uv=False)[:m]
    np.testing.assert_allclose(values, expected, atol=1e-5 * size + 1e-30)


@settings(max_examples=30)
@given(**SHAPES, library=LIBRARIES, groups=st.integers(1, 3))
def test_repeated_singular_values_and_the_full_rank(d, k, seed, library, groups):
    rng = np.random.default_rng(seed)
    r = min(d, k)
    s = np.sort(np.repeat([5.0, 2.0, 0.5], r)[: r * groups : groups])[::-1]
    A = orthonormal(rng, k, r).T.astype(np.float32)
    B = (orthonormal(rng, d, r) * s).astype(np.float32)
    make = MAKERS[library]
    triplets = spectra.singular_triplets(make(A), make(B))
    check_triplets(triplets, built(A, B), r, np.linalg.norm(s))
    np.testing.assert_allclose(np.asarray(triplets[1]), s, rtol=1e-5)


@pytest.mark.parametrize("library", sorted(MAKERS))
def test_a_zero_update_has_zero_values_and_still_orthonormal_vectors(library):
    A, B = factors(np.random.default_rng(0), 4, 9, 11)
    make = MAKERS[library]
    U, s, Vt = spectra.singular_triplets(make(A), make(B * 0), 2.0)
    assert not np.asarray(s).any()
    np.testing.assert_allclose(np.asarray(U.T @ U), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(np.asarray(Vt @ Vt.T), np.eye(4), atol=1e-6)


def test_a_batch_is_its_members():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 3, 4, 9)), rng.standard_normal((2, 3, 7, 4))
    scale = rng.random((2, 3)) + 0.5
    U, s, Vt = spectra.singular_triplets(A, B, scale)
    assert (U.shape, s.shape, Vt.shape) == ((2, 3, 7, 4), (2, 3, 4), (2, 3, 4, 9))
    both = spectra.singular_triplets_of_sum([(A, B, scale), (A[..., ::-1], B, -1.0)])
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose((U[i] * s[i]) @ Vt[i], built(A[i], B[i], scale[i]), atol=1e-12)
        expected = built(A[i], B[i], scale[i]) - built(A[i][:, ::-1], B[i])
        np.testing.assert_allclose((both[0][i] * both[1][i]) @ both[2][i], expected, atol=1e-12)
    np.testing.assert_allclose(spectra.singular_values(A, B, scale), s, atol=1e-12)
    assert spectra.effective_rank(s).shape == (2, 3)
    W = rng.standard_normal((2, 3, 7, 9))
    together = spectra.amplification(U, s, Vt, W)
    for i in np.ndindex(2, 3):
        assert together[i] == pytest.approx(float(spectra.amplification(U[i], s[i], Vt[i], W[i])))


@settings(max_examples=40)
@given(
    **SHAPES,
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    scale=st.sampled_from([1.0, -2.0, 0.25]),
    library=LIBRARIES,
)
def test_a_sum_of_updates_is_the_svd_of_the_built_sum(d, k, seed, ranks, scale, library):
    rng = np.random.default_rng(seed)
    parts = [(*factors(rng, r, d, k), scale * (1 + i)) for i, r in enumerate(ranks)]
    W = sum(built(A, B, s) for A, B, s in parts)
    size = sum(abs(s) * np.linalg.norm(A) * np.linalg.norm(B) for A, B, s in parts)
    make = MAKERS[library]
    triplets = spectra.singular_triplets_of_sum((make(A), make(B), s) for A, B, s in parts)
    check_triplets(triplets, W, min(sum(ranks), d, k), size)


@pytest.mark.parametrize("library", sorted(MAKERS))
def test_the_small_step_away_from_a_large_start_is_not_lost(library):
    # PiSSA starts from large factors that were taken out of W₀; one step of training is tiny.
    rng, make = np.random.default_rng(1), MAKERS[library]
    A0, B0 = factors(rng, 4, 30, 40)
    A, B = A0 * np.float32(1.00001), B0 + np.float32(1e-5) * B0[::-1]
    W = built(A, B, 2.0) - built(A0, B0, 2.0)
    triplets = spectra.singular_triplets_of_sum([(make(A), make(B), 2.0), (make(A0), make(B0), -2)])
    check_triplets(triplets, W, 8, np.linalg.norm(W))
    assert int(spectra.numerical_rank(triplets[1])) == np.linalg.matrix_rank(W, tol=1e-9)


@pytest.mark.parametrize("library", sorted(MAKERS))
def test_what_cancels_wholly_is_zero(library):
    A, B = (MAKERS[library](x) for x in factors(np.random.default_rng(2), 4, 30, 40))
    s = spectra.singular_triplets_of_sum([(A, B, 2.0), (A, B, -2.0)])[1]
    assert not np.asarray(s).any()
    assert float(spectra.effective_rank(s)) == 0
    assert int(spectra.numerical_rank(s)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("make", MAKERS.values())
def test_a_diverged_adapter_is_named_so(bad, make):
    A, B = factors(np.random.default_rng(0), 2, 5, 6)
    B[3, 1] = bad
    line = r"NaN or infinite.*load the last good checkpoint"
    for measure in (spectra.singular_triplets, spectra.singular_values):
        with pytest.raises(AdapterError, match=line):
            measure(make(A), make(B))
    with pytest.raises(AdapterError, match=line):
        spectra.singular_triplets_of_sum([(make(A), make(A.T[:5]), 1.0), (make(A), make(B), 1.0)])


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(AdapterError, match=r"A has shape \(2, 6\) and B \(5, 3\); A must be"):
        spectra.singular_values(np.zeros((2, 6)), np.zeros((5, 3)))
    with pytest.raises(AdapterError, match="with the same r ≥ 1"):
        spectra.singular_triplets(torch.zeros(0, 6), torch.zeros(5, 0))
    with pytest.raises(AdapterError, match=r"differ in shape: \(5, 6\) and \(5, 7\)"):
        spectra.singular_triplets_of_sum([(np.ones((1, k)), np.ones((5, 1)), 1.0) for k in (6, 7)])
    with pytest.raises(AdapterError, match="at least one"):
        spectra.singular_triplets_of_sum([])
