"""ΔW as one value: what its methods return is the ΔW that is built, of NumPy arrays and tensors."""

import numpy as np
import pytest
import torch

from lora_lab.anatomy import Rows, Site
from lora_lab.errors import AdapterError
from lora_lab.spectra import LowRankUpdate, SiteUpdate


def factors(seed=0, r=3, d=12, k=16, library=np.array):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((r, k)), rng.standard_normal((d, r))
    return library(A.astype(np.float32)), library(B.astype(np.float32))


def built(update):
    total = np.zeros(tuple(update.shape))
    pairs = [(update.A, update.B, 1), *([(*update.initial, -1)] if update.initial else [])]
    for A, B, sign in pairs:
        A, B = (np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64) for x in (A, B))
        total += sign * update.scale * B @ A
    return total


LIBRARIES = pytest.mark.parametrize("library", [np.array, torch.tensor])
INITIAL = pytest.mark.parametrize("started", [False, True], ids=["from zero", "from W₀"])


@LIBRARIES
@INITIAL
def test_every_form_is_the_same_update(library, started):
    initial = factors(1, library=library) if started else None
    update = LowRankUpdate(*factors(library=library), 0.5, initial=initial)
    exact = built(update)
    U, s, Vt = (np.asarray(x) for x in update.triplets())
    np.testing.assert_allclose((U * s) @ Vt, exact, atol=1e-5)
    joined = update.joined()
    assert (joined.r, joined.initial) == (6 if started else 3, None)
    np.testing.assert_allclose(built(joined), exact, atol=1e-5)
    assert len(update.terms()) == 1 + started
    np.testing.assert_allclose(sum(map(built, update.terms())), exact)
    np.testing.assert_allclose(built(update.truncated(6)), exact, atol=1e-5)
    for other in (joined, update.copied(), update.to_numpy(), update.beside(np.empty((12, 16)))):
        np.testing.assert_allclose(built(other), exact, atol=1e-5)
    copy = update.copied()
    copy.A[0, 0] = 9
    assert update.A[0, 0] != 9


def test_what_started_and_did_not_move_is_exactly_zero():
    A, B = factors()
    for form in (LowRankUpdate(A, B, 0.3, initial=(A.copy(), B.copy())),):
        assert not built(form.joined()).any()
        assert not form.triplets()[1].any()


@LIBRARIES
def test_another_scale_is_rounded_once_and_the_same_one_is_the_same_object(library):
    update = LowRankUpdate(*factors(library=library), 2.0)
    assert update.rescaled(2.0) is update
    other = update.rescaled(3.0)
    assert other.scale == 3.0
    exact = np.asarray(update.B, np.float64) * (2 / 3)
    np.testing.assert_array_equal(np.asarray(other.B), exact.astype(np.float32))


@LIBRARIES
def test_a_sum_is_exact_and_has_the_firsts_scale(library):
    first, second, third = (
        LowRankUpdate(*factors(seed, r, library=library), scale)
        for seed, r, scale in ((0, 3, 0.5), (1, 2, 0.5), (2, 4, -4.0))
    )
    total = first.plus(second, third)
    assert (total.r, total.scale) == (9, 0.5)
    np.testing.assert_allclose(built(total), sum(map(built, (first, second, third))), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(first.plus(second).B)[:, 3:], np.asarray(second.B))


def test_the_nearest_update_of_a_lower_rank():
    update = LowRankUpdate(*factors(), -0.5)
    low = update.truncated(2)
    assert (low.r, low.scale) == (2, -0.5)
    U, s, Vt = np.linalg.svd(built(update))
    np.testing.assert_allclose(built(low), (U[:, :2] * s[:2]) @ Vt[:2], atol=1e-5)


@LIBRARIES
def test_what_adalora_left_no_triplet_is_zero(library):
    update = LowRankUpdate(*factors(r=0, library=library))
    assert (update.r, tuple(update.shape)) == (0, (12, 16))
    assert not np.asarray(update.triplets()[1]).any()
    assert not built(update.joined()).any()


def test_another_bases_weight_is_refused():
    update = LowRankUpdate(*factors(), rows=Rows(1, 36, 12, 12))
    with pytest.raises(AdapterError, match="ΔW is 12 × 16 but W₀ is 16 × 12"):
        update.beside(np.empty((16, 12)))
    site = Site("q", "q", 0, "q", 16, 12)
    assert SiteUpdate(site, update).step is None
