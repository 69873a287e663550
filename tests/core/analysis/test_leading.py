import numpy as np
import pytest
import torch

from lora_lab import spectra
from lora_lab.analysis import leading
from lora_lab.analysis.leading import BaseWeight, leading_directions
from lora_lab.errors import ModelError
from tests.helpers.fake_sites import weight


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Nothing is known of any weight."""
    monkeypatch.setattr(leading, "_kept", type(leading._kept)())


@pytest.fixture
def calls(monkeypatch):
    """How many directions were asked for, each time that an SVD was really made."""
    asked, real = [], spectra.top_directions

    def counted(W, count):
        asked.append(count)
        return real(W, count)

    monkeypatch.setattr(spectra, "top_directions", counted)
    return asked


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_what_is_found_is_the_svd(library):
    W = weight(d=20, k=14)
    U, s, Vt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    base = BaseWeight(library(W))
    found = base.leading(5)
    np.testing.assert_allclose(found[1], s[:5], rtol=1e-5)
    np.testing.assert_allclose(np.abs((found[0] * U[:, :5]).sum(0)), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs((found[2] * Vt[:5]).sum(1)), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs((base.left_vectors() * U).sum(0)), 1, atol=1e-4)
    assert base.norm == pytest.approx(np.linalg.norm(W.astype(np.float64)), rel=1e-6)
    assert base.random_projections(3, 4, seed=1).shape == (4,)
    assert all(x.dtype == np.float32 for x in (*found, base.left_vectors()))


def test_fewer_directions_are_part_of_more(calls):
    W = weight(d=20, k=14)
    few = BaseWeight(W).leading(3)
    more = BaseWeight(W).leading(6)
    again = BaseWeight(W).leading(3)
    assert calls == [3, 6]
    for before, after, long in zip(few, again, more, strict=True):
        assert before.shape == after.shape
        np.testing.assert_allclose(np.abs(before), np.abs(after), atol=1e-5)
        assert long.size > before.size
    assert len(BaseWeight(W).leading(99)[1]) == 14
    BaseWeight(W).leading(50)  # there are no more, and that is known
    assert calls == [3, 6, 99]


def test_the_same_content_is_known_again_however_it_comes(calls):
    W = torch.tensor(weight(d=21, k=15))
    leading_directions(W, 4)
    for same in (W.clone(), torch.nn.Parameter(W), torch.cat([W, W])[21:], W[:, :]):
        leading_directions(same, 4)
    transposed = W.T.contiguous()  # as Conv1D stores it
    leading_directions(transposed.T, 4)
    leading_directions(transposed.clone().T, 4)
    assert len(calls) <= 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(300, 200), (7, 5)])
def test_any_change_makes_another_weight(calls, dtype, shape):
    W = torch.tensor(weight(d=shape[0], k=shape[1])).to(dtype)
    leading_directions(W, 2)
    for at in ((0, 0), (1, 1), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, 3)):
        changed = W.clone()
        changed[at] += 0.01 * changed[at].sign()
        assert not torch.equal(changed, W)
        leading_directions(changed, 2)
    leading_directions(-W, 2)
    assert len(calls) == 6
    leading_directions(W, 2)
    assert len(calls) == 6


def test_the_oldest_is_forgotten_when_there_is_no_room(calls, monkeypatch):
    weights = [weight(seed, d=32, k=32) for seed in range(4)]
    one = 32 * 32 * 4
    monkeypatch.setattr(leading, "_KEPT_BYTES", 3 * one)
    for W in weights[:3]:
        BaseWeight(W).left_vectors()
    BaseWeight(weights[0]).left_vectors()  # used again: now the youngest
    BaseWeight(weights[3]).left_vectors()
    assert len(calls) == 4
    BaseWeight(weights[0]).left_vectors()
    assert len(calls) == 4
    BaseWeight(weights[1]).left_vectors()
    assert len(calls) == 5
    monkeypatch.setattr(leading, "_KEPT_BYTES", one - 1)
    assert BaseWeight(weights[2]).left_vectors().shape == (32, 32)
    assert not leading._kept


def test_a_broken_weight_is_named():
    base = BaseWeight(np.full((4, 3), np.nan, np.float32))
    for member in (lambda: base.norm, lambda: base.leading(2), base.left_vectors):
        with pytest.raises(ModelError, match="W₀ holds NaN"):
            member()
