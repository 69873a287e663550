"""An initialization that starts from data, defined here: the seam for EVA, CorDA and their like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.init import INITIALIZATIONS, register_init
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task

R = 3


def corda(weight, r, activations, scale):
    """Start from W₀'s strongest directions as the data weigh them (Yang et al., 2024)."""
    C = activations.T @ activations / len(activations)
    C += 1e-3 * C.diagonal().mean() * torch.eye(len(C))
    U, S, Vt = torch.linalg.svd(weight.float() @ C, full_matrices=False)
    root = (S[:r] / scale).sqrt()
    return torch.linalg.solve(C, root[:, None] * Vt[:r], left=False), U[:, :r] * root


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(INITIALIZATIONS, "toy-corda", None)  # and out again afterwards
    register_init("toy-corda", from_base=True, needs_activations=True)(corda)


def config(**more):
    targets = ["q", "v", "up"]
    return ll.LoraConfig(
        r=R, lora_alpha=6, target_modules=targets, init_lora_weights="toy-corda", **more
    )


def batches(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (4, 2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 1, 5:] = 0
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]


def rows_of_first_block(model, data):
    """What q and v of the first block read, in float64: the embeddings' root mean square norm."""
    table = model.model.embed_tokens.weight.double().detach()
    norm = model.model.layers[0].input_layernorm
    x = torch.cat([table[b["input_ids"]][b["attention_mask"] == 1] for b in data])
    scale = (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return (x * scale * norm.weight.double().detach()).numpy()


def test_it_gets_what_the_layer_reads_and_starts_there():
    model = tiny("llama")
    data = batches(model)
    before = model(**data[0]).logits
    adapter = ll.attach(model, config(), batches=iter(data))
    X = rows_of_first_block(model, data)
    C = X.T @ X / len(X)
    C += 1e-3 * np.diag(C).mean() * np.eye(len(C))
    for leaf in ("q_proj", "v_proj"):
        site = adapter.sites[f"model.layers.0.self_attn.{leaf}"]
        W = adapter.base_weight(site.site.name).double().numpy()
        U, S, Vt = np.linalg.svd(W @ C)
        expected = (U[:, :R] * S[:R]) @ Vt[:R] @ np.linalg.inv(C)
        found = site.scale * (site.B @ site.A).detach().double().numpy()
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
        assert np.linalg.norm(expected) > 1e-2
    torch.testing.assert_close(model(**data[0]).logits, before)  # ΔW is counted from the start
    assert ll.budget(model, config()).parameters_trainable == adapter.trainable
    assert ll.dry_run(model, config()).peak > 0


def test_pads_and_another_adapter_have_no_part_in_it():
    first, second = tiny("llama"), tiny("llama")
    second.load_state_dict(first.state_dict())
    data = batches(first)
    other = ll.attach(second, ll.LoraConfig(r=2, init_lora_weights=False), "other")
    assert all(site.B.any() for site in other.sites.values())
    padded = [{**b, "input_ids": b["input_ids"].where(b["attention_mask"] == 1, 7)} for b in data]
    ours, theirs = (
        ll.attach(model, config(), batches=given)
        for model, given in ((first, data), (second, padded))
    )
    for name, site in ours.sites.items():
        torch.testing.assert_close(site.A, theirs.sites[name].A)


def test_a_run_gives_it_its_own_data_and_ends_as_the_same_update_on_the_base(tmp_path):
    lm = tiny_lm()
    run = ll.train(lm, tiny_task(), config(), output_dir=tmp_path, max_steps=3, max_length=64)
    assert run.result(120).metrics["loss_after"] < run.result().metrics["loss_before"]
    ll.merge(lm.model)
    merged = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    ll.unmerge(lm.model)
    ll.detach(lm.model)
    loaded = ll.load_adapter(lm.model, run.result().adapter_folder)
    assert set(loaded.ranks.values()) == {2 * R}  # the start is counted off in the file
    ll.merge(lm.model)
    for name, p in lm.model.named_parameters():
        torch.testing.assert_close(p, merged[name])


def test_without_data_one_line_says_what_is_missing():
    with pytest.raises(
        ConfigError, match="'toy-corda' starts from what the layers read; pass batches"
    ):
        ll.attach(tiny("llama"), config())
    with pytest.raises(
        ConfigError, match=r"use True, False, .*'pissa_niter_N', 'olora', .*'toy-corda'"
    ):
        ll.LoraConfig(init_lora_weights="none-such")
    with pytest.raises(ConfigError, match="use_dora and init_lora_weights='toy-corda' do not go"):
        config(use_dora=True)
