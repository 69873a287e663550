"""Table 7: against built matrices in float64, simulation, and the paper's printed numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError, ModelError
from tests.helpers.built_matrices import MAKERS, built, factors, orthonormal, with_spectrum


def test_the_random_column_of_table_7_is_analytic():
    # ‖W_q‖_F = 61.95 at layer 48 of GPT-3; the paper prints 0.02 and 0.33.
    assert spectra.random_projection(61.95, 4, 12288, 12288) == pytest.approx(0.0202, abs=5e-5)
    assert spectra.random_projection(61.95, 64, 12288, 12288) == pytest.approx(0.3227, abs=5e-5)
    for r, printed in ((4, 0.02), (64, 0.33)):
        assert abs(spectra.random_projection(61.95, r, 12288, 12288) - printed) < 0.01


@pytest.mark.parametrize(("r", "printed"), [(4, 0.02), (64, 0.33)])
def test_the_random_column_of_table_7_is_drawn(r, printed):
    # A matrix 48 times narrower whose norm is 48 times smaller has the same ‖W‖_F·r/√(dk).
    rng = np.random.default_rng(0)
    W = rng.standard_normal((256, 256))
    W *= 61.95 / 48 / np.linalg.norm(W)
    drawn = spectra.sampled_random_projection(W, r, draws=40, seed=1)
    assert drawn.shape == (40,)
    assert abs(drawn.mean() - printed) < 0.01


def test_the_random_projection_agrees_with_simulation():
    rng = np.random.default_rng(3)
    d, k, r, draws = 18, 30, 4, 600
    W = rng.standard_normal((d, k)) * np.linspace(3, 0.1, k)
    expected = spectra.random_projection(np.linalg.norm(W), r, d, k) ** 2
    by_hand = [
        np.linalg.norm(orthonormal(rng, d, r).T @ W @ orthonormal(rng, k, r)) ** 2
        for _ in range(draws)
    ]
    for squares in (by_hand, spectra.sampled_random_projection(W, r, draws, seed=7) ** 2):
        assert np.mean(squares) == pytest.approx(expected, abs=5 * np.std(squares) / draws**0.5)
    # The draws are independent of each other: they spread as those made by hand do.
    assert np.std(squares) == pytest.approx(np.std(by_hand), rel=0.2)


def test_draws_are_the_same_on_every_library():
    W = np.random.default_rng(4).standard_normal((12, 20)).astype(np.float32)
    ours, torchs = (
        np.asarray(spectra.sampled_random_projection(make(W), 3, 5, seed=9))
        for make in (np.array, torch.tensor)
    )
    np.testing.assert_allclose(ours, torchs, rtol=1e-5)
    assert not np.allclose(ours, spectra.sampled_random_projection(W, 3, 5, seed=10))
    whole = spectra.sampled_random_projection(W, 12, 2, seed=0)  # U is all of R¹²
    assert (whole <= np.linalg.norm(W)).all()
    square = spectra.sampled_random_projection(W[:, :12], 12, 2, seed=0)
    np.testing.assert_allclose(square, np.linalg.norm(W[:, :12]), rtol=1e-5)


@settings(max_examples=40)
@given(
    d=st.integers(1, 25),
    k=st.integers(1, 25),
    i=st.integers(1, 6),
    j=st.integers(1, 6),
    library=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**16),
)
def test_the_projected_norm_is_that_of_the_built_product(d, k, i, j, library, seed):
    rng = np.random.default_rng(seed)
    U, V = orthonormal(rng, d, min(i, d)), orthonormal(rng, k, min(j, k))
    W = rng.standard_normal((d, k))
    # Projecting with the built n×n projections keeps the same part of W.
    expected = np.linalg.norm((U @ U.T) @ W @ (V @ V.T))
    make = MAKERS[library]
    assert float(spectra.projected_norm(make(U), make(W), make(V.T))) == pytest.approx(expected)


def test_the_three_columns_of_a_planted_update():
    rng = np.random.default_rng(5)
    sigma = 8.0 * 0.8 ** np.arange(40)
    U0, V0 = orthonormal(rng, 60, 40), orthonormal(rng, 50, 40)
    W = (U0 * sigma) @ V0.T
    # An update along W₀'s directions 10 to 13, which W₀ has but does not favour.
    A, B = V0[:, 10:14].T, 3.0 * U0[:, 10:14]
    U, s, Vt = spectra.singular_triplets(A, B)
    along_delta = spectra.projected_norm(U, W, Vt)
    assert along_delta == pytest.approx(np.linalg.norm(sigma[10:14]))
    top_U, top_s, top_Vt = spectra.top_directions(W, 4)
    assert spectra.projected_norm(top_U, W, top_Vt) == pytest.approx(np.linalg.norm(sigma[:4]))
    assert spectra.frobenius(top_s) == pytest.approx(np.linalg.norm(sigma[:4]))
    assert spectra.amplification(U, s, Vt, W) == pytest.approx(6.0 / along_delta)


@pytest.mark.parametrize("make", MAKERS.values())
def test_amplification_is_that_of_the_built_matrix(make):
    rng = np.random.default_rng(4)
    A, B = factors(rng, 3, 14, 22)
    W = rng.standard_normal((14, 22)).astype(np.float32)
    delta = built(A, B, 1.5)
    U64, _, Vt64 = np.linalg.svd(delta)
    held = np.linalg.norm(U64[:, :3].T @ W @ Vt64[:3].T)
    triplets = spectra.singular_triplets(make(A), make(B), 1.5)
    assert float(spectra.amplification(*triplets, make(W))) == pytest.approx(
        np.linalg.norm(delta) / held, rel=1e-4
    )
    expected = np.linalg.norm(delta) * (14 * 22) ** 0.5 / (np.linalg.norm(W) * 3)
    assert float(spectra.random_amplification(triplets[1], make(W))) == pytest.approx(expected)


def test_an_update_along_w0_own_directions_is_not_amplified():
    W = np.diag([5.0, 3.0, 1.0])
    U, s, Vt = spectra.singular_triplets(np.eye(3)[:2], np.diag([10.0, 6.0, 0])[:, :2])
    # ‖ΔW‖ = √136 along the directions where W₀ holds √34: exactly twice.
    assert float(spectra.amplification(U, s, Vt, W)) == pytest.approx(2)


def test_directions_that_the_update_does_not_use_change_nothing():
    rng = np.random.default_rng(5)
    A, B = factors(rng, 6, 400, 500)
    W = rng.standard_normal((400, 500)).astype(np.float32)
    B[:, 3:] = B[:, :3]  # rank 3 in a plan of rank 6
    thin_A = A[:3] + A[3:]
    U, s, Vt = spectra.singular_triplets(A, B)
    small = spectra.singular_triplets(thin_A, B[:, :3])
    assert int(spectra.numerical_rank(s)) == 3
    assert float(spectra.amplification(U, s, Vt, W)) == pytest.approx(
        float(spectra.amplification(*small, W)), rel=1e-3
    )
    assert float(spectra.random_amplification(s, W)) == pytest.approx(
        float(spectra.random_amplification(small[1], W)), rel=1e-4
    )


def test_amplification_of_nothing_and_against_nothing():
    A, B = factors(np.random.default_rng(6), 2, 5, 6)
    zero = spectra.singular_triplets(A, B * 0)
    W = np.ones((5, 6), np.float32)
    assert np.isnan(spectra.amplification(*zero, W))
    assert np.isnan(spectra.random_amplification(zero[1], W))
    some = spectra.singular_triplets(A, B)
    assert spectra.amplification(*some, W * 0) == math.inf
    assert spectra.random_amplification(some[1], W * 0) == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("make", MAKERS.values())
def test_nan_is_laid_at_the_right_door(make, bad):
    A, B = factors(np.random.default_rng(6), 2, 5, 6)
    U, s, Vt = spectra.singular_triplets(make(A), make(B))
    W = np.ones((5, 6), np.float32)
    spoilt = W.copy()
    spoilt[2, 3] = bad
    of_w0 = [
        lambda: spectra.amplification(U, s, Vt, make(spoilt)),
        lambda: spectra.random_amplification(s, make(spoilt)),
        lambda: spectra.projected_norm(U, make(spoilt), Vt),
        lambda: spectra.sampled_random_projection(make(spoilt), 2, 1, 0),
        lambda: spectra.matrix_norm(make(spoilt)),
    ]
    for measure in of_w0:
        with pytest.raises(ModelError, match="W₀ holds NaN or infinite values; load the base"):
            measure()
    of_delta = [
        lambda: spectra.amplification(U, s * bad, Vt, make(W)),
        lambda: spectra.random_amplification(s * bad, make(W)),
        lambda: spectra.projected_norm(U * bad, make(W), Vt),
        lambda: spectra.projected_norm(U, make(W), Vt * bad),
    ]
    for measure in of_delta:
        with pytest.raises(AdapterError, match="ΔW holds NaN or infinite"):
            measure()


def test_what_does_not_fit_is_refused():
    U, W = np.eye(5, 2), np.ones((5, 6))
    with pytest.raises(AdapterError, match="5 outputs and 7 inputs do not fit W₀ of 5 × 6"):
        spectra.projected_norm(U, W, np.eye(2, 7))
    for r, draws in ((0, 1), (6, 1), (2, 0)):
        with pytest.raises(AdapterError, match="take at least 1 draw, and 1 to 5 directions"):
            spectra.sampled_random_projection(W, r, draws, 0)
    with pytest.raises(ModelError, match=r"W₀ has shape \(5,\); it must be one matrix"):
        spectra.sampled_random_projection(W[:, 0], 1, 1, 0)


@pytest.mark.parametrize("make", MAKERS.values())
@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e25])
def test_the_matrix_norm_of_any_size_and_layout(make, unit):
    W = (unit * np.random.default_rng(8).standard_normal((2, 7, 300))).astype(np.float32)
    expected = np.linalg.norm(W.astype(np.float64), axis=(1, 2))
    np.testing.assert_allclose(np.asarray(spectra.matrix_norm(make(W))), expected, rtol=1e-5)
    turned = make(np.ascontiguousarray(W.transpose(0, 2, 1))).mT  # as Conv1D keeps its weight
    np.testing.assert_allclose(np.asarray(spectra.matrix_norm(turned)), expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(spectra.matrix_norm(make(W * 0))), 0)


def test_the_norm_of_a_large_matrix_is_not_summed_away():
    W = torch.full((1500, 2000), 0.1)
    assert float(spectra.matrix_norm(W)) == pytest.approx(0.1 * 3e6**0.5, rel=1e-5)
    steep = with_spectrum(np.random.default_rng(9), 40, 30, 10.0 ** -np.arange(8))
    assert spectra.matrix_norm(steep) == pytest.approx(np.linalg.norm(10.0 ** -np.arange(8)))
