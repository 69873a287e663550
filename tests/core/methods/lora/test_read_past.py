"""Layers whose weight another module reads: they give W₀ + ΔW to it, as the merged model has it."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.lora.read_past import read_past
from tests.helpers.quantized_layers import Linear4bit

_USUAL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}


class Encoder(nn.Module):
    """torch's own encoder, whose fast path reads all of a layer's weights."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.blocks(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Branch(nn.Module):
    """Calls its layer in one branch and reads it in another, as BLOOM does."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(16, 16)

    def forward(self, x):
        if x.requires_grad:
            return F.linear(x, self.dense.weight, self.dense.bias)
        return self.dense(x)


class Reader(nn.Module):
    """Reads a convolution's kernel, a Linear two levels below, and an embedding as its head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 16)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.inner = nn.Module()
        self.inner.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)

    def forward(self, ids):
        x = self.words(ids).mT
        x = F.conv1d(x, self.mix.weight, self.mix.bias, padding=1).mT
        x = F.linear(x, self.inner.up.weight).relu()
        assert isinstance(self.down.weight, torch.Tensor)
        x = self.down(x.to(self.down.weight.dtype))
        return torch.einsum("...d,vd->...v", x, self.words.weight)


def mamba():
    return transformers.MambaForCausalLM(transformers.MambaConfig(**_USUAL, state_size=4))


def mamba2():
    sizes = {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**_USUAL, **sizes))


def lfm2():
    sizes = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "full_attention"]
    config = transformers.Lfm2Config(**_USUAL, **sizes, layer_types=kinds)
    return transformers.Lfm2ForCausalLM(config)


STATES = torch.randn(3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 3, 1, 2, 3]])
MODELS = {
    "encoder": (Encoder, STATES, ["linear1", "linear2", "out_proj"]),
    "attention": (Attention, STATES, "all-linear"),
    "branch, called": (Branch, STATES, ["dense"]),
    "branch, read": (Branch, STATES.clone().requires_grad_(), ["dense"]),
    "reader": (Reader, IDS, ["words", "mix", "up", "down"]),
    "mamba": (mamba, IDS, ["conv1d", "x_proj", "dt_proj", "in_proj", "out_proj"]),
    "mamba, every Linear": (mamba, IDS, "all-linear"),
    "mamba2": (mamba2, IDS, ["conv1d", "in_proj", "out_proj"]),
    "lfm2": (lfm2, IDS, ["conv", "in_proj", "q_proj"]),
}


def run(model, inputs):
    out = model(inputs)
    return getattr(out, "logits", out)


LINEAR = ("encoder", "branch, called", "branch, read", "attention", "mamba, every Linear")


@pytest.mark.parametrize(
    ("name", "lengths"), [*((name, False) for name in MODELS), *((name, True) for name in LINEAR)]
)
def test_it_acts_in_every_pass_as_the_built_weights_do(name, lengths):
    make, inputs, targets = MODELS[name]
    torch.manual_seed(0)
    plain = make().double().eval()
    model = copy.deepcopy(plain)
    config = ll.LoraConfig(
        r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False, use_dora=lengths
    )
    adapter = ll.attach(model, config)
    built = copy.deepcopy(plain)
    with torch.no_grad():
        for site in adapter.sites.values():
            weight = built.get_submodule(site.site.module).weight
            delta = site.scale * site.B @ site.A
            weight.add_((delta.T if site.site.kind == "embedding" else delta).view(weight.shape))
            if lengths:
                weight.mul_((site.magnitude / weight.norm(dim=1))[:, None])
        expected = run(built, inputs)
        assert not torch.allclose(expected, run(plain, inputs), atol=1e-4)
        torch.testing.assert_close(run(model, inputs), expected, rtol=1e-9, atol=1e-9)  # fast path
    found = run(model, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    ll.merge(model)
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert torch.equal(run(model, inputs), run(plain, inputs))
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]


def test_gradients_are_those_of_the_built_weights():
    torch.manual_seed(0)
    model = Reader().double()
    adapter = ll.attach(
        model, ll.LoraConfig(r=2, target_modules=["up", "mix"], init_lora_weights=False)
    )
    found = torch.autograd.grad(model(IDS).square().sum(), list(adapter.parameters()))
    leaves = [p.detach().clone().requires_grad_() for p in adapter.parameters()]
    pairs = zip(adapter.sites.values(), leaves[::2], leaves[1::2], strict=True)
    built = {
        f"{site.site.module}.weight": W.detach() + (site.scale * B @ A).view(W.shape)
        for site, A, B in pairs
        for W in [model.get_submodule(site.site.module)._parameters["weight"]]
    }
    ll.detach(model)
    loss = torch.func.functional_call(model, built, (IDS,)).square().sum()
    for one, other in zip(found, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_which_weights_are_read_is_told_from_the_code():
    model = Reader()
    readers = read_past(dict(model.named_modules()))
    names = {path for path, part in model.named_modules() if part in readers}
    assert names == {"words", "mix", "inner.up"}
    t5 = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    llama = transformers.LlamaConfig(**_USUAL, intermediate_size=8, num_attention_heads=4)
    branch = dict(Branch().named_modules())
    assert read_past(branch).keys() == {branch["dense"]}
    assert not read_past(branch, only=True)
    encoder = dict(Encoder().named_modules())
    fast = read_past(encoder, only=True)
    assert sum(isinstance(layer, nn.Linear) for layer in fast) == 6
    for plain in (transformers.T5Model(t5), transformers.LlamaForCausalLM(llama)):
        assert not read_past(dict(plain.named_modules()))


def test_what_cannot_act_there_is_refused_by_name():
    model = Reader()
    fields = {"r": 2, "target_modules": ["mix", "down"], "init_lora_weights": False}
    with pytest.warns(UserWarning, match="lora_dropout does not act .* weight: mix$"):
        ll.attach(model, ll.LoraConfig(**fields, lora_dropout=0.1))
    ll.detach(model)
    for name in ("a", "b"):
        ll.attach(model, ll.LoraConfig(**fields), name)
    with ll.mixed_batch(model, ["a", "a"]):
        alike = model(IDS)
    ll.activate(model, "a")
    torch.testing.assert_close(alike, model(IDS))
    with ll.mixed_batch(model, ["a", "b"]), pytest.raises(AdapterError, match="weight of mix is"):
        model(IDS)
    ll.detach(model)
    with pytest.raises(ConfigError, match="Reader reads the weight of words itself"):
        ll.attach(model, ll.LoraConfig(**fields, modules_to_save=["words"]))
    model.inner.up = Linear4bit(model.inner.up)
    with pytest.raises(ConfigError, match=r"reads the 4-bit weight of inner\.up itself"):
        ll.attach(model, ll.LoraConfig(r=2, target_modules=["up"]))
    assert not ll.attached(model)
