"""Sizes and ranks against the built matrix in float64 NumPy, or against spectra known by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab import spectra
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.built_matrices import MAKERS, built, factors

SIZES = [
    *(spectra.effective_rank, spectra.stable_rank, spectra.participation_ratio),
    *(spectra.rank_at_energy, spectra.numerical_rank),
    *(spectra.frobenius, spectra.spectral_norm, spectra.nuclear_norm),
]


@settings(max_examples=60)
@given(
    d=st.integers(1, 30),
    k=st.integers(1, 30),
    r=st.integers(1, 10),
    decay=st.sampled_from([1.0, 0.5, 0.1]),
    share=st.sampled_from([0.5, 0.9, 0.99]),
    library=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**16),
)
def test_sizes_are_those_of_the_built_matrix(d, k, r, decay, share, library, seed):
    A, B = factors(np.random.default_rng(seed), r, d, k, np.float64)
    A *= decay ** np.arange(r)[:, None]
    W = built(A, B)
    make = MAKERS[library]
    s = spectra.singular_values(make(A), make(B))

    exact = np.linalg.svd(W, compute_uv=False)[: min(r, d, k)]
    energy = exact**2
    p = exact / exact.sum()
    near = {"rel": 1e-9}
    assert float(spectra.frobenius(s)) == pytest.approx(np.linalg.norm(W), **near)
    assert float(spectra.spectral_norm(s)) == pytest.approx(np.linalg.norm(W, 2), **near)
    assert float(spectra.nuclear_norm(s)) == pytest.approx(np.linalg.norm(W, "nuc"), **near)
    assert float(spectra.effective_rank(s)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), **near)
    assert float(spectra.stable_rank(s)) == pytest.approx(
        (np.linalg.norm(W) / np.linalg.norm(W, 2)) ** 2, **near
    )
    # Σσ² and Σσ⁴ are the traces of WWᵀ and of its square.
    gram = W @ W.T
    assert float(spectra.participation_ratio(s)) == pytest.approx(
        np.trace(gram) ** 2 / np.trace(gram @ gram), **near
    )
    assert int(spectra.numerical_rank(s)) == np.linalg.matrix_rank(W)
    held = (energy[:n].sum() / energy.sum() for n in range(1, len(energy) + 1))
    least = next(n for n, part in enumerate(held, start=1) if part >= share)
    assert int(spectra.rank_at_energy(s, share)) == least
    assert (
        1 - 1e-9 <= float(spectra.participation_ratio(s)) <= float(spectra.effective_rank(s)) + 1e-9
    )


@pytest.mark.parametrize("make", MAKERS.values())
def test_ranks_of_known_spectra(make):
    equal, single = make([3.0, 3.0, 3.0, 3.0]), make([2.0, 0.0, 0.0])
    for rank in (spectra.effective_rank, spectra.stable_rank, spectra.participation_ratio):
        assert float(rank(equal)) == pytest.approx(4)
        assert float(rank(single)) == pytest.approx(1)
    # σ = 3 and 1: p = 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    two = make([3.0, 1.0])
    assert float(spectra.effective_rank(two)) == pytest.approx(math.exp(entropy))
    assert float(spectra.stable_rank(two)) == pytest.approx(10 / 9)
    assert float(spectra.participation_ratio(two)) == pytest.approx(100 / 82)
    assert int(spectra.rank_at_energy(two)) == 1  # 9 of 10, exactly the mark
    assert int(spectra.rank_at_energy(two, 0.91)) == 2
    assert float(spectra.frobenius(make([3.0, 4.0]))) == pytest.approx(5)
    assert float(spectra.spectral_norm(make([4.0, 3.0]))) == 4
    assert float(spectra.nuclear_norm(make([4.0, 3.0]))) == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [10, 20, 40, 640])
def test_nine_of_ten_equal_directions_hold_nine_tenths(count, dtype):
    s = np.full(count, 0.1, dtype)  # repeated values: only rounding decides
    assert spectra.rank_at_energy(s, 0.9) == 0.9 * count
    assert spectra.rank_at_energy(s, 1.0) == count


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("first", "second"), [(5, 4), (13, 12), (10, 3), (17, 6)])
def test_the_mark_is_met_where_it_is_met_exactly(first, second, dtype):
    share = first**2 / (first**2 + second**2)
    s = np.array([first, second], dtype)
    assert spectra.rank_at_energy(s, share) == 1
    assert spectra.rank_at_energy(s, share + 1e-4) == 2


@pytest.mark.parametrize("make", MAKERS.values())
def test_a_zero_update_has_no_size_and_no_rank(make):
    batch = make([[0.0, 0.0], [2.0, 2.0]])
    for size in SIZES:
        none, some = (float(x) for x in size(batch))
        assert none == 0
        assert some > 0


def test_tiny_and_huge_values_neither_vanish_nor_burst():
    for unit in (1e-30, 1e30):  # their squares do not exist in float32
        s = np.array([2 * unit, unit], np.float32)
        assert spectra.effective_rank(s) == pytest.approx(1.8899, abs=1e-4)  # p = 2/3, 1/3
        assert spectra.stable_rank(s) == pytest.approx(1.25)
        assert spectra.participation_ratio(s) == pytest.approx(25 / 17)
        assert spectra.rank_at_energy(s, 0.8) == 1
        assert spectra.frobenius(s) == pytest.approx(5**0.5 * unit)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("size", SIZES)
def test_nan_has_no_rank(size, bad):
    for make in (np.array, torch.tensor):
        with pytest.raises(AdapterError, match=r"NaN or infinite.*lower the learning rate"):
            size(make([[1.0, 0.5], [1.0, bad]]))


@pytest.mark.parametrize("size", SIZES)
def test_no_values_at_all_are_refused(size):
    with pytest.raises(AdapterError, match=r"s has shape \(3, 0\)"):
        size(np.zeros((3, 0)))


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_a_share_beyond_all_is_refused(share):
    with pytest.raises(ConfigError, match="must lie above 0 and at most 1"):
        spectra.rank_at_energy(np.ones(3), share)
