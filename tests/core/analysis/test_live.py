import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_lab import analysis, spectra
from lora_lab.anatomy import Site
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.methods.api import attach, merge
from lora_lab.methods.attached import activate, attached
from lora_lab.spectra import LowRankUpdate, SiteUpdate
from tests.helpers.tiny_models import tiny


def site(name, layer=0, role="q", stack="", d=12, k=16):
    return Site(name, name, layer, role, in_features=k, out_features=d, stack=stack)


def fake_adapter(shapes, library=torch.tensor, seed=0):
    """An adapter of (d, k, r, scale) a site, without a model."""
    rng = np.random.default_rng(seed)
    sites, weights = {}, {}
    for i, (d, k, r, scale) in enumerate(shapes):
        name = f"layers.{i}.q"
        A = library(rng.standard_normal((r, k)).astype(np.float32))
        B = library(rng.standard_normal((d, r)).astype(np.float32))
        sites[name] = SiteUpdate(site(name, i, d=d, k=k), LowRankUpdate(A, B, scale))
        weights[name] = library(rng.standard_normal((d, k)).astype(np.float32))
    return SimpleNamespace(sites=sites, base_weight=weights.__getitem__)


def delta(found):
    A, B, scale, *_ = found.update
    return scale * np.asarray(B.detach(), np.float64) @ np.asarray(A.detach(), np.float64)


MIXED = [(12, 16, 4, 2.0), (12, 16, 4, 0.5), (12, 16, 2, 1.0), (6, 16, 4, 1.0), (3, 16, 5, 1.0)]


@pytest.mark.parametrize("library", [torch.tensor, np.array])
def test_spectra_of_mixed_shapes_ranks_and_scales(library):
    adapter = fake_adapter(MIXED, library)
    found = analysis.adapter_spectra(adapter)
    assert list(found) == list(adapter.sites)
    for name, s in found.items():
        low = adapter.sites[name]
        A, B, scale, *_ = low.update
        W = scale * np.asarray(B, np.float64) @ np.asarray(A, np.float64)
        assert s.dtype == np.float32
        np.testing.assert_allclose(
            s, np.linalg.svd(W, compute_uv=False)[: len(s)], rtol=1e-4, atol=1e-4
        )
    assert [len(s) for s in found.values()] == [4, 4, 2, 4, 3]


def test_spectra_of_a_diverged_adapter_name_the_site():
    adapter = fake_adapter(MIXED)
    adapter.sites["layers.1.q"].update.B[2, 1] = math.nan
    with pytest.raises(AdapterError, match=r"^layers\.1\.q: .*training diverged"):
        analysis.adapter_spectra(adapter)
    with pytest.raises(AdapterError, match=r"^layers\.1\.q: .*training diverged"):
        analysis.analyze_sites(adapter.sites.values())


def made(seed=0, d=12, k=16, r=3, zero=False):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((r, k)), rng.standard_normal((d, r)) * (not zero)
    W = rng.standard_normal((d, k)).astype(np.float32)
    update = LowRankUpdate(A.astype(np.float32), B.astype(np.float32), 0.5)
    return SiteUpdate(site("here", d=d, k=k), update, 7), W


@pytest.mark.parametrize("kind", ["numpy", "float32", "bfloat16"])
def test_a_site_against_its_base_weight(kind):
    measured, W = made()
    given = W if kind == "numpy" else torch.tensor(W).to(getattr(torch, kind))
    if kind != "numpy":
        W = given.double().numpy()
    view = analysis.site_view(measured, given, directions=5)

    A, B, *_ = measured.update
    update = 0.5 * B.astype(np.float64) @ A.astype(np.float64)
    U, s, Vt = np.linalg.svd(update)
    W_left = np.linalg.svd(W.astype(np.float64))[0][:, :5]
    np.testing.assert_allclose(view.singular_values, s[:3], rtol=1e-5)
    np.testing.assert_allclose(view.overlap, (U[:, :3].T @ W_left) ** 2, atol=1e-4)
    held = np.linalg.norm(U[:, :3].T @ W @ Vt[:3].T)
    assert view.amplification == pytest.approx(np.linalg.norm(update) / held, rel=1e-4)
    assert view.random_amplification == pytest.approx(
        np.linalg.norm(update) * (12 * 16) ** 0.5 / (np.linalg.norm(W) * 3), rel=1e-5
    )
    assert view.frobenius_norm == pytest.approx(np.linalg.norm(update), rel=1e-5)
    assert view.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
    assert (view.site, view.step, view.shape) == ("here", 7, (12, 16))
    assert view.random_overlap == pytest.approx(1 / 12)
    assert view.overlap.dtype == view.singular_values.dtype == np.float32


def test_an_update_that_is_still_zero():
    view = analysis.site_view(*made(zero=True))
    assert not view.singular_values.any()
    assert view.effective_rank == view.stable_rank == view.frobenius_norm == 0
    assert np.isnan(view.overlap).all()
    assert math.isnan(view.amplification)
    assert math.isnan(view.random_amplification)


def test_an_adapter_of_another_base_is_refused():
    factors, _ = made()
    with pytest.raises(AdapterError, match=r"here: ΔW is 12 × 16 but W₀ is 9 × 16; .*another base"):
        analysis.site_view(factors, np.zeros((9, 16)))


