import numpy as np
import pytest
import torch

from lora_lab.analysis.spectrum import spectrum_view
from lora_lab.errors import AdapterError, ConfigError, ModelError
from tests.helpers.fake_sites import delta, site, weight


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "float32", "bfloat16"])
def test_both_spectra_of_a_site(kind, initial):
    low, W = site(3, initial=initial), weight(3)
    given = W if kind == "numpy" else torch.tensor(W).to(getattr(torch, kind))
    exact = np.asarray(W if kind == "numpy" else given.double().numpy(), np.float64)
    view = spectrum_view(low, given, step=40, most=5)
    count = 6 if initial else 3
    np.testing.assert_allclose(
        view.delta, np.linalg.svd(delta(low), compute_uv=False)[:count], rtol=1e-4
    )
    np.testing.assert_allclose(view.weight, np.linalg.svd(exact)[1][:5], rtol=1e-5)
    assert view.delta.dtype == view.weight.dtype == np.float32
    assert view.weight_norm == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    entry = np.sqrt((exact**2).mean())  # the root mean square of W₀'s entries
    assert view.edge == pytest.approx(entry * (np.sqrt(12) + np.sqrt(16)), rel=1e-5)
    assert (view.site, view.step) == ("layers.3.q", 40)
    assert len(spectrum_view(low, given).weight) == 12


def test_noise_stays_below_the_edge_and_a_planted_spike_stands_above():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((300, 200)).astype(np.float32)
    low = site(d=300, k=200)
    view = spectrum_view(low, noise)
    assert view.weight[0] == pytest.approx(view.edge, rel=0.03)
    u, v = np.ones(300) / np.sqrt(300), np.ones(200) / np.sqrt(200)
    spiked = noise + (60 * np.outer(u, v)).astype(np.float32)
    view = spectrum_view(low, spiked)
    assert (view.weight > 1.03 * view.edge).sum() == 1


def test_an_update_that_is_still_zero():
    low = site()
    low.update.B[:] = 0
    np.testing.assert_array_equal(spectrum_view(low, weight()).delta, np.zeros(3))


def test_an_init_that_moved_the_weight_has_not_moved_the_model():
    low = site(9, initial=True)
    A, B, *_ = low.update  # step 0: nothing is learned yet
    low = low._replace(update=low.update._replace(initial=(A.copy(), B.copy())))
    np.testing.assert_array_equal(spectrum_view(low, weight()).delta, np.zeros(6))


def test_bad_input_names_the_site_and_the_mend():
    broken = site()
    broken.update.A[0, 0] = np.nan
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: .*training diverged"):
        spectrum_view(broken, weight())
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: ΔW is 12 × 16 but W₀ is 12 × 9"):
        spectrum_view(site(), np.zeros((12, 9)))
    with pytest.raises(ModelError, match=r"^layers\.3\.q: W₀ holds NaN"):
        spectrum_view(site(), np.full((12, 16), np.nan))
    with pytest.raises(ConfigError, match="most is 0"):
        spectrum_view(site(), weight(), most=0)
