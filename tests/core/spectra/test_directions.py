"""Leading directions against known spectra and the exact SVD of the built matrix."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError, ConfigError, ModelError
from lora_lab.spectra import directions
from tests.helpers.built_matrices import MAKERS, built, factors, orthonormal


def test_top_directions_of_a_small_matrix_are_exact():
    W = np.random.default_rng(7).standard_normal((30, 50))
    U, s, Vt = spectra.top_directions(W, 5)
    expected = np.linalg.svd(W, compute_uv=False)[:5]
    np.testing.assert_allclose(s, expected, rtol=1e-12)
    np.testing.assert_allclose(W @ Vt.T, U * s, atol=1e-12)
    assert spectra.top_directions(W, 99)[0].shape == (30, 30)


@pytest.mark.parametrize("make", MAKERS.values())
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


@settings(max_examples=40)
@given(
    d=st.integers(1, 30),
    k=st.integers(1, 30),
    r=st.integers(1, 6),
    count=st.integers(1, 8),
    scale=st.sampled_from([0.0, 0.5, -4.0]),
    library=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**16),
)
def test_the_tuned_weights_directions_are_those_of_the_built_sum(
    d, k, r, count, scale, library, seed
):
    rng = np.random.default_rng(seed)
    A, B = factors(rng, r, d, k, np.float64)
    W = rng.standard_normal((d, k))
    tuned = W + built(A, B, scale)
    make = MAKERS[library]
    found = spectra.top_directions_of_update(make(W), make(A), make(B), scale, count)
    U, s, Vt = (np.asarray(x) for x in found)
    c = min(count, d, k)
    assert (U.shape, s.shape, Vt.shape) == ((d, c), (c,), (c, k))
    np.testing.assert_allclose(s, np.linalg.svd(tuned, compute_uv=False)[:c], atol=1e-11)
    np.testing.assert_allclose(tuned @ Vt.T, U * s, atol=1e-10)
    np.testing.assert_allclose(tuned.T @ U, Vt.T * s, atol=1e-10)


@pytest.mark.parametrize("make", MAKERS.values())
def test_a_planted_direction_of_a_large_tuned_weight_is_found(make):
    rng = np.random.default_rng(9)
    true = 10 * np.arange(1, 201) ** -0.5
    U0, V0 = orthonormal(rng, 1100, 202), orthonormal(rng, 1200, 202)
    W = ((U0[:, :200] * true) @ V0[:, :200].T).astype(np.float32)
    # Two directions that W₀ has nothing of, one above its first σ and one below its second.
    A = V0[:, 200:].T.astype(np.float32)
    B = (U0[:, 200:] * [7.5, 3.2]).astype(np.float32)
    found = spectra.top_directions_of_update(make(W), make(A), make(B), 2.0, 6)
    U, s, Vt = (np.asarray(x) for x in found)
    expected = np.sort([15.0, 6.4, *true])[::-1][:6]
    np.testing.assert_allclose(s, expected, atol=1e-3 * 15)
    for sigma, planted in ((15.0, 200), (6.4, 201)):
        at = int(np.abs(expected - sigma).argmin())
        # sin θ ≤ 10⁻³·σ₁ / gap.
        gap = np.abs(np.delete(np.sort([15.0, 6.4, *true])[::-1], at) - sigma).min()
        least = math.sqrt(1 - (1.1e-3 * 15 / gap) ** 2)
        assert abs(U[:, at] @ U0[:, planted]) >= least
        assert abs(Vt[at] @ V0[:, planted]) >= least


def test_top_directions_of_zero():
    U, s, _ = spectra.top_directions(np.zeros((1030, 1040), np.float32), 3)
    assert not s.any()
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("side", [40, 1025])
def test_a_small_matrix_comes_to_the_cpu_and_its_triplets_go_home(monkeypatch, side):
    """A tensor without values plays the one on a GPU; a large one stays where it is."""
    moves, W = [], torch.randn(side, 1025, generator=torch.manual_seed(0))

    def moved(x, where):
        moves.append((tuple(x.shape), str(where)))
        return W if x.is_meta else x.to(where)

    monkeypatch.setattr(directions, "to_device", moved)
    found = directions._exact(torch, torch.empty_like(W, device="meta"))
    assert {str(each.device) for each in found} == {"meta"}
    there = [((side, 1025), "cpu"), ((side, side), "meta"), ((side,), "meta"), (W.shape, "meta")]
    assert moves == (there if side == 40 else [])


@pytest.mark.parametrize("make", MAKERS.values())
def test_what_cannot_be_looked_at_is_named(make):
    A, B = (make(x) for x in factors(np.random.default_rng(0), 2, 4, 5))
    W = make(np.ones((4, 5), np.float32))
    with pytest.raises(ModelError, match="load the base model again"):
        spectra.top_directions(W * math.nan, 2)
    with pytest.raises(ModelError, match="load the base model again"):
        spectra.top_directions_of_update(W * math.inf, A, B, 1.0, 2)
    with pytest.raises(ModelError, match=r"shape \(2, 4, 5\); it must be one matrix"):
        spectra.top_directions(make(np.ones((2, 4, 5), np.float32)), 2)
    for broken in ((A * math.nan, B, 1.0), (A, B * math.inf, 1.0), (A, B, math.nan)):
        with pytest.raises(AdapterError, match="training diverged"):
            spectra.top_directions_of_update(W, *broken, 2)
    with pytest.raises(AdapterError, match="belongs to another base model"):
        spectra.top_directions_of_update(W, A[:, :4], B, 1.0, 2)
    with pytest.raises(AdapterError, match="belongs to another base model"):
        spectra.top_directions_of_update(W, A, B[:, :1], 1.0, 2)
    for count in (0, -1):
        with pytest.raises(ConfigError, match="ask for at least 1"):
            spectra.top_directions(W, count)