def test_base_directions_are_computed_once_until_the_weight_changes(monkeypatch):
    calls = []
    real = spectra.top_directions
    monkeypatch.setattr(spectra, "top_directions", lambda *a: calls.append(1) or real(*a))
    factors, W = made(seed=99)
    W = torch.nn.Parameter(torch.tensor(W), requires_grad=False)
    first = analysis.site_view(factors, W)
    analysis.site_view(factors, W.detach())
    analysis.site_view(factors, W.clone())  # as a gathered slice comes: new memory each time
    assert len(calls) == 1
    with torch.no_grad():
        W.copy_(torch.tensor(made(seed=98)[1]))
    changed = analysis.site_view(factors, W)
    assert len(calls) == 2
    assert not np.allclose(first.overlap, changed.overlap)


def test_the_view_of_a_live_adapter_copies_the_factors():
    adapter = fake_adapter(MIXED)
    view = analysis.live_view(adapter, "layers.0.q", step=3)
    low = adapter.sites["layers.0.q"]
    assert view.frobenius_norm == pytest.approx(np.linalg.norm(delta(low)), rel=1e-5)
    assert view.step == 3
    with pytest.raises(AdapterError, match=r"no matrix 'layers\.0\.k'; near: layers\.0\.q"):
        analysis.live_view(adapter, "layers.0.k")


def test_the_rank_map_has_a_row_a_role_and_a_column_a_layer():
    sites = [site(f"{stack}{i}{role}", i, role, stack) for stack in ("encoder", "decoder")
             for i in range(2) for role in ("q", "v")]  # fmt: skip
    sites.append(site("pooler", None, "pooler"))
    values = {
        "encoder1v": np.array([2.0, 2.0, 2.0], np.float32),
        "decoder0q": np.zeros(4, np.float32),
        "pooler": np.ones(2, np.float32),
    }
    found = analysis.rank_map(sites, values)
    assert found.roles == ("q", "v")
    assert found.layers == ("enc 0", "enc 1", "dec 0", "dec 1")
    nan = np.nan
    np.testing.assert_allclose(found.values, [[nan, nan, 0, nan], [nan, 3, nan, nan]], rtol=1e-6)
    np.testing.assert_array_equal(found.ranks, [[0, 0, 4, 0], [0, 3, 0, 0]])


@pytest.fixture
def adapted():
    model = tiny("llama")
    attach(model, LoraConfig(r=3, target_modules=["q", "down"], init_lora_weights=False))
    return model


def test_analyze_measures_every_site_of_a_real_model(adapted):
    adapter = attached(adapted)["default"]
    found = analysis.analyze(adapted)
    assert [row.name for row in found.rows] == list(adapter.sites)
    for row in found.rows:
        low = adapter.sites[row.name]
        update = delta(low)
        W = adapter.base_weight(row.name).double().numpy()
        U, s, Vt = np.linalg.svd(update)
        p = s[:3] / s[:3].sum()
        assert row.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)
        np.testing.assert_allclose(row.singular_values, s[:3], rtol=1e-4, atol=1e-6)
        held = np.linalg.norm(U[:, :3].T @ W @ Vt[:3].T)
        assert row.amplification == pytest.approx(np.linalg.norm(update) / held, rel=1e-3)
        assert (row.layer, row.role, row.r) == (low.site.layer, low.site.role, 3)
    largest = found.strongest(2)
    assert largest[0].frobenius_norm == max(row.frobenius_norm for row in found.rows)
    live = analysis.live_view(adapter, largest[0].name)
    assert live.amplification == pytest.approx(largest[0].amplification, rel=1e-4)


def test_a_merged_adapter_is_still_measured_against_the_original_weight(adapted):
    before = [row.amplification for row in analysis.analyze(adapted).rows]
    merge(adapted)
    assert [row.amplification for row in analysis.analyze(adapted).rows] == before


def test_the_json_keys_are_the_contract(adapted):
    found = json.loads(json.dumps(analysis.analyze(adapted).to_json(), allow_nan=False))
    keys = {"name", "layer", "role", "r", "singular_values", "effective_rank", "stable_rank"}
    keys |= {"frobenius_norm"}
    against = {"amplification", "random_amplification"}
    assert all(set(row) == keys | against for row in found["sites"])
    adapter = attached(adapted)["default"]
    alone = analysis.analyze_sites(adapter.sites.values()).to_json()
    assert all(set(row) == keys for row in alone["sites"])


def test_what_is_undefined_is_null_in_json_and_a_dash_in_the_table():
    model = tiny("llama")
    attach(model, LoraConfig(r=2))  # B is zero
    found = analysis.analyze(model)
    row = json.loads(json.dumps(found.to_json(), allow_nan=False))["sites"][0]
    assert row["amplification"] is None
    assert row["effective_rank"] == 0
    assert str(found).splitlines()[1].split()[-1] == "–"


def test_the_table_is_aligned_and_its_html_escaped(adapted):
    found = analysis.analyze(adapted)
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["matrix", "r", "σ₁"]
    assert len({len(line) for line in lines}) == 1
    update = LowRankUpdate(torch.ones(1, 16), torch.ones(12, 1))
    low = SiteUpdate(site("<script>x</script>"), update)
    html = analysis.analyze_sites([low])._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_analyze_says_which_adapters_there_are(adapted):
    with pytest.raises(AdapterError, match=r"no adapter is called 'mine'; attached are 'default'"):
        analysis.analyze(adapted, "mine")
    attach(adapted, LoraConfig(r=2, init_lora_weights=False), name="second")
    activate(adapted, None)
    with pytest.raises(AdapterError, match=r"name one of 'default', 'second'"):
        analysis.analyze(adapted)
    assert analysis.analyze(adapted, "second").name == "second"
    with pytest.raises(AdapterError, match="call attach"):
        analysis.analyze(torch.nn.Linear(2, 2))
