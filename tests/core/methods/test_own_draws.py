"""Where an adapter starts: another at each place and rank, and the same for a seed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab import spectra
from lora_lab.configs import (
    AdaLoraConfig,
    BottleneckConfig,
    LoraConfig,
    MethodConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.methods.lora.init import INITIALIZATIONS
from lora_lab.methods.own_draws import OwnDraws
from lora_lab.runs.run_file import RunConfig
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_llama

TARGETS = ["q", "v", "down"]


def started(config: MethodConfig, seed: int = 0, model: Any = None) -> dict[str, torch.Tensor]:
    model = model or tiny_llama()
    torch.manual_seed(seed)
    adapter = ll.attach(model, config)
    return {name: value.detach().clone() for name, value in adapter.state().items()}


def phi(A: torch.Tensor, B: torch.Tensor) -> float:
    """φ of two row spaces (Hu et al., 2022, equation 4)."""
    first, second = (torch.linalg.qr(x.T.double())[0].numpy() for x in (A, B))
    return float(spectra.subspace_overlap(first, second)[-1, -1])


@pytest.mark.parametrize("init", [True, False, "gaussian"])
@pytest.mark.parametrize("config", [LoraConfig, AdaLoraConfig], ids=["LoRA", "AdaLoRA"])
def test_another_rank_is_another_start_at_each_site(config, init):
    """Chance is r/in: 8/32 and less where ranks are smaller (spectra.random_subspace_overlap)."""
    if config is LoraConfig:
        small, large = (
            LoraConfig(r, target_modules=TARGETS, init_lora_weights=init) for r in (2, 8)
        )
    elif init is True:
        small, large = (AdaLoraConfig(1, r, target_modules=TARGETS) for r in (2, 8))
    else:
        pytest.skip("AdaLoRA has one start")
    ones, others = started(small), started(large)
    keys = [key for key in ones if key.endswith((".A", ".Q"))]
    assert len(keys) == 6
    found = []
    for key in keys:
        n = ones[key].shape[1]
        chance = spectra.random_subspace_overlap(2, 8, n)[-1, -1]
        spread = spectra.random_subspace_spread(2, 8, n)[-1, -1]
        found.append((phi(ones[key], others[key]) - chance) / spread)
        assert not any(torch.equal(row, other) for row in ones[key] for other in others[key])
    assert max(map(abs, found)) < 4


def test_a_seed_gives_the_same_start_whatever_else_is_adapted():
    few = started(LoraConfig(2, target_modules=["v"]))
    many = started(LoraConfig(2, target_modules="all-linear", rank_pattern={"q": 4}))
    assert few
    for key, value in few.items():
        assert torch.equal(value, many[key])
    other = started(LoraConfig(2, target_modules=["v"]), seed=1)
    assert all(not torch.equal(few[key], other[key]) for key in few if key.endswith(".A"))


@pytest.mark.parametrize(
    "config",
    [CONFIG, PrefixLayerConfig(2, 1), BottleneckConfig("P", r=3)],
    ids=["LoRA", "PreLayer", "Adapter^P"],
)
def test_what_is_read_from_a_file_draws_nothing(config, tmp_path):
    model = tiny_llama()
    ll.attach(model, config)
    expected = ll.attached(model)["default"].state()
    ll.save_adapter(model, tmp_path)
    fresh = tiny_llama()
    before = torch.get_rng_state()
    found = ll.load_adapter(fresh, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for name, mine in expected.items():
        assert torch.equal(mine, found.state()[name])


def test_two_attaches_in_a_row_start_differently_and_draw_one_number():
    models = tiny_llama(), tiny_llama()
    torch.manual_seed(0)
    expected = torch.Generator().manual_seed(0)
    torch.randint(2**63 - 1, (), generator=expected)
    first = ll.attach(models[0], CONFIG)
    assert torch.equal(torch.get_rng_state(), expected.get_state())
    second = ll.attach(models[1], CONFIG)
    sites = zip(first.sites.values(), second.sites.values(), strict=True)
    assert all(not torch.equal(one.A, other.A) for one, other in sites)
    layers = [site.A for site in first.sites.values() if site.A.shape == (4, 32)]
    assert all(not torch.equal(layers[0], other) for other in layers[1:])


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (BottleneckConfig("P", 2), BottleneckConfig("P", 4)),
        (PrefixEmbedConfig(2, 0), PrefixEmbedConfig(4, 0)),
        (PrefixLayerConfig(2, 0), PrefixLayerConfig(4, 0)),
    ],
    ids=["Adapter^P", "PreEmbed", "PreLayer"],
)
def test_no_method_starts_its_larger_self_with_its_smaller(small, large):
    ones, others = started(small), started(large)
    drawn = [key for key in ones if key.endswith(("down", "tokens"))]
    assert drawn
    for key in drawn:
        assert not torch.equal(ones[key], others[key][:2])
    assert all(torch.equal(value, ones[key]) for key, value in started(small).items())


def test_the_starts_have_the_distribution_that_they_had():
    """U(−1/√in, 1/√in), that of kaiming-uniform(√5)."""
    factors = started(LoraConfig(32, target_modules=["q"]))
    A = next(value for key, value in factors.items() if key.endswith(".A"))
    edge = A.shape[1] ** -0.5
    assert A.abs().max() <= edge
    assert float(A.var()) == pytest.approx(edge**2 / 3, rel=0.1)


def test_runs_of_one_seed_and_several_ranks_start_apart(tmp_path):
    """What a run draws comes of its own seed, not of torch's generator."""
    starts = []
    for r, noise in ((2, 0), (8, 0), (2, 5)):
        torch.manual_seed(noise)
        config = CONFIG.replace(r=r)
        run = ll.train(
            tiny_lm(), tiny_task(), config, output_dir=tmp_path, max_steps=1, eval_examples=0,
            learning_rate=1e-12, save_steps=0,
        )  # fmt: skip
        run.result(60)
        starts.append({name: site.A.detach() for name, site in run.adapter.sites.items()})
    two, eight, again = starts
    for name in two:
        assert not torch.allclose(two[name], eight[name][:2], atol=1e-3)
        torch.testing.assert_close(two[name], again[name], rtol=0, atol=1e-9)


