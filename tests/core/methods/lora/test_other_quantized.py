"""LoRA beside quantized layers that are not bitsandbytes': the base computes, the rest is added.

FP8Linear and BitLinear are transformers' own; of the other libraries, which are not installed,
there are stand-ins of their shapes and names.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.bitnet import BitLinear
from transformers.integrations.eetq import EetqLinear
from transformers.integrations.finegrained_fp8 import FP8Linear

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError

IN, OUT, BLOCK = 24, 16, 8


class Fp8(FP8Linear):
    """With a forward for the CPU, which has no kernel: what the kernel does, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fp8_values(self), self.bias)


def fp8_values(layer: Any) -> Tensor:
    """Every block of rows and columns by its own scale, entry by entry."""
    W = layer.weight.float().clone()
    for i in range(OUT):
        for j in range(IN):
            scale = layer.weight_scale_inv
            W[i, j] *= scale if scale.ndim == 0 else scale[i // BLOCK, j // BLOCK]
    return W


def fp8(block: tuple[int, int] | None = (BLOCK, BLOCK)) -> nn.Module:
    layer = Fp8(IN, OUT, block_size=block)
    layer.weight.data = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    layer.weight_scale_inv.data = torch.rand_like(layer.weight_scale_inv) + 0.5
    layer.bias = None
    return layer.requires_grad_(False)


class Packed(Tensor):
    """A tensor that stands for another, as torchao's and quanto's do."""

    @staticmethod
    def __new__(cls, codes: Tensor, step: float) -> Packed:
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.step = codes, step
        return made

    def dequantize(self) -> Tensor:
        return self.codes.float() * self.step

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Packed(args[0].codes, args[0].step)
        plain = [a.dequantize() if isinstance(a, Packed) else a for a in args]
        return func(*plain, **(kwargs or {}))


def torchao() -> nn.Module:
    layer = nn.Linear(IN, OUT)
    layer.weight = nn.Parameter(
        Packed(torch.randint(-8, 8, (OUT, IN), dtype=torch.int8), 0.1), requires_grad=False
    )
    return layer.requires_grad_(False)


class Hqq(nn.Module):
    """HQQLinear: no Linear, no weight of that name, but it can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = IN, OUT
        self.W_q = nn.Parameter(torch.randint(0, 16, (OUT, IN)).byte(), requires_grad=False)
        self.bias = None

    def dequantize(self) -> Tensor:
        return (self.W_q.float() - 8) * 0.1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize())


class Gptq(nn.Module):
    """GPTQ's QuantLinear: the older names of the sizes, and nobody else knows how it is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = IN, OUT
        self.register_buffer("qweight", torch.randint(-9, 9, (IN // 8, OUT), dtype=torch.int32))
        self.register_buffer("scales", torch.rand(3, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qweight.T.float().repeat(1, 8))


class Bit(BitLinear):
    """With a forward that need not be compiled first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.repeat(4, 1).float() % 3 - 1)


def bitnet() -> nn.Module:
    layer = Bit(IN, OUT, bias=False)
    layer.weight.random_(0, 170)
    return layer


LAYERS = {
    "fp8": fp8, "one scale": lambda: fp8(None), "torchao": torchao, "hqq": Hqq,
    "gptq": Gptq, "bitnet": bitnet,  # read by what they make of unit vectors
}  # fmt: skip


def built(kind: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, IN), LAYERS[kind]())
    return model, torch.randn(5, IN)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_update_is_added_to_what_the_layer_makes(kind: str) -> None:
    model, x = built(kind)
    kept = type(model[1])
    bare = model(x)
    config = ll.LoraConfig(r=3, target_modules=["1"], init_lora_weights=False)
    adapter = ll.attach(model, config)
    site = adapter.sites["1"]
    assert site.A.shape == (3, IN)
    assert site.B.shape == (OUT, 3)
    assert site.A.dtype == torch.float32
    update = (model[0](x).double() @ site.A.double().T @ site.B.double().T) * site.scale
    torch.testing.assert_close(model(x), bare + update.float(), rtol=1e-4, atol=1e-4)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    ll.detach(model)
    assert type(model[1]) is kept
    assert torch.equal(model(x), bare)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_merged_only_into_a_layer_in_floating_point(kind: str) -> None:
    model, x = built(kind)
    packed = model[1]
    ll.attach(model, ll.LoraConfig(r=3, target_modules=["1"], init_lora_weights=False))
    y = model(x)
    with pytest.raises(AdapterError, match=r"1 holds quantized weights.*dequantize=True"):
        ll.merge(model)
    torch.testing.assert_close(model(x), y)
    ll.merge(model, dequantize=True)
    assert type(model[1]) is nn.Linear
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)
    ll.unmerge(model)
    assert model[1] is packed
    torch.testing.assert_close(model(x), y)


def test_a_layer_that_cannot_be_read_says_so_and_stays(monkeypatch: Any) -> None:
    model, x = built("gptq")
    adapter = ll.attach(model, ll.LoraConfig(r=3, target_modules=["1"], init_lora_weights=False))
    y = model(x)
    with monkeypatch.context() as patched:
        patched.setattr(Gptq, "forward", lambda *_: torch.mm(torch.ones(2, 3), torch.ones(2, 3)))
        with pytest.raises(AdapterError) as caught:
            ll.merge(model, dequantize=True)
    assert str(caught.value) == (
        "1 holds int32 weights of a Gptq, which cannot be read here (mat1 and mat2 shapes cannot "
        "be multiplied (2x3 and 2x3)); keep the adapter beside them, or load the base unquantized"
    )
    assert torch.equal(model(x), y)
    # In float64, from how the stand-in says that it is packed.
    W = model[1].qweight.T.double().repeat(1, 8)
    torch.testing.assert_close(adapter.base_weight("1").double(), W, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_starts_from_the_weights_is_refused_by_name(kind: str) -> None:
    model, _ = built(kind)
    for fields in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ConfigError, match=r"1 holds .* weights; leave the option out"):
            ll.attach(model, ll.LoraConfig(r=3, target_modules=["1"], **fields))
    assert ll.attached(model) == {}


def test_all_linear_finds_them_and_a_plain_layer_with_whole_numbers_is_none_of_them() -> None:
    model = nn.Sequential(*(make() for make in (fp8, torchao, Hqq, Gptq, bitnet)))
    assert [site.name for site in ll.anatomy(model).sites] == ["0", "1", "2", "3", "4"]
    plain = nn.Linear(IN, OUT)
    plain.register_buffer("mask", torch.ones(OUT, IN, dtype=torch.int64))
    model = nn.Sequential(plain)
    ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear"))
    ll.merge(model)


@pytest.mark.parametrize("kind", LAYERS)
def test_methods_that_change_a_layers_output_learn_in_float32_beside_them(kind: str) -> None:
    model, x = built(kind)
    bare = model(x)
    adapter: Any = ll.attach(model, ll.IA3Config(target_modules=["1"], init_ia3_weights=False))
    ((_, vector),) = adapter.learned()
    assert vector.dtype == torch.float32
    torch.testing.assert_close(model(x), bare * vector)
    ll.merge(model, dequantize=True)
    torch.testing.assert_close(model(x), bare * vector.detach(), rtol=1e-4, atol=1e-4)
    ll.detach(model)
    adapter = ll.attach(model, ll.OFTConfig(target_modules=["1"], oft_block_size=8))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert torch.equal(model(x), bare), "it starts as the base"
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


def test_where_no_layer_is_known_all_linear_says_what_there_is() -> None:
    """EETQ's layers do not say how large they are."""
    configs: list[Any] = [ll.LoraConfig, ll.IA3Config, ll.OFTConfig]
    for config in configs:
        model = nn.Sequential(EetqLinear(IN, OUT))
        line = r'^"all-linear" finds no linear layer in this model; its matrices are 0.weight'
        with pytest.raises(ConfigError, match=line):
            ll.attach(model, config(target_modules="all-linear"))
