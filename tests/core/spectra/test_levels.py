"""The Marchenko–Pastur edge against random matrices, and the capacity gauge's bits."""

import math

import numpy as np
import pytest

from lora_lab import spectra
from lora_lab.errors import AdapterError


@pytest.mark.parametrize(("d", "k"), [(400, 400), (300, 900), (900, 300)])
def test_a_random_matrix_ends_at_the_edge_and_a_spike_stands_above(d, k):
    rng = np.random.default_rng(0)
    W = 0.02 * rng.standard_normal((d, k))
    edge = spectra.marchenko_pastur_edge(d, k, np.linalg.norm(W))
    s = np.linalg.svd(W, compute_uv=False)
    assert s[0] == pytest.approx(edge, rel=0.02)
    spiked = W + 3 * edge * np.ones((d, k)) / math.sqrt(d * k)
    over = np.linalg.svd(spiked, compute_uv=False) > 1.2 * edge
    assert over.sum() == 1


def test_the_edge_of_a_square_matrix_is_twice_its_mean_singular_value():
    # n² entries of variance v: ‖·‖_F = n√v and the edge 2√(nv).
    assert spectra.marchenko_pastur_edge(100, 100, 100 * 0.3) == pytest.approx(2 * 10 * 0.3)
    both = spectra.marchenko_pastur_edge(100, 100, np.array([30.0, 60.0]))
    np.testing.assert_allclose(both, [6.0, 12.0])


def test_a_parameter_holds_two_bits():
    assert spectra.capacity_bits(294_912) == 589_824
    assert spectra.capacity_used(294_912, 294_912) == 0.5


def test_the_data_holds_its_first_log_loss():
    # ln 2 nats are one bit; ln 50257 nats per token are what knowing nothing costs.
    assert spectra.first_epoch_bits([math.log(2)] * 3, [10, 20, 5]) == pytest.approx(35)
    guess = spectra.first_epoch_bits(np.array([math.log(50257)]), np.array([1000]))
    assert guess == pytest.approx(1000 * math.log2(50257))
    assert spectra.first_epoch_bits([], []) == 0


def test_a_gauge_that_cannot_be_read_is_named():
    with pytest.raises(AdapterError, match="2 losses for 1 token counts"):
        spectra.first_epoch_bits([1.0, 2.0], [3])
    for bad in (math.nan, math.inf):
        with pytest.raises(AdapterError, match=r"NaN or infinite.*lower the learning rate"):
            spectra.first_epoch_bits([1.0, bad], [3, 3])
    with pytest.raises(AdapterError, match="adapt at least one matrix"):
        spectra.capacity_used(100.0, 0)
