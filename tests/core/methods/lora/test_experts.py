"""Routed experts in one tensor, against W₀ + ΔW built whole and against PEFT's layers."""

from __future__ import annotations

import pickle
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.updated_weight import UpdatedWeight
from tests.helpers.tiny_experts import EXPERTS, logits, tiny_experts, tokens
from tests.helpers.versions import needs_grouped, skip_unless_stacked

BOTH = ["gate_up_proj", "down_proj"]


def adapted(model: nn.Module, **changes: Any) -> LoraAdapter:
    settings = {"target_modules": ["o_proj"], "target_parameters": BOTH, **changes}
    config = ll.LoraConfig(r=3, lora_alpha=8, init_lora_weights=False, **settings)
    return cast(LoraAdapter, ll.attach(model, config))


def built_whole(adapter: LoraAdapter, base: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return {parameter: W₀ + s·BA} by einsum, and the copies of A and B that it is made of."""
    weights, copies = {}, []
    for site in adapter.factors.values():
        A, B = (f.detach().clone().requires_grad_() for f in (site.A, site.B))
        copies += [A, B]
        name = f"{site.site.module}.{site.site.parameter}"
        layout = "…" if site.site.kind != "experts" else "e"
        out = {"e": "eor,eri->eio" if site.site.transposed else "eor,eri->eoi"}
        product = torch.einsum(out.get(layout, "or,ri->oi"), B, A)
        weights[name] = base.get_parameter(name).detach() + site.scale * product
    return weights, copies


def weight_of_router(model: nn.Module) -> str:
    found = [k for k, _ in model.named_parameters() if k.endswith(("gate.weight", "router.weight"))]
    return ".".join(found[0].split(".")[-3:])


WAYS = [
    *((name, "eager") for name in EXPERTS),
    *((n, "batched_mm") for n in ("mixtral", "gpt-oss")),
    *(pytest.param(n, "grouped_mm", marks=needs_grouped) for n in ("mixtral", "gpt-oss")),
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_output_and_gradients_are_those_of_the_sum(name: str, way: str) -> None:
    model, base = tiny_experts(name), tiny_experts(name)
    skip_unless_stacked(model)
    for each in (model, base):
        cast(Any, each.config)._experts_implementation = way
    before = logits(model)
    targets = [*BOTH, weight_of_router(model)]
    adapter = adapted(model, target_parameters=targets, rank_pattern={".*down_proj": 2})
    out = model(input_ids=tokens()).logits
    weights, copies = built_whole(adapter, base)
    wanted = functional_call(base, weights, (), {"input_ids": tokens()}).logits
    assert (out - before).abs().max() > 0.1
    torch.testing.assert_close(out, wanted, rtol=0, atol=2e-5)
    out.square().mean().backward()
    wanted.square().mean().backward()
    learned = [p for site in adapter.factors.values() for p in (site.A, site.B)]
    for parameter, copy in zip(learned, copies, strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "llama4"])
def test_merged_copied_and_given_back(name: str) -> None:
    model = tiny_experts(name)
    bare, kinds = logits(model), [type(module) for module in model.modules()]
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    adapter = adapted(model, target_parameters=[*BOTH, weight_of_router(model)])
    active = logits(model)
    ll.merge(model)
    whole = built_whole(adapter, tiny_experts(name))[0]
    for key, tensor in whole.items():
        torch.testing.assert_close(model.get_parameter(key).detach(), tensor.detach())
    torch.testing.assert_close(logits(model), active, rtol=0, atol=2e-5)
    ll.unmerge(model)
    assert torch.equal(logits(model), active)
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(copy), active)
    ll.activate(model, None)
    assert torch.equal(logits(model), bare)
    for each in (model, copy):
        ll.detach(each)
        assert torch.equal(logits(each), bare)
        assert [type(module) for module in each.modules()] == kinds
        assert all(torch.equal(t, weights[key]) for key, t in each.state_dict().items())


def test_every_expert_is_a_site_of_its_own() -> None:
    model = tiny_experts("gpt-oss")
    adapter = adapted(model, target_modules=[])
    site = adapter.sites["model.layers.1.mlp.experts.gate_up_proj[3]"]
    assert (site.site.role, site.site.number, site.r) == ("experts.3.gate_up_proj", 3, 3)
    assert site.update.shape == (96, 32)
    places = [own.name for each in ll.anatomy(model).sites for own in each.each]
    assert set(adapter.sites) <= set(places)
    base = tiny_experts("gpt-oss").get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    assert torch.equal(adapter.base_weight(site.site.name), base[3].T)
    with torch.no_grad():
        delta = site.scale * site.B.double() @ site.A.double()
    ll.merge(model)
    merged = model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")[3].T
    torch.testing.assert_close((merged - base[3].T).double().detach(), delta, rtol=0, atol=1e-6)
    assert torch.equal(adapter.base_weight(site.site.name), base[3].T)


@pytest.mark.parametrize("way", ["eager", pytest.param("grouped_mm", marks=needs_grouped)])
def test_nothing_of_the_weight_is_built_or_kept(way: str) -> None:
    model = tiny_experts("mixtral")
    cast(Any, model.config)._experts_implementation = way
    adapted(model, target_modules=[])
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.dim() > 1:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens()[:1, :2])
    assert kept
    assert not [t for t in kept if t.shape[-2:] in ((96, 32), (32, 96), (32, 48), (48, 32))]


def test_what_is_done_with_the_weight_beside_products_is_done_with_the_sum() -> None:
    W, A, B = torch.randn(2, 4, 6), torch.randn(2, 3, 6), torch.randn(2, 4, 3)
    updated, whole = cast(Any, UpdatedWeight(W, A, B, 0.5, False)), W + 0.5 * B @ A
    x = torch.randn(2, 5, 4)
    for found, wanted in (
        (updated * 2, whole * 2),
        (1 - updated, 1 - whole),
        (torch.einsum("eni,eij->enj", x, updated), torch.einsum("eni,eij->enj", x, whole)),
        (x @ updated, x @ whole),
        (updated.mT @ x.mT, whole.mT @ x.mT),
        (torch.stack([*updated]), whole),
        (updated[:, 1:], whole[:, 1:]),
        (updated[torch.tensor([True, False])], whole[:1]),
        (updated.transpose(0, 1), whole.transpose(0, 1)),
        (updated.sum(0), whole.sum(0)),
        (torch.cat([updated, W]), torch.cat([whole, W])),
        (
            nn.functional.linear(x[0, :, :1].expand(5, 6), updated[1], torch.ones(4)),
            nn.functional.linear(x[0, :, :1].expand(5, 6), whole[1], torch.ones(4)),
        ),
    ):
        torch.testing.assert_close(found, wanted)


def test_bfloat16_autocast_and_recomputed_blocks() -> None:
    model = tiny_experts("mixtral").bfloat16()
    adapter = adapted(model)
    base = tiny_experts("mixtral").bfloat16()
    weights = {k: w.bfloat16() for k, w in built_whole(adapter, base)[0].items()}
    ll.attach(base, ll.LoraConfig(r=3, lora_alpha=8, target_modules=["o_proj"]))
    ll.merge(model)
    for key, tensor in weights.items():
        torch.testing.assert_close(model.get_parameter(key), tensor, rtol=1e-2, atol=1e-2)
    ll.unmerge(model)
    assert logits(model).dtype == torch.bfloat16
    model = tiny_experts("mixtral").train()
    adapter = adapted(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=tokens()).logits.square().mean().backward()
        return [cast(Tensor, p.grad).clone() for p in adapter.parameters()]

    plain = gradients()
    cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
    for found, wanted in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(input_ids=tokens()).logits
    # Rounding may send a token to another expert; most of them stay.
    assert (mixed.float() - logits(model)).abs().median() < 0.05


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora_dropout": 0.1}, "set lora_dropout=0"),
        ({"use_dora": True, "target_modules": []}, "leave it out of target_parameters"),
        ({"target_parameters": ["w7"]}, "experts.gate_up_proj, experts.down_proj, gate.weight"),
        ({"target_parameters": "down_proj"}, "must be a list"),
        ({"target_modules": ["experts.down_proj"]}, "name it in target_parameters"),
        ({"target_modules": ["gate"]}, "gate.weight is a parameter"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], line: str) -> None:
    model = tiny_experts("mixtral")
    with pytest.raises(ConfigError, match=line):
        adapted(model, **changes)
    assert not ll.attached(model)


def test_nobody_knows_whose_tokens_an_expert_gets() -> None:
    model = tiny_experts("mixtral")
    adapted(model)
    with ll.mixed_batch(model, ["default", None]), pytest.raises(AdapterError, match="a router"):
        logits(model)


def test_a_custom_mixture_with_its_own_arithmetic() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            first = torch.einsum("bi,eoi->beo", x, self.weight.tanh()).sum(1)
            return first + (self.weight * 2).sum(0).mv(x[0]) + self.weight.shape[0]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.experts(x))

    model = nn.Sequential(Block())
    x = torch.randn(2, 4)
    W = model.get_parameter("0.experts.weight").detach().clone()
    adapter = adapted(model, target_modules=[], target_parameters=["experts.weight"])
    site = adapter.factors["0.experts.weight"]
    whole = W + site.scale * (site.B @ site.A).detach()
    expected = torch.einsum("bi,eoi->beo", x, whole.tanh()).sum(1)
    expected += (whole * 2).sum(0).mv(x[0]) + 3
    torch.testing.assert_close(model(x), expected)
