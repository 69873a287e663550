import math

import numpy as np
import pytest
import torch

from lora_lab import spectra
from lora_lab.analysis.amplify import amplifications
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError, ConfigError, ModelError
from lora_lab.methods.api import attach, merge
from tests.helpers.fake_sites import delta, planted, site, weight
from tests.helpers.tiny_models import tiny


def triple(update, W, r):
    """‖UᵀWV‖_F along ΔW's and W's own top r directions, both built in float64."""
    W = np.asarray(W, np.float64)
    found = []
    for matrix in (update, W):
        U, _, Vt = np.linalg.svd(matrix)
        found.append(np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T))
    return found


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "float32", "bfloat16"])
def test_table_7_of_one_site(kind, initial):
    low, W = site(5, initial=initial), weight(5)
    given = W if kind == "numpy" else torch.tensor(W).to(getattr(torch, kind))
    exact = W if kind == "numpy" else given.double().numpy()
    (row,) = amplifications([low], {"layers.3.q": given}.__getitem__)

    r = 6 if initial else 3
    along_delta, along_own = triple(delta(low), exact, r)
    size = np.linalg.norm(delta(low))
    assert (row.name, row.layer, row.role, row.stack) == ("layers.3.q", 3, "q", "decoder")
    assert row.r == r
    assert row.delta_norm == pytest.approx(size, rel=1e-5)
    assert row.weight_norm == pytest.approx(np.linalg.norm(exact.astype(np.float64)), rel=1e-5)
    assert row.along_delta == pytest.approx(along_delta, rel=1e-4)
    assert row.along_own == pytest.approx(along_own, rel=1e-5)
    assert row.factor == pytest.approx(size / along_delta, rel=1e-4)
    assert row.random_level == pytest.approx(
        np.linalg.norm(exact.astype(np.float64)) * r / math.sqrt(12 * 16), rel=1e-5
    )


def test_the_draws_scatter_about_the_analytic_level():
    low, W = site(d=48, k=40), weight(d=48, k=40)
    count = 400
    (row,) = amplifications([low], lambda _: W, draws=count, seed=7)
    mean_square = row.along_random**2 + row.random_spread**2 * (count - 1) / count
    assert math.sqrt(mean_square) == pytest.approx(row.random_level, rel=0.03)
    # The same from frames of our own.
    rng = np.random.default_rng(0)
    own = [
        np.linalg.norm(
            np.linalg.qr(rng.standard_normal((48, 3)))[0].T
            @ W
            @ np.linalg.qr(rng.standard_normal((40, 3)))[0]
        )
        for _ in range(count)
    ]
    assert row.along_random == pytest.approx(np.mean(own), rel=0.05)
    assert row.random_spread == pytest.approx(np.std(own), rel=0.25)
    (single,) = amplifications([low], lambda _: W, draws=1)
    assert math.isnan(single.random_spread)
    (again,) = amplifications([low], lambda _: W, draws=count, seed=7)
    assert again == row


def test_an_update_on_the_bases_own_directions_is_not_amplified():
    W = weight(d=32, k=24)
    U, s, Vt = np.linalg.svd(W.astype(np.float64))
    (row,) = amplifications([planted(U[:, :4], s[:4], Vt[:4])], lambda _: W)
    assert row.along_delta == pytest.approx(row.along_own, rel=1e-5)
    assert row.factor == pytest.approx(1, rel=1e-5)
    # Along the weakest four, W₀ holds little, and the same update amplifies it.
    (row,) = amplifications([planted(U[:, 20:24], s[:4], Vt[20:24])], lambda _: W)
    expected = np.linalg.norm(s[:4]) / np.linalg.norm(s[20:24])
    assert row.factor == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
def test_every_site_of_a_model_fused_slices_as_their_own_matrices(architecture):
    model = tiny(architecture)
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = attach(model, LoraConfig(r=3, target_modules=["q", "v"], init_lora_weights=False))
    rows = amplifications(adapter.sites.values(), adapter.base_weight)
    assert [row.name for row in rows] == list(adapter.sites)
    for row in rows:
        low = adapter.sites[row.name]
        W = own_rows(original[f"{low.site.module}.weight"], low.site)
        along_delta, along_own = triple(delta(low), W, 3)
        assert row.along_delta == pytest.approx(along_delta, rel=1e-3)
        assert row.along_own == pytest.approx(along_own, rel=1e-4)
        assert row.weight_norm == pytest.approx(np.linalg.norm(W), rel=1e-5)
        assert (row.layer, row.role) == (low.site.layer, low.site.role)
    merge(model)  # still against the original W₀
    assert amplifications(adapter.sites.values(), adapter.base_weight) == rows


def own_rows(stored, place):
    """The rows of a site by their numbers, from the matrix as the model stores it."""
    W = stored.double().numpy()
    W = W.T if place.transposed else W
    if place.rows is None:
        return W
    rows = place.rows
    numbers = [
        group * rows.group_size + rows.offset + i
        for group in range(rows.groups)
        for i in range(rows.width)
    ]
    return W[numbers]


def test_an_update_that_is_still_zero_has_no_directions():
    low = site()
    low.update.B[:] = 0
    (row,) = amplifications([low], lambda _: weight())
    assert (row.r, row.delta_norm) == (0, 0)
    assert (row.along_delta, row.along_own, row.along_random, row.random_level) == (0, 0, 0, 0)
    assert math.isnan(row.factor)
    assert row.weight_norm > 0


def test_an_update_where_the_base_holds_nothing_is_amplified_without_end():
    rng = np.random.default_rng(3)
    W = np.zeros((12, 16), np.float32)
    W[:4, :4] = rng.standard_normal((4, 4))
    low = planted(np.eye(12)[:, 6:8], [2, 1], np.eye(16)[8:10])
    (row,) = amplifications([low], lambda _: W)
    assert row.along_delta == 0
    assert row.factor == math.inf


def test_a_known_weight_costs_no_svd_and_no_draws(monkeypatch):
    W = weight(77)
    first = amplifications([site(1, r=4)], lambda _: W)
    for slow in ("top_directions", "sampled_random_projection", "matrix_norm"):
        monkeypatch.setattr(spectra, slow, None)
    assert amplifications([site(1, r=4)], lambda _: W.copy()) == first
    (other,) = amplifications([site(2, r=4)], lambda _: W)
    assert (other.along_own, other.along_random) == (first[0].along_own, first[0].along_random)


def test_bad_input_names_the_site_and_the_mend():
    broken = site()
    broken.update.B[0, 0] = np.inf
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: .*training diverged"):
        amplifications([broken], lambda _: weight())
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: ΔW is 12 × 16 but W₀ is 16 × 12"):
        amplifications([site()], lambda _: weight().T)
    bad = weight()
    bad[0, 0] = np.nan
    with pytest.raises(ModelError, match=r"^layers\.3\.q: W₀ holds NaN.*load the base model again"):
        amplifications([site()], lambda _: bad)
    with pytest.raises(ConfigError, match="draws is 0"):
        amplifications([site()], lambda _: weight(), draws=0)
