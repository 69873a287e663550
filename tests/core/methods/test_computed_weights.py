"""Layers whose weight is computed for every pass: merged into where that holds, else refused."""

import copy
import functools

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lora_lab as ll
from lora_lab.errors import AdapterError

X = {
    "linear": (nn.Linear(8, 8), torch.randn(3, 8)),
    "conv": (nn.Conv1d(8, 8, 3, groups=2), torch.randn(2, 8, 9)),
    "embedding": (nn.Embedding(8, 8), torch.arange(8).view(2, 4)),
}


class Twice(nn.Module):
    def forward(self, w):
        return 2 * w

    def right_inverse(self, w):
        return w / 2


class TwiceForward(nn.Module):
    def forward(self, w):
        return 2 * w


class Lower(nn.Module):
    def forward(self, w):
        return w.tril()

    def right_inverse(self, w):
        return w.tril()


def parametrized(*kinds):
    def apply(layer):
        for kind in kinds:
            parametrize.register_parametrization(layer, "weight", kind())
        return layer

    return apply


SERVED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm over columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "old weight_norm": nn.utils.weight_norm,
    "old weight_norm of the whole": lambda layer: nn.utils.weight_norm(layer, dim=None),
    "with an inverse": parametrized(Twice),
    "two on each other": lambda layer: parametrized(Twice)(parametrizations.weight_norm(layer)),
}
REFUSED = {
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "without an inverse": parametrized(TwiceForward),
    "a part of the weight": parametrized(Lower),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


class Wrapped(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def adapted(kind, make, **fields):
    """Return a model with such a layer, its input, and an adapter on it that acts."""
    layer, x = X[kind]
    model = Wrapped(make(copy.deepcopy(layer).double())).eval()
    torch.manual_seed(0)
    options = {"r": 2, "target_modules": ["layer"], "init_lora_weights": False, **fields}
    return (
        model,
        x.double() if x.is_floating_point() else x,
        ll.attach(model, ll.LoraConfig(**options)),
    )


def expected(model, x, adapter):
    """What the base's forward gives on a plain layer that holds the built W₀ + ΔW."""
    (site,) = adapter.sites.values()
    ll.activate(model, None)
    bare = model.layer(x)
    W0 = model.layer.weight.detach()
    ll.activate(model, "default")
    delta = (site.scale * site.B @ site.A).detach()
    delta = delta.T if isinstance(model.layer, nn.Embedding) else delta.view(W0.shape)
    kind = next(k for k, (layer, _) in X.items() if isinstance(model.layer, type(layer)))
    plain = copy.deepcopy(X[kind][0]).double()
    plain.weight.data = W0.clone()
    if getattr(model.layer, "bias", None) is not None:
        plain.bias.data = model.layer.bias.detach().clone()
    torch.testing.assert_close(plain(x), bare, rtol=1e-12, atol=1e-12)
    plain.weight.data = W0 + delta
    return plain(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", X)
@pytest.mark.parametrize("name", SERVED)
def test_sources_are_set_so_that_the_layer_computes_with_the_sum(name, kind):
    model, x, adapter = adapted(kind, SERVED[name])
    before = {k: v.clone() for k, v in model.state_dict().items() if ".lora." not in k}
    y = expected(model, x, adapter)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    model(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())
    W0 = adapter.base_weight("layer")
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    assert torch.equal(adapter.base_weight("layer"), W0), "also while it is merged"
    ll.detach(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("kind", X)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_compute_with_the_sum_is_refused_and_nothing_changed(name, kind):
    model, x, adapter = adapted(kind, REFUSED[name])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    y = expected(model, x, adapter)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    model(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())
    for keep in (True, False):
        with pytest.raises(AdapterError, match="layer has no weight of its own: it is computed"):
            ll.merge(model, keep_original=keep)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_dora_is_merged_into_a_normalized_weight():
    model, x, _ = adapted("linear", SERVED["old weight_norm"], use_dora=True)
    y = model(x)
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


class Quantizing(nn.Linear):
    def forward(self, x):
        step = self.weight.abs().max() / 7
        return nn.functional.linear(x, (self.weight / step).round() * step, self.bias)


class Packed(nn.Linear):
    def __init__(self, *shape):
        super().__init__(*shape)
        self.register_buffer("packed", self.weight.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.packed.to(x), self.bias)


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, w, self.bias)


class Product(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "served"),
    [
        (Quantizing(8, 8), False),
        (Packed(8, 8), False),
        (Standardized(4, 6, 3), False),
        (Product(8, 8), True),
    ],
)
def test_a_layer_of_another_forward_is_tried_before_it_is_merged_into(layer, served, dtype):
    model = Wrapped(copy.deepcopy(layer)).to(dtype)
    x = torch.randn((3, 8) if isinstance(layer, nn.Linear) else (1, 4, 5, 5), dtype=dtype)
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))
    random = torch.get_rng_state()
    y = model(x)
    if served:
        ll.merge(model)
        assert torch.equal(torch.get_rng_state(), random)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            model(x), y, rtol=tolerance, atol=tolerance * float(y.detach().abs().max())
        )
        return
    with pytest.raises(AdapterError, match=r"is a .*, whose output is not the product with its"):
        ll.merge(model)
    assert torch.equal(model(x), y)


