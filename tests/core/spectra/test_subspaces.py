"""Overlaps and angles against built projections, scipy, simulation, and the paper's levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from lora_lab import spectra
from lora_lab.errors import AdapterError
from tests.helpers.built_matrices import MAKERS, orthonormal


def test_phi_is_the_mean_squared_cosine_of_the_principal_angles():
    rng = np.random.default_rng(1)
    U, V = orthonormal(rng, 20, 4), orthonormal(rng, 20, 6)
    for make in MAKERS.values():
        phi = np.asarray(spectra.subspace_overlap(make(U), make(V)))
        assert phi.shape == (4, 6)
        for i, j in np.ndindex(4, 6):
            cosines = np.linalg.svd(U[:, : i + 1].T @ V[:, : j + 1], compute_uv=False)
            assert phi[i, j] == pytest.approx((cosines**2).sum() / min(i + 1, j + 1))
        direct = np.asarray(spectra.direction_overlap(make(U), make(V)))
        np.testing.assert_allclose(direct, [[(u @ v) ** 2 for v in V.T] for u in U.T], atol=1e-15)
    np.testing.assert_allclose(spectra.subspace_overlap(U, U), np.ones((4, 4)), atol=1e-12)


@settings(max_examples=50)
@given(
    n=st.integers(1, 30),
    i=st.integers(1, 8),
    j=st.integers(1, 8),
    shared=st.integers(0, 4),
    library=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**16),
)
def test_angles_and_metric_are_those_of_the_built_projections(n, i, j, shared, library, seed):
    rng = np.random.default_rng(seed)
    i, j = min(i, n), min(j, n)
    U = orthonormal(rng, n, i)
    V = rng.standard_normal((n, j))
    same = min(shared, i, j)
    V[:, :same] = U[:, :same]  # directions in common: angles of exactly 0
    V = np.linalg.qr(V)[0]
    U_, V_ = MAKERS[library](U), MAKERS[library](V)
    p = min(i, j)

    angles = np.asarray(spectra.principal_angles(U_, V_))
    assert angles.shape == (p,)
    np.testing.assert_allclose(angles, subspace_angles(U, V)[::-1], atol=1e-7)
    assert (angles[:same] < 1e-12).all()

    common = np.trace((U @ U.T) @ (V @ V.T))
    d = float(spectra.projection_metric(U_, V_))
    assert d**2 == pytest.approx(p - common, abs=1e-12)
    phi = np.asarray(spectra.subspace_overlap(U_, V_))[-1, -1]
    assert phi == pytest.approx((p - d**2) / p, abs=1e-12)
    assert phi == pytest.approx((np.cos(angles) ** 2).mean(), abs=1e-12)
    assert d == pytest.approx(float(spectra.projection_metric(V_, U_)))


@pytest.mark.parametrize(("dtype", "angle"), [(np.float64, 1e-9), (np.float32, 1e-5)])
@pytest.mark.parametrize("make", MAKERS.values())
def test_tiny_angles_are_not_rounded_away(make, dtype, angle):
    # cos θ = 1 − θ²/2 is 1 in this type; the sine knows better.
    U = np.eye(6, 2).astype(dtype)
    V = U.copy()
    V[:, 1] = math.cos(angle) * np.eye(6)[1] + math.sin(angle) * np.eye(6)[4]
    angles = np.asarray(spectra.principal_angles(make(U), make(V)))
    np.testing.assert_allclose(angles, [0, angle], rtol=1e-5)
    assert float(spectra.projection_metric(make(U), make(V))) == pytest.approx(angle, rel=1e-5)


def test_the_metric_between_equals_is_half_the_distance_of_their_projections():
    rng = np.random.default_rng(2)
    U, V = orthonormal(rng, 12, 3), orthonormal(rng, 12, 3)
    expected = np.linalg.norm(U @ U.T - V @ V.T) / math.sqrt(2)  # Ham & Lee (2008)
    assert spectra.projection_metric(U, V) == pytest.approx(expected)
    others = orthonormal(rng, 12, 6)
    assert spectra.projection_metric(others[:, :3], others[:, 3:]) == pytest.approx(3**0.5)


def test_a_batch_of_subspaces_is_its_members():
    rng = np.random.default_rng(3)
    U, V = (np.stack([orthonormal(rng, 9, c) for _ in range(3)]) for c in (2, 4))
    together = (spectra.principal_angles(U, V), spectra.projection_metric(U, V))
    for b in range(3):
        np.testing.assert_allclose(together[0][b], spectra.principal_angles(U[b], V[b]), atol=1e-12)
        assert together[1][b] == pytest.approx(float(spectra.projection_metric(U[b], V[b])))


def test_random_levels_agree_with_simulation():
    rng = np.random.default_rng(2)
    n, draws = 24, 2000
    phi = np.array(
        [
            spectra.subspace_overlap(orthonormal(rng, n, 4), orthonormal(rng, n, 6))
            for _ in range(draws)
        ]
    )
    spread = spectra.random_subspace_spread(4, 6, n)
    level = spectra.random_subspace_overlap(4, 6, n)
    assert (np.abs(phi.mean(0) - level) < 5 * spread / draws**0.5).all()
    # An sd from this many draws is itself off by about 1/√(2·draws) = 1.6 %.
    np.testing.assert_allclose(phi.std(0), spread, rtol=0.12)
    assert spectra.random_direction_overlap(n) == level[0, 0]


def test_random_levels_known_by_hand():
    # Near 0 only in a model as wide as GPT-3.
    for n, expected in ((12288, 0.0052), (768, 0.083), (128, 0.5)):
        level = spectra.random_subspace_overlap(64, 64, n)[-1, -1]
        assert level == pytest.approx(expected, abs=5e-4)
    # cos² of the angle to an axis is uniform's arcsine law in R²: mean 1/2, variance 1/8.
    assert spectra.random_subspace_spread(1, 1, 2)[0, 0] == pytest.approx(8**-0.5)
    # The whole space contains every other: no chance about it.
    assert not spectra.random_subspace_spread(5, 5, 5)[-1].any()
    assert spectra.random_subspace_spread(1, 1, 1) == 0


@pytest.mark.parametrize("make", MAKERS.values())
def test_excess_is_0_at_chance_and_1_at_full_overlap(make):
    phi = make([[0.25, 1.0], [0.1, 1.0]])
    random = np.array([[0.25, 0.25], [0.25, 1.0]])
    expected = [[0.0, 1.0], [-0.2, math.nan]]
    np.testing.assert_allclose(np.asarray(spectra.excess_overlap(phi, random)), expected, atol=1e-7)
    assert float(spectra.excess_overlap(make([0.55]), 0.1)[0]) == pytest.approx(0.5)


COMPARISONS = [
    *(spectra.direction_overlap, spectra.subspace_overlap),
    *(spectra.principal_angles, spectra.projection_metric),
]


@pytest.mark.parametrize("compare", COMPARISONS)
def test_directions_of_two_spaces_or_with_nan_are_refused(compare):
    U = np.eye(5, 2)
    with pytest.raises(AdapterError, match=r"\(5, 2\) and \(6, 2\) do not lie in one space"):
        compare(U, np.eye(6, 2))
    with pytest.raises(AdapterError, match="do not lie in one space"):
        compare(U, U[:, 0])
    with pytest.raises(AdapterError, match="NaN or infinite"):
        compare(torch.eye(5)[:, :2], torch.full((5, 2), math.nan))


def test_more_directions_than_dimensions_are_refused():
    for level in (spectra.random_subspace_overlap, spectra.random_subspace_spread):
        with pytest.raises(AdapterError, match="9 directions do not fit into 8 dimensions"):
            level(4, 9, 8)
