"""The operator where others drive: autocast, torch.compile, torch.func, DDP and FSDP."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import lora_lab as ll
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.operator import lowrank_linear
from lora_lab.spectra.update import LowRankUpdate
from tests.helpers.shared_input import begin_call, plain_path
from tests.helpers.tiny_models import VOCABULARY, tiny, tiny_inputs

EVERYTHING = ll.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)


def adapted(name="llama", seed=0):
    model = tiny(name).train()
    torch.manual_seed(seed)
    return model, ll.attach(model, EVERYTHING)


def ids_of(rows=4, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def loss_and_gradients(model, adapter, ids):
    for parameter in adapter.parameters():
        parameter.grad = None
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), [p.grad for p in adapter.parameters()]


def far(found, exact):
    """‖found − exact‖ / ‖exact‖ over all of the gradients."""
    difference = sum((a.double() - b).square().sum() for a, b in zip(found, exact, strict=True))
    return (difference / sum(b.square().sum() for b in exact)).sqrt().item()


# Autocast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_under_autocast_gradients_are_as_near_to_float64_as_plain_ones(name):
    model, adapter = adapted(name)
    model.eval()  # no dropout
    batch = tiny_inputs(model, batch=4)

    def gradients(model, adapter):
        for parameter in adapter.parameters():
            parameter.grad = None
        logits = model(**batch).logits
        logits.to(torch.promote_types(logits.dtype, torch.float32)).square().sum().backward()
        return [p.grad for p in adapter.parameters()]

    exact_model = copy.deepcopy(model).double()
    exact = gradients(exact_model, ll.attached(exact_model)["default"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model, adapter)
        with plain_path():
            plain = gradients(model, adapter)
    assert all(g.dtype == torch.float32 for g in found)
    assert far(found, exact) < 1.25 * far(plain, exact) < 0.25


def test_under_autocast_neither_a_float32_x_nor_a_cast_weight_is_kept():
    model, _ = adapted()
    block = model.model.layers[0].self_attn
    begin_call(block)
    readers = block.q_proj, block.k_proj, block.v_proj
    x = torch.randn(50, 32, requires_grad=True)
    kept = []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        ys = [reader(x) for reader in readers]
    assert all(y.dtype == torch.bfloat16 for y in ys)
    tall = [t for t in kept if t.shape[0] == 50]
    assert {t.dtype for t in tall} == {torch.bfloat16}
    assert sorted(t.shape[1] for t in tall) == [3, 3, 3, 32]  # x once, in bf16
    weights = [t for t in kept if t.numel() >= readers[1].weight.numel() and t.shape[0] != 50]
    assert {t.data_ptr() for t in weights} == {reader.weight.data_ptr() for reader in readers}


def test_a_backward_pass_within_autocast_of_a_forward_pass_without():
    x = torch.randn(6, 12, requires_grad=True)
    W, A, B = torch.randn(24, 12), torch.randn(3, 12), torch.randn(24, 3)
    A.requires_grad_()
    B.requires_grad_()
    y = lowrank_linear(x, W, None, [LowRankUpdate(A, B, 0.7)])
    expected = torch.autograd.grad(F.linear(x, W + 0.7 * B @ A).sum(), (x, A, B))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(y.sum(), (x, A, B))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_bf16_base_under_autocast_and_float64_that_autocast_leaves_alone():
    for base, of_x, expected in (
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float64, torch.float64, torch.float64),
    ):
        x = torch.randn(6, 12, dtype=of_x)
        W, A, B = (torch.randn(s, dtype=base) for s in ((24, 12), (3, 12), (24, 3)))
        b = torch.randn(24, dtype=base)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = lowrank_linear(x, W, b, [LowRankUpdate(A, B, 0.7)])
        assert y.dtype == expected
        exact = x.double() @ (W.double() + 0.7 * B.double() @ A.double()).T + b.double()
        limit = 1e-12 if expected == torch.float64 else 0.02
        assert (y.double() - exact).norm() / exact.norm() < limit


def test_training_under_autocast_learns():
    model, adapter = adapted()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    ids, losses = ids_of(), []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# torch.compile ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert"])
def test_compiled_in_one_graph(name, backend):
    torch._dynamo.reset()
    model, adapter = adapted(name)
    model.eval()
    batch, parameters = tiny_inputs(model, batch=2), list(adapter.parameters())
    expected = model(**batch).logits
    expected_gradients = torch.autograd.grad(expected.square().sum(), parameters)
    found = torch.compile(model, backend=backend, fullgraph=True)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-3)


def test_switching_compiles_once_an_adapter():
    torch._dynamo.reset()
    model, _ = adapted()
    model.eval()
    ll.attach(model, EVERYTHING.replace(r=2, target_modules=["q", "v"]), "second")
    batch, compiled = tiny_inputs(model), []
    model(**batch)  # layers are watched until their first eager pass (`Watch`)

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for name in ["default", "second", None, "default", "second", None, "default"]:
            ll.activate(model, name)
            torch.testing.assert_close(
                fast(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-4
            )
    assert len(compiled) == 3  # two adapters and the bare model


# torch.func and second derivatives ----------------------------------------------------------------


def test_gradients_of_every_sample_by_torch_func():
    model, adapter = adapted()
    model.eval()
    ids = ids_of(rows=3)
    names = {id(p): n for n, p in model.named_parameters()}
    learned = {names[id(p)]: p for p in adapter.parameters()}

    def loss(factors, row):
        y = torch.func.functional_call(model, factors, (), {"input_ids": row[None]}).logits
        return y.square().mean()

    for i, row in enumerate(ids):
        found = torch.func.grad(loss)(learned, row)
        for parameter in adapter.parameters():
            parameter.grad = None
        model(input_ids=ids[i : i + 1]).logits.square().mean().backward()
        expected = {names[id(p)]: p.grad for p in adapter.parameters()}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_second_derivative_is_refused_not_wrong():
    x = torch.randn(6, 12, requires_grad=True)
    A, B = torch.randn(3, 12, requires_grad=True), torch.randn(24, 3, requires_grad=True)
    y = lowrank_linear(x, torch.randn(24, 12), None, [LowRankUpdate(A, B, 0.7)])
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(AdapterError, match=r"no second derivative; .* ll\.twice_diff"):
        dx.square().sum().backward()


def test_a_derivative_forwards_is_refused_or_that_of_the_sum():
    x, v = torch.randn(2, 6, 12, dtype=torch.float64)
    W = torch.randn(24, 12, dtype=torch.float64)
    A, B = torch.randn(3, 12, dtype=torch.float64), torch.randn(24, 3, dtype=torch.float64)
    terms = [LowRankUpdate(A.requires_grad_(), B.requires_grad_(), 0.7)]

    def tangent():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(
                lowrank_linear(forward_ad.make_dual(x, v), W, None, terms)
            ).tangent

    with pytest.raises(AdapterError, match=r"no forward-mode derivative; .* ll\.twice_diff"):
        tangent()
    with ll.twice_differentiable():
        torch.testing.assert_close(tangent(), v @ (W + 0.7 * B @ A).T)


def test_a_gradient_penalty_is_pefts():
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    model = tiny("llama", attn_implementation="eager").double()
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=targets))
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules=targets))
    by_name = dict(theirs.named_parameters())
    pairs = {}
    with torch.no_grad():
        for path, site in adapter.sites.items():
            site.B.normal_()
            for letter in "AB":
                their = by_name[f"base_model.model.{path}.lora_{letter}.default.weight"]
                their.copy_(getattr(site, letter))
                pairs[path, letter] = their
    for each in (model, theirs):
        x = torch.ones(1, 5, 32, dtype=torch.float64, requires_grad=True)
        with ll.twice_differentiable():
            y = each(inputs_embeds=x).logits.square().mean()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        slope.square().sum().backward()
    for (path, letter), their in pairs.items():
        own = getattr(adapter.sites[path], letter).grad
        torch.testing.assert_close(own, their.grad, rtol=1e-4, atol=1e-8)


# Several processes --------------------------------------------------------------------------------

STEPS, WORLD = 4, 2


def trained(model, parameters, rank=0, world=1):
    """Losses of a few AdamW steps on this rank's share of the batch."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(STEPS):
        ids = ids_of(seed=step).chunk(world)[rank]
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


WAYS = ["ddp", "fsdp by block", "fsdp by layer"]


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    by_layer = [m for m in model.modules() if isinstance(m, nn.Linear)]
    layers = model.model.layers
    for unit in by_layer if how == "fsdp by layer" else layers:  # type: ignore[union-attr]
        fully_shard(unit)
    return fully_shard(model)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    found = {}
    for how in WAYS:
        model, adapter = adapted()
        model = wrapped(model, how)
        losses = trained(model, list(adapter.parameters()), rank, WORLD)
        whole = [getattr(p, "full_tensor", lambda p=p: p)() for p in adapter.parameters()]
        found[how] = losses, [factor.detach() for factor in whole]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What each of two processes found, by the way they shared the work."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("how", WAYS)
def test_two_processes_learn_what_one_does(shares, how):
    model, adapter = adapted()
    alone = trained(model, list(adapter.parameters()))
    together = [sum(losses) / WORLD for losses in zip(*(s[how][0] for s in shares), strict=True)]
    assert together == pytest.approx(alone, rel=1e-4)
    for share in shares:
        for factor, expected in zip(share[how][1], adapter.parameters(), strict=True):
            torch.testing.assert_close(factor, expected.detach(), rtol=1e-3, atol=1e-3)
