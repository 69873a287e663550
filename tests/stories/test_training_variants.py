"""Two steps of every variant: what learns, at which rate, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_lab.analysis import adapter_spectra, analyze, live_view
from lora_lab.configs import LoraConfig, TrainingConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.api import attach
from lora_lab.runs.spectra_log import SITES_FILE, SPECTRA_FILE
from lora_lab.training.observer import copy_update
from lora_lab.training.recorder import Recorder
from lora_lab.training.step import DeadAdapterError
from lora_lab.training.trainer import parameter_groups
from tests.helpers.recorded_fit import Recorded, mean_loss
from tests.helpers.tiny_run import CONFIG, tiny_lm

VARIANTS = {
    "dora": ({"use_dora": True}, {}),
    "pissa": ({"init_lora_weights": "pissa"}, {}),
    "olora": ({"init_lora_weights": "olora"}, {}),
    "lorafa": ({"use_lorafa": True}, {}),
    "embedding": ({"target_modules": ("embed_tokens", "q")}, {}),
    "loraplus": ({}, {"loraplus_lr_ratio": 16.0}),
}


def tied_lm():
    lm = tiny_lm()
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    return lm


def two_steps(tmp_path, variant: str, lm=None) -> Recorded:
    changes, training = VARIANTS[variant]
    settings = {"max_steps": 2, "warmup_steps": 0, **training}
    return Recorded(tmp_path, lm or tied_lm(), CONFIG.replace(**changes), **settings)


def expected_delta(site) -> np.ndarray:
    """s(BA − B₀A₀), built in float64."""
    A, B = (factor.detach().double() for factor in (site.A, site.B))
    delta = B @ A
    if site.initial is not None:
        delta = delta - site.initial[1].double() @ site.initial[0].double()
    return (site.scale * delta).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_learns_moves_and_nothing_else(tmp_path, variant):
    run = two_steps(tmp_path, variant)
    learning = {id(p) for p in run.adapter.parameters()}
    before = {name: p.clone() for name, p in run.lm.model.named_parameters()}
    buffers = {name: b.clone() for name, b in run.lm.model.named_buffers()}
    run.run()
    assert len(run.steps) == 2
    # ΔW is zero at the start, whatever the factors are.
    bare = tied_lm().model
    assert run.losses[0] == pytest.approx(mean_loss(bare, run.batches[:1]), rel=1e-5)
    assert run.losses[1] != pytest.approx(mean_loss(bare, run.batches[1:]), rel=1e-5)
    for name, parameter in run.lm.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (id(parameter) in learning), name
    for name, buffer in run.lm.model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    frozen_A = [not site.A.requires_grad for site in run.adapter.sites.values()]
    assert all(frozen_A) if variant == "lorafa" else not any(frozen_A)


@pytest.mark.parametrize("variant", ["dora", "pissa", "embedding"])
def test_a_dead_site_is_found_in_every_variant(tmp_path, variant):
    # Where the output layer is tied to it, an embedding is reached from there.
    run = two_steps(tmp_path, variant, tiny_lm())
    dead = run.lm.model.get_submodule(next(iter(run.adapter.sites)))
    dead.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(
        DeadAdapterError, match=f"no gradient reached 1 of {len(run.adapter.sites)}"
    ):
        run.run()


@pytest.mark.parametrize("variant", ["dora", "pissa", "lorafa", "embedding"])
def test_an_optimizer_that_moves_nothing_is_found(tmp_path, monkeypatch, variant):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    run = two_steps(tmp_path, variant)
    if variant == "pissa":  # nothing starts at zero, so that only the loss can tell
        run.run()
    else:
        with pytest.raises(DeadAdapterError, match="BA is still zero after optimizer step 1"):
            run.run()


# LoRA+ -------------------------------------------------------------------------------------------


def rates(adapter, **training) -> dict[str, dict[str, float]]:
    """{site: {parameter: its rate}}"""
    groups = parameter_groups(adapter, TrainingConfig(learning_rate=1e-3, **training))
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return {
        name: {own: found[id(p)] for own, p in site.named_parameters() if id(p) in found}
        for name, site in adapter.sites.items()
    }


def test_b_and_the_magnitudes_learn_faster():
    adapter = attach(tied_lm().model, CONFIG.replace(target_modules=("q",), use_dora=True))
    one = {"A": 1e-3, "B": 8e-3, "magnitude": 8e-3}
    assert all(found == one for found in rates(adapter, loraplus_lr_ratio=8).values())
    slow = {"A": 1e-3, "B": 1e-3, "magnitude": 1e-3}
    assert all(found == slow for found in rates(adapter).values())
    frozen = attach(tied_lm().model, CONFIG.replace(target_modules=("q",), use_lorafa=True))
    assert all(found == {"B": 8e-3} for found in rates(frozen, loraplus_lr_ratio=8).values())


def test_embeddings_learn_at_the_plain_rate():
    targets = ("embed_tokens", "q")
    adapter = attach(tied_lm().model, CONFIG.replace(target_modules=targets))
    found = rates(adapter, loraplus_lr_ratio=8)
    assert found["model.embed_tokens"] == {"token_rows": 1e-3, "B": 1e-3}
    assert found["model.layers.1.self_attn.q_proj"] == {"A": 1e-3, "B": 8e-3}


def test_with_lora_fa_the_reported_rate_is_still_as(tmp_path):
    settings = {"max_steps": 2, "warmup_steps": 0, "loraplus_lr_ratio": 10.0}
    run = Recorded(tmp_path, tied_lm(), CONFIG.replace(use_lorafa=True), **settings).run()
    assert [step.learning_rate for step in run.steps] == pytest.approx([1e-2, 0.5e-2])


def test_a_step_is_the_one_of_pefts_optimizer(tmp_path):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q", "down"], use_dora=True, init_lora_weights=False
    )
    run = Recorded(
        tmp_path,
        tied_lm(),
        config,
        max_steps=1,
        warmup_steps=0,
        learning_rate=1e-2,
        loraplus_lr_ratio=16.0,
        weight_decay=0.1,
        max_grad_norm=1e9,
    )
    peer = get_peft_model(
        tied_lm().model,
        PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_dora=True),
    )
    pairs = []
    for site in run.adapter.sites.values():
        layer = peer.base_model.model.get_submodule(site.site.module)
        theirs = [
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            layer.lora_magnitude_vector["default"].weight,
        ]
        pairs += zip([site.A, site.B, site.magnitude], theirs, strict=True)
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)
    run.run()
    assert [step.learning_rate for step in run.steps] == [1e-2]
    optimizer = create_loraplus_optimizer(
        peer, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    peer.train()
    peer(**run.batches[0]).loss.backward()
    optimizer.step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), "16"])
def test_a_ratio_that_cannot_be(ratio):
    with pytest.raises(
        ConfigError, match=r"^loraplus_lr_ratio is .*; it must be a positive number$"
    ):
        TrainingConfig(loraplus_lr_ratio=ratio)


# What is recorded --------------------------------------------------------------------------------


class Store:
    def __init__(self, folder) -> None:
        self.folder = folder
        self.written = {}

    def write_json(self, name, value) -> None:
        self.written[name] = value


@pytest.mark.parametrize("variant", VARIANTS)
def test_spectra_and_views_are_those_of_the_built_update(tmp_path, variant):
    run = two_steps(tmp_path, variant)
    store = Store(tmp_path)
    recorder = Recorder(store, run.adapter)
    recorder.begin()
    recorder.close()
    assert store.written[SITES_FILE]["trainable"] == run.adapter.trainable
    assert (tmp_path / SPECTRA_FILE).exists()
    assert all(not s.any() for s in adapter_spectra(run.adapter).values()), "exactly 0 at the start"
    run.run()
    found = adapter_spectra(run.adapter)
    for name, site in run.adapter.sites.items():
        delta = expected_delta(site)
        assert delta.shape == (site.site.out_features, site.site.in_features)
        s = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(found[name], s[: len(found[name])], rtol=1e-3, atol=1e-5 * s[0])
        assert not (s[len(found[name]) :] > 1e-5 * s[0]).any()
        A, B, scale, *_ = copy_update(run.adapter, name, 2).update
        built = scale * B.astype(np.float64) @ A
        np.testing.assert_allclose(built, delta, rtol=1e-4, atol=1e-6 * s[0])
    view = live_view(run.adapter, next(iter(run.adapter.sites)))
    first = next(iter(run.adapter.sites.values()))
    assert view.shape == (first.site.out_features, first.site.in_features)
    assert view.frobenius_norm == pytest.approx(np.linalg.norm(expected_delta(first)), rel=1e-3)
    rows = analyze(run.lm.model)
    assert ("low-rank part" in str(rows)) == (variant == "dora")
    assert ("note" in rows.to_json()) == (variant == "dora")
    assert ("low-rank part" in rows._repr_html_()) == (variant == "dora")
