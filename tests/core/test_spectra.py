"""Every expected value comes from the built matrix in float64 NumPy, or from the paper."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError, ModelError


def factors(rng, r, d, k, dtype=np.float32):
    return rng.standard_normal((r, k)).astype(dtype), rng.standard_normal((d, r)).astype(dtype)


def built(A, B, scale):
    return scale * (np.asarray(B, np.float64) @ np.asarray(A, np.float64))


def orthonormal(rng, n, count):
    return np.linalg.qr(rng.standard_normal((n, count)))[0]


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 40),
    k=st.integers(1, 40),
    r=st.integers(1, 12),
    zeros=st.integers(0, 3),
    scale=st.sampled_from([1.0, 2.0, 0.125, -3.0, 1e-4]),
    library=st.sampled_from(["numpy", "torch"]),
    seed=st.integers(0, 2**16),
)
def test_triplets_are_the_svd_of_the_built_matrix(d, k, r, zeros, scale, library, seed):
    A, B = factors(np.random.default_rng(seed), r, d, k)
    B[:, :zeros] = 0  # a lower rank than r, down to none
    W = built(A, B, scale)
    expected = np.linalg.svd(W, compute_uv=False)[: min(r, d, k)]
    make = torch.tensor if library == "torch" else np.array
    U, s, Vt = (np.asarray(x) for x in spectra.singular_triplets(make(A), make(B), scale))
    m = min(r, d, k)
    assert (U.shape, s.shape, Vt.shape) == ((d, m), (m,), (m, k))
    assert U.dtype == s.dtype == Vt.dtype == np.float32
    close = 1e-5 * abs(scale) * np.linalg.norm(A) * np.linalg.norm(B) + 1e-30
    np.testing.assert_allclose(s, expected, atol=close)
    np.testing.assert_allclose((U * s) @ Vt, W, atol=close)
    np.testing.assert_allclose(U.T @ U, np.eye(m), atol=1e-5)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(m), atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(spectra.singular_values(make(A), make(B), scale)), expected, atol=close
    )


def test_a_batch_is_its_members():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 3, 4, 9)), rng.standard_normal((2, 3, 7, 4))
    scale = rng.random((2, 3)) + 0.5
    U, s, Vt = spectra.singular_triplets(A, B, scale)
    assert (U.shape, s.shape, Vt.shape) == ((2, 3, 7, 4), (2, 3, 4), (2, 3, 4, 9))
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose((U[i] * s[i]) @ Vt[i], built(A[i], B[i], scale[i]), atol=1e-12)
    np.testing.assert_allclose(spectra.singular_values(A, B, scale), s, atol=1e-12)
    assert spectra.effective_rank(s).shape == (2, 3)
    W = rng.standard_normal((2, 3, 7, 9))
    together = spectra.amplification(U, s, Vt, W)
    for i in np.ndindex(2, 3):
        assert together[i] == pytest.approx(float(spectra.amplification(U[i], s[i], Vt[i], W[i])))


def test_half_types_are_promoted_and_autograd_is_left_alone():
    A = torch.randn(2, 6, dtype=torch.bfloat16, requires_grad=True)
    B = torch.randn(5, 2, dtype=torch.bfloat16, requires_grad=True)
    U, s, Vt = spectra.singular_triplets(A, B, 2.0)
    assert {x.dtype for x in (U, s, Vt)} == {torch.float32}
    assert not s.requires_grad
    exact = built(A.detach().float().numpy(), B.detach().float().numpy(), 2.0)
    np.testing.assert_allclose(((U * s) @ Vt).numpy(), exact, atol=1e-5)
    assert spectra.singular_values(np.ones((1, 3), np.float16), np.ones((3, 1))).dtype == np.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_a_diverged_adapter_is_named_so(bad, make):
    A, B = factors(np.random.default_rng(0), 2, 5, 6)
    B[3, 1] = bad
    for measure in (spectra.singular_triplets, spectra.singular_values):
        with pytest.raises(AdapterError, match=r"NaN or infinite.*load the last good checkpoint"):
            measure(make(A), make(B))


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(AdapterError, match=r"A has shape \(2, 6\) and B \(5, 3\); A must be"):
        spectra.singular_values(np.zeros((2, 6)), np.zeros((5, 3)))


def test_ranks_of_known_spectra():
    for make in (np.array, torch.tensor):
        assert float(spectra.effective_rank(make([3.0, 3.0, 3.0, 3.0]))) == pytest.approx(4)
        assert float(spectra.stable_rank(make([3.0, 3.0, 3.0, 3.0]))) == pytest.approx(4)
        assert float(spectra.effective_rank(make([2.0, 0.0, 0.0]))) == pytest.approx(1)
        assert float(spectra.effective_rank(make([0.0, 0.0]))) == 0
        assert float(spectra.stable_rank(make([0.0, 0.0]))) == 0
        assert float(spectra.frobenius(make([0.0, 0.0]))) == 0
        assert float(spectra.frobenius(make([3.0, 4.0]))) == pytest.approx(5)
        # σ = 3 and 1: p = 3/4 and 1/4.
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert float(spectra.effective_rank(make([3.0, 1.0]))) == pytest.approx(math.exp(entropy))
        assert float(spectra.stable_rank(make([3.0, 1.0]))) == pytest.approx(10 / 9)


def test_tiny_and_huge_values_neither_vanish_nor_burst():
    for unit in (1e-30, 1e30):  # their squares do not exist in float32
        s = np.array([2 * unit, unit], np.float32)
        assert spectra.effective_rank(s) == pytest.approx(1.8899, abs=1e-4)  # p = 2/3, 1/3
        assert spectra.stable_rank(s) == pytest.approx(1.25)
        assert spectra.frobenius(s) == pytest.approx(5**0.5 * unit)


def test_phi_is_the_mean_squared_cosine_of_the_principal_angles():
    rng = np.random.default_rng(1)
    U, V = orthonormal(rng, 20, 4), orthonormal(rng, 20, 6)
    for make in (np.array, torch.tensor):
        phi = np.asarray(spectra.subspace_overlap(make(U), make(V)))
        assert phi.shape == (4, 6)
        for i, j in np.ndindex(4, 6):
            cosines = np.linalg.svd(U[:, : i + 1].T @ V[:, : j + 1], compute_uv=False)
            assert phi[i, j] == pytest.approx((cosines**2).sum() / min(i + 1, j + 1))
        direct = np.asarray(spectra.direction_overlap(make(U), make(V)))
        np.testing.assert_allclose(direct, [[(u @ v) ** 2 for v in V.T] for u in U.T], atol=1e-15)
    np.testing.assert_allclose(spectra.subspace_overlap(U, U), np.ones((4, 4)), atol=1e-12)


def test_random_levels_agree_with_simulation():
    rng = np.random.default_rng(2)
    n, draws = 24, 400
    phi = np.mean(
        [
            spectra.subspace_overlap(orthonormal(rng, n, 4), orthonormal(rng, n, 6))
            for _ in range(draws)
        ],
        axis=0,
    )
    # sd(φ(1, 1)) is the largest: √2/n a draw.
    np.testing.assert_allclose(
        phi, spectra.random_subspace_overlap(4, 6, n), atol=5 * 2**0.5 / n / draws**0.5
    )
    assert spectra.random_direction_overlap(n) == spectra.random_subspace_overlap(1, 1, n)[0, 0]


def test_the_random_column_of_table_7_is_analytic():
    # ‖W_q‖_F = 61.95 at layer 48 of GPT-3; the paper prints 0.02 and 0.33.
    assert spectra.random_projection(61.95, 4, 12288, 12288) == pytest.approx(0.0202, abs=5e-5)
    assert spectra.random_projection(61.95, 64, 12288, 12288) == pytest.approx(0.3227, abs=5e-5)


def test_the_random_projection_agrees_with_simulation():
    rng = np.random.default_rng(3)
    d, k, r, draws = 18, 30, 4, 600
    W = rng.standard_normal((d, k)) * np.linspace(3, 0.1, k)
    squares = [
        np.linalg.norm(orthonormal(rng, d, r).T @ W @ orthonormal(rng, k, r)) ** 2
        for _ in range(draws)
    ]
    expected = spectra.random_projection(np.linalg.norm(W), r, d, k) ** 2
    assert np.mean(squares) == pytest.approx(expected, abs=5 * np.std(squares) / draws**0.5)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
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
    with pytest.raises(ModelError, match="W₀ holds NaN"):
        spectra.amplification(*some, W * math.nan)


def with_spectrum(rng, d, k, s):
    return (orthonormal(rng, d, len(s)) * s) @ orthonormal(rng, k, len(s)).T


def test_top_directions_of_a_small_matrix_are_exact():
    W = np.random.default_rng(7).standard_normal((30, 50))
    U, s, Vt = spectra.top_directions(W, 5)
    expected = np.linalg.svd(W, compute_uv=False)[:5]
    np.testing.assert_allclose(s, expected, rtol=1e-12)
    np.testing.assert_allclose(W @ Vt.T, U * s, atol=1e-12)
    assert spectra.top_directions(W, 99)[0].shape == (30, 30)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("decay", ["slow", "low rank"])
def test_top_directions_of_a_large_matrix_keep_their_promise(make, decay):
    rng = np.random.default_rng(8)
    true = 10 * np.arange(1, 301) ** -0.4 if decay == "slow" else np.array([9.0, 7.0, 4.0])
    U0 = orthonormal(rng, 1100, len(true))
    V0 = orthonormal(rng, 1300, len(true))
    W = ((U0 * true) @ V0.T).astype(np.float32)
    U, s, Vt = (np.asarray(x) for x in spectra.top_directions(make(W), 24))
    assert (U.shape, s.shape, Vt.shape) == ((1100, 24), (24,), (24, 1300))
    expected = np.zeros(24)
    expected[: len(true)] = true[:24]
    np.testing.assert_allclose(s, expected, atol=1e-3 * true[0])
    assert np.linalg.norm(W @ Vt.T - U * s, axis=0).max() <= 1.1e-3 * true[0]
    np.testing.assert_allclose(U.T @ U, np.eye(24), atol=2e-3)
    # sin θ ≤ residual / gap, as the docstring says.
    for i in range(3):
        gap = min(abs(true[i] - other) for j, other in enumerate(true) if j != i)
        sine = math.sqrt(max(0.0, 1 - float(U[:, i] @ U0[:, i]) ** 2))
        assert sine <= 1.1e-3 * true[0] / gap + 1e-3


def test_top_directions_without_a_gap_fall_back_to_the_exact_svd():
    W = torch.randn(1030, 1040, generator=torch.Generator().manual_seed(0))
    s = spectra.top_directions(W, 4)[1]
    torch.testing.assert_close(s, torch.linalg.svdvals(W.double())[:4].float(), rtol=2e-3, atol=0)


def test_top_directions_of_zero_and_of_nan():
    U, s, _ = spectra.top_directions(np.zeros((1030, 1040), np.float32), 3)
    assert not s.any()
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-6)
    with pytest.raises(ModelError, match="load the base model again"):
        spectra.top_directions(np.full((4, 4), math.nan), 2)


def test_the_module_imports_no_torch():
    tree = ast.parse(Path(spectra.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not any(name.partition(".")[0] == "torch" for name in imported)