def test_a_hollow_model_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = tiny("llama").to("meta")
    ll.attach(model, LoraConfig(2, target_modules=TARGETS))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_places_of_an_adapter_do_not_hang_on_their_order():
    torch.manual_seed(0)
    draws = OwnDraws()
    with draws.of("a", 1):
        a = torch.rand(3)
    with draws.of("b", 1):
        b = torch.rand(3)
    torch.manual_seed(0)
    draws = OwnDraws()
    with draws.of("b", 1):
        assert torch.equal(torch.rand(3), b)
    with draws.of("a", 1):
        assert torch.equal(torch.rand(3), a)
    assert not torch.equal(a, b)


def test_a_run_of_an_earlier_version_draws_as_it_did(tmp_path):
    """One stream: the start of r = 2 at the first site is that of r = 8's first rows."""
    starts = []
    for r in (2, 8):
        run = ll.train(
            tiny_lm(), tiny_task(), CONFIG.replace(r=r), output_dir=tmp_path, max_steps=1,
            eval_examples=0, learning_rate=1e-12, save_steps=0, init_draws="one_stream",
        )  # fmt: skip
        run.result(60)
        starts.append(next(iter(run.adapter.sites.values())).A.detach())
    torch.testing.assert_close(starts[0], starts[1][:2], rtol=0, atol=1e-9)
    config = config_of_before(run.folder)
    assert RunConfig.from_dict(config).training.init_draws == "one_stream"


def config_of_before(folder):
    """A config.json as runs had it before they could tell how they draw."""
    config = json.loads((folder / "config.json").read_text())
    del config["training"]["init_draws"]
    config["sources"] = {"model": {"name": "m"}, "task": {"name": "mini-e2e"}}
    return config


STARTS = {
    "LoRA": LoraConfig(4, target_modules=["q", "down", "embed_tokens"]),
    "both at random": LoraConfig(
        4, target_modules=["q", "embed_tokens"], init_lora_weights=False, lora_bias=False
    ),
    "with biases": LoraConfig(4, target_modules=["q"], init_lora_weights=False, lora_bias=True),
    "gaussian": LoraConfig(4, target_modules=["q", "v"], init_lora_weights="gaussian"),
    "AdaLoRA": AdaLoraConfig(2, 4, target_modules=["q", "v"]),
}


@pytest.mark.parametrize("config", STARTS.values(), ids=STARTS)
def test_who_asks_for_the_places_generator_draws_what_torch_would_have_from_its_seed(
    config, monkeypatch
):
    """The quick way is the one by which every operation is looked at, bit for bit."""
    quick = started(config)
    for name in (True, False, "gaussian"):
        slow = dataclasses.replace(INITIALIZATIONS[name], asks=False)
        monkeypatch.setitem(INITIALIZATIONS, name, slow)
    expected = started(config)
    assert quick.keys() == expected.keys()
    assert all(torch.equal(quick[name], value) for name, value in expected.items())
    assert any(value.any() for value in quick.values())
