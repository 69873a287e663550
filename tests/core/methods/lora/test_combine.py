"""Weighted sums against Σ wᵢ·sᵢBᵢAᵢ built in float64."""

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.several_adapters import several
from tests.helpers.tiny_models import tiny


def built(adapter):
    """{site: ΔW} in float64, from the factors alone."""
    deltas = {}
    for name, site in adapter.sites.items():
        delta = site.scale * site.B.detach().double() @ site.A.detach().double()
        if site.initial is not None:
            A0, B0 = site.initial
            delta = delta - site.scale * B0.double() @ A0.double()
        deltas[name] = delta
    return deltas


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_sum_is_exact_at_every_site(name):
    model = several(name)
    weights = {"a": 0.7, "b": -1.3, "c": 2.0}
    expected = {}
    for source, weight in weights.items():
        for site, delta in built(ll.attached(model)[source]).items():
            expected[site] = expected.get(site, 0) + weight * delta
    mixed = ll.combine(model, weights, "mixed")
    assert ll.active(model) == "mixed"
    assert built(mixed).keys() == expected.keys()
    for site, delta in built(mixed).items():
        torch.testing.assert_close(delta, expected[site], rtol=1e-10, atol=1e-10)


def test_ranks_beyond_the_matrix_are_brought_down_without_loss():
    model = tiny("llama").double()
    for name in ("x", "y"):
        config = ll.LoraConfig(r=12, target_modules=["k"], init_lora_weights=False)
        ll.attach(model, config, name)
    x, y = (built(ll.attached(model)[name]) for name in ("x", "y"))
    mixed = ll.combine(model, {"x": 1, "y": 1}, "mixed")
    for site, delta in built(mixed).items():
        limit = min(delta.shape)
        assert mixed.sites[site].r == min(24, limit)
        torch.testing.assert_close(delta, x[site] + y[site], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weights is empty"),
        ({"zzz": 1.0}, "no adapter is called 'zzz'; attached are 'a', 'b', 'c'"),
        ({"a": float("nan")}, "the weight of 'a' is nan"),
        ({"a": "much"}, "the weight of 'a' is 'much'"),
    ],
)
def test_what_cannot_be_is_refused(weights, message):
    with pytest.raises(AdapterError, match=message):
        ll.combine(several(), weights, "mixed")


def test_dora_is_no_sum_of_products():
    with pytest.raises(AdapterError, match="merge it into the weights"):
        ll.combine(several(use_dora=True), {"a": 1.0}, "mixed")
