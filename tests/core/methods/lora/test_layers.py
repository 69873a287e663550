"""Embeddings, convolutions and tied weights against the layer with W₀ + ΔW built in."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.tiny_models import tiny, tiny_inputs


def random_config(*targets, **changes):
    fields = {"r": 2, "lora_alpha": 6, "init_lora_weights": False, "target_modules": targets}
    return ll.LoraConfig(**{**fields, **changes})


def delta(site):
    return site.scale * site.B.detach() @ site.A.detach()


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (2, 4, 9, 9)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1), (2, 4, 9, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (2, 4, 9, 9)),
    "reflecting": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 9, 9)),
    "channels last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 9, 9)),
    "three-dimensional": (nn.Conv3d(4, 6, (1, 2, 3), groups=2, stride=2), (2, 4, 3, 5, 7)),
    "one-dimensional": (nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular"), (2, 4, 11)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_one_with_the_built_kernel(name):
    layer, shape = CONVOLUTIONS[name]
    layer = copy.deepcopy(layer).double()
    model = Net(layer)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    W0 = layer.weight.detach().clone()
    adapter = ll.attach(model, random_config("layer"))
    (site,) = adapter.sites.values()
    built = copy.deepcopy(CONVOLUTIONS[name][0]).double()
    built.weight.data = W0 + delta(site).view(W0.shape)
    torch.testing.assert_close(model(x), built(x), rtol=1e-10, atol=1e-10)
    ll.merge(model)
    assert type(model.layer) is type(built)
    torch.testing.assert_close(model(x), built(x), rtol=1e-10, atol=1e-10)
    ll.detach(model)
    assert torch.equal(model.layer.weight, W0)


def test_gradients_of_a_convolution_are_those_of_the_built_kernel():
    layer = nn.Conv2d(4, 6, 3, groups=2, dilation=2).double()
    model = Net(layer)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    adapter = ll.attach(model, random_config("layer"))
    (site,) = adapter.sites.values()
    pull = torch.randn_like(model(x))
    found = torch.autograd.grad((model(x) * pull).sum(), (site.A, site.B))
    A, B = site.A.detach().requires_grad_(), site.B.detach().requires_grad_()
    kernel = layer.weight.detach() + (site.scale * B @ A).view(layer.weight.shape)
    y = nn.functional.conv2d(x, kernel, layer.bias.detach(), dilation=2, groups=2)
    expected = torch.autograd.grad((y * pull).sum(), (A, B))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_embedding_is_loralibs():
    loralib = pytest.importorskip("loralib")
    torch.manual_seed(0)
    theirs = loralib.Embedding(20, 8, r=2, lora_alpha=6).double()
    model = Net(nn.Embedding(20, 8)).double()
    model.layer.weight.data = theirs.weight.detach().clone()
    (site,) = ll.attach(model, random_config("layer")).sites.values()
    with torch.no_grad():
        theirs.lora_A.copy_(site.A)
        theirs.lora_B.copy_(site.B)
    ids = torch.tensor([[1, 5, 5], [19, 0, 2]])
    torch.testing.assert_close(model(ids), theirs(ids), rtol=1e-12, atol=1e-12)
    (model(ids) ** 2).sum().backward()
    (theirs(ids) ** 2).sum().backward()
    torch.testing.assert_close(site.token_rows.grad.T, theirs.lora_A.grad)
    torch.testing.assert_close(site.B.grad, theirs.lora_B.grad)
    assert site.token_rows.is_contiguous()


def test_an_untrained_embedding_changes_nothing_and_learns():
    model = Net(nn.Embedding(20, 8))
    ids = torch.tensor([3, 4])
    before = model(ids).detach()
    (site,) = ll.attach(model, random_config("layer", init_lora_weights=True)).sites.values()
    assert torch.equal(model(ids), before)
    (model(ids) ** 2).sum().backward()
    assert site.token_rows.grad[3].any()
    assert not site.token_rows.grad[5].any()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_adapted_at_both_ends_and_once(tied):
    model = tiny("llama").double().eval()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    batch = tiny_inputs(model)
    bare = copy.deepcopy(model)
    adapter = ll.attach(model, random_config("embed_tokens", "q"))
    site = adapter.sites["model.embed_tokens"]
    table = bare.model.embed_tokens.weight
    own = {k: s for k, s in adapter.sites.items() if "q_proj" in k}
    with torch.no_grad():
        table.add_(delta(site).T)  # tied in the copy as well
        for name, q in own.items():
            bare.get_submodule(name).weight.add_(delta(q))
    assert (bare.lm_head.weight is table) == tied
    torch.testing.assert_close(model(**batch).logits, bare(**batch).logits, rtol=1e-9, atol=1e-9)
    parameters = list(adapter.parameters())
    assert len({id(p) for p in parameters}) == len(parameters) == 2 * len(adapter.sites)
    ll.merge(model)
    torch.testing.assert_close(model(**batch).logits, bare(**batch).logits, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert type(model.lm_head) is nn.Linear


def test_all_linear_leaves_both_ends_alone_and_the_anatomy_lists_them():
    model = tiny("llama")
    others = {site.name: site.kind for site in ll.anatomy(model).others}
    assert others == {"model.embed_tokens": "embedding", "lm_head": "linear"}
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear"))
    assert not others.keys() & adapter.sites.keys()


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_options_for_linear_layers_are_refused_elsewhere(changes):
    with pytest.raises(ConfigError, match=r"is for linear layers( and convolutions)?, and model"):
        ll.attach(tiny("llama"), random_config("embed_tokens", **changes))


def test_an_embedding_that_does_more_than_look_up_is_refused():
    model = tiny("opt")
    with pytest.raises(AdapterError, match="embed_positions is an OPTLearned"):
        ll.attach(model, random_config("embed_positions"))
    assert not ll.attached(model)


@pytest.mark.parametrize("target", ["shared", "embed_tokens"])
def test_t5s_embeddings_share_one_weight_and_one_pair_of_factors(target):
    model = tiny("t5").double()
    batch = tiny_inputs(model)
    bare = copy.deepcopy(model)
    (site,) = ll.attach(model, random_config(target)).sites.values()
    with torch.no_grad():
        bare.shared.weight.add_(delta(site).T)
    expected = bare(**batch).logits
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)
    ll.merge(model)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)


def test_a_sparse_embedding_gets_sparse_gradients_of_the_tokens_that_came():
    model = Net(nn.Embedding(20, 8, sparse=True))
    (site,) = ll.attach(model, random_config("layer")).sites.values()
    (model(torch.tensor([3, 4, 4])) ** 2).sum().backward()
    assert site.token_rows.grad.is_sparse
    assert site.token_rows.grad.coalesce().indices().tolist() == [[3, 4]]


KINDS = {
    "fused and embedding": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    "embedding, tied": ("smollm", {"target_modules": ["q_proj", "embed_tokens"]}),
    "T5's three ends": ("t5", {"target_modules": ["q", "shared"]}),
    "convolution": ("vit", {"target_modules": ["q", "patch_embeddings.projection"]}),
    "DoRA": ("llama", {"target_modules": ["q", "v"], "use_dora": True}),
    "W₀'s start": ("llama", {"target_modules": ["q", "v"], "init_lora_weights": "pissa"}),
    "whole modules": ("bert", {"target_modules": ["q"], "modules_to_save": ["classifier"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_layer_is_the_layer(kind):
    name, fields = KINDS[kind]
    model = tiny(name).double()
    inputs = tiny_inputs(model)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    base = model(**inputs).logits
    ll.attach(model, ll.LoraConfig(**{"r": 2, "init_lora_weights": False, **fields}))
    adapted = model(**inputs).logits
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(**inputs).logits, adapted)
    assert {id(p) for p in twin.parameters()}.isdisjoint(map(id, model.parameters()))
    learned = {id(p) for p in ll.attached(twin)["default"].parameters()}
    assert learned == {id(p) for p in twin.parameters() if p.requires_grad}
    ll.merge(twin)
    torch.testing.assert_close(twin(**inputs).logits, adapted, rtol=1e-9, atol=1e-9)
    ll.detach(twin)
    assert torch.equal(twin(**inputs).logits, base)
    assert torch.equal(model(**inputs).logits, adapted)


def test_a_merged_model_is_pickled_with_its_way_back():
    model = tiny("llama")
    inputs = tiny_inputs(model)
    ll.attach(model, random_config("q", "v"))
    adapted = model(**inputs).logits
    ll.merge(model)
    twin = pickle.loads(pickle.dumps(model))
    ll.unmerge(twin)
    assert torch.equal(twin(**inputs).logits, adapted)


WITH_PEFT = {  # which forgets dilation and padding modes
    **{name: CONVOLUTIONS[name] for name in ("plain", "strided", "channels last")},
    "three-dimensional": (nn.Conv3d(4, 6, (1, 2, 3), stride=2, bias=False), (2, 4, 3, 5, 7)),
    "one-dimensional": (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 11)),
}
DORA = {"r": 2, "lora_alpha": 6, "init_lora_weights": False, "use_dora": True}


@pytest.mark.parametrize("name", WITH_PEFT)
def test_doras_convolution_is_pefts(name, tmp_path):
    """Outputs, gradients, merged weights, files both ways."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    layer, shape = WITH_PEFT[name]
    bare = Net(copy.deepcopy(layer).double())
    x = torch.randn(shape, dtype=torch.float64)
    theirs = get_peft_model(copy.deepcopy(bare), LoraConfig(target_modules=["layer"], **DORA))
    theirs.double()
    peft = theirs.base_model.model.layer
    lengths = peft.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        lengths.mul_(torch.rand_like(lengths) + 0.5)
    theirs.save_pretrained(tmp_path / "theirs")
    model = copy.deepcopy(bare)
    (site,) = ll.load_adapter(model, tmp_path / "theirs").sites.values()
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-10, atol=1e-10)
    pull = torch.randn_like(model(x))
    found = torch.autograd.grad((model(x) * pull).sum(), (site.A, site.B, site.magnitude))
    factors = peft.lora_A["default"].weight, peft.lora_B["default"].weight, lengths
    expected = torch.autograd.grad((theirs(x) * pull).sum(), factors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.view(one.shape), rtol=1e-9, atol=1e-9)
    y = theirs(x).detach()
    ll.save_adapter(model, tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path / "ours")
    torch.testing.assert_close(again(x), y, rtol=1e-10, atol=1e-10)
    ll.merge(model)
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(theirs.merge_and_unload()(x), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("name", ["plain", "dilated", "reflecting", "one-dimensional"])
def test_doras_convolution_is_the_one_with_the_built_kernel(name, batch):
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[name]
    built = copy.deepcopy(layer).double()
    model = Net(copy.deepcopy(built))
    x = torch.randn(shape if batch else shape[1:], dtype=torch.float64)
    (site,) = ll.attach(model, ll.LoraConfig(target_modules=["layer"], **DORA)).sites.values()
    with torch.no_grad():
        site.magnitude.mul_(torch.rand_like(site.magnitude) + 0.5)
    W = built.weight.detach() + delta(site).view(built.weight.shape)
    ones = [1] * (W.ndim - 1)
    built.weight.data = W * (site.magnitude.detach() / W.flatten(1).norm(dim=1)).view(-1, *ones)
    torch.testing.assert_close(model(x), built(x), rtol=1e-9, atol=1e-9)
    ll.merge(model)
    torch.testing.assert_close(model(x), built(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["grouped", "depthwise", "three-dimensional"])
def test_doras_lengths_of_a_grouped_convolution_are_refused(name):
    model = Net(copy.deepcopy(CONVOLUTIONS[name][0]))
    with pytest.raises(ConfigError, match="no lengths for a grouped convolution, in PEFT neither"):
        ll.attach(model, ll.LoraConfig(r=2, target_modules=["layer"], use_dora=True))
    assert ll.attached(model) == {}