def doubled(forward, x):
    return 2 * forward(x)


def on_a_grid(forward, x):
    return forward((x * 4).round() / 4)


def counted(forward, x):
    return forward(x)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(4, 6, 3), Product(8, 8)])
@pytest.mark.parametrize(("patch", "served"), [(doubled, 0), (on_a_grid, 0), (counted, 1)])
def test_a_layer_whose_forward_was_patched_is_tried_before_it_is_merged_into(layer, patch, served):
    model = Wrapped(copy.deepcopy(layer))
    model.layer.forward = functools.partial(patch, model.layer.forward)
    x = torch.randn((3, 8) if isinstance(layer, nn.Linear) else (1, 4, 5, 5))
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))
    y = model(x)
    if not served:
        with pytest.raises(AdapterError, match="with a forward of its own, whose output is not"):
            ll.merge(model)
        assert torch.equal(model(x), y)
        return
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


def test_a_layer_of_zeros_is_merged_into_whatever_its_forward():
    model = Wrapped(nn.Linear(8, 8))
    nn.init.zeros_(model.layer.weight)
    model.layer.forward = functools.partial(counted, model.layer.forward)
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))
    x = torch.randn(3, 8)
    y = model(x)
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", [*SERVED, *REFUSED])
def test_such_a_layer_trained_whole_answers_as_its_copy_does(name):
    make = {**SERVED, **REFUSED}[name]
    model = nn.Sequential(nn.Linear(8, 8), make(nn.Linear(8, 8))).double().eval()
    x = X["linear"][1].double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = ll.LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"])
    adapter = ll.attach(model, config)
    model(x).pow(2).sum().backward()
    with torch.no_grad():
        for p in adapter.saved.parameters():
            assert p.grad.abs().sum() > 0
            p.sub_(0.01 * p.grad)
    y = adapter.saved.copies["1"](nn.functional.linear(x, model[0].weight, model[0].bias))
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    ll.detach(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_a_speech_models_positional_convolution_is_exported_as_merged(tmp_path):
    config = transformers.Wav2Vec2Config(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.Wav2Vec2ForCTC(config).eval()
    x = torch.randn(1, 400)
    fields = {"target_modules": ["pos_conv_embed.conv"], "init_lora_weights": False}
    ll.attach(model, ll.LoraConfig(r=2, **fields))
    y = model(input_values=x).logits
    ll.export_merged(model, tmp_path / "out")
    again = transformers.AutoModelForCTC.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(input_values=x).logits, y, rtol=1e-4, atol=1e-5)
    ll.activate(model, None)
    assert not torch.allclose(model(input_values=x).logits, y, atol=1e-3), "ΔW must matter"


@pytest.mark.parametrize("name", ["weight_norm", "with an inverse", "spectral_norm", "orthogonal"])
def test_what_multiplies_outputs_is_merged_or_refused_alike(name):
    make = {**SERVED, **REFUSED}[name]
    model = Wrapped(make(nn.Linear(8, 8))).double().eval()
    x = X["linear"][1].double()
    bare = model(x)
    adapter = ll.attach(model, ll.IA3Config(target_modules=["layer"]))
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.linspace(0.5, 2, 8).view_as(p))
    y = bare * torch.linspace(0.5, 2, 8)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    if name in REFUSED:
        with pytest.raises(AdapterError, match="layer has no weight of its own: it is computed"):
            ll.merge(model)
    else:
        ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("targets", [["a"], ["b"], ["a", "b"]])
@pytest.mark.parametrize("config", [ll.LoraConfig(r=2, init_lora_weights=False), ll.IA3Config()])
def test_a_weight_of_two_layers_is_not_merged_into(config, targets):
    model, x = Sharing(), torch.randn(3, 4)
    before, bare = copy.deepcopy(model.state_dict()), model(x)
    ll.attach(model, config.replace(target_modules=targets))
    y = model(x)
    with pytest.raises(
        AdapterError, match=r"(a and b|b and a) share one weight, which cannot hold"
    ):
        ll.merge(model)
    assert torch.equal(model(x), y)
    ll.detach(model)
    assert torch.equal(model(x), bare)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_layer_of_two_names_is_merged_once():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(3, 4)
    model.append(model[0])
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    y = model(x)
    ll.merge(model)
    torch.testing.assert_close(model(x), y)


def test_what_the_model_does_not_hold_is_written_nowhere(monkeypatch, tmp_path):
    # Of whatever method: a merged weight for a tensor that is made anew for every pass.
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    )
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["c_attn"]))
    before = copy.deepcopy(model.state_dict())
    adapter = ll.attached(model)["default"]
    lost = [(torch.zeros(8, 8), torch.ones(8, 8))]
    monkeypatch.setattr(adapter, "merged_weights", lambda *_: iter(lost))
    with pytest.raises(AdapterError, match=r"LoRA would write a \(8, 8\) into a tensor that the"):
        ll.merge(model)
    with pytest.raises(AdapterError, match=r"changes a \(8, 8\) that this model does not save"):
        ll.export_merged(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
