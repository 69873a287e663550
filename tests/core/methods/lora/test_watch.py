"""The first pass that goes past an adapted layer says so; what need not run is no matter."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import lora_lab as ll
from lora_lab.methods.lora.layers import AdaptedLayer
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_batches import tiny_batch
from tests.helpers.tiny_experts import tiny_experts, tokens
from tests.helpers.tiny_models import tiny, tiny_inputs

ALL = ll.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Takes its weights by ways that no look at the code tells."""

    def __init__(self, way="past"):
        super().__init__()
        self.called, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.way = way

    def forward(self, x):
        x = self.called(x)
        if self.way == "past":
            (weight,) = (part.weight for name, part in self.named_children() if name == "other")
            return F.linear(x, weight)
        if self.way == "directly":
            return self.other.forward(x)
        return x if self.way == "not" else self.other(x) * self.other.weight.dtype.itemsize


class Stack(nn.Module):
    def __init__(self, block=Block, **fields):
        super().__init__()
        self.blocks = nn.ModuleList(block(**fields) for _ in range(3))

    def forward(self, x, skip=()):
        for number, block in enumerate(self.blocks):
            x = x if number in skip else block(x)
        return x


class Outer(nn.Module):
    """Reads the weight of a module's layer in that module's place."""

    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        inner = self.inner
        return F.linear(inner.called(x), inner.other.weight)


class Experts(nn.Module):
    """Every expert runs if it has a token; the heads stand in a list of their own."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        return self.heads[0](self.experts[1](x))


def quiet(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run()


def nothing_left(model):
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    return not hooks


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Stack(), r"at blocks\.0\.other, nor .*: blocks\.0 reads its weight and does not call"),
        (Stack(way="not"), r"at blocks\.0\.other, .*: blocks\.0 ran and did not call it"),
        (Outer(), r"at inner\.other, .*: Outer reads its weight and does not call it"),
        (Block(way="not"), r"at other, .*: Block ran and did not call it"),
    ],
)
def test_a_pass_that_goes_past_an_adapted_layer_warns_once_by_name(model, line):
    model = copy.deepcopy(model)
    ll.attach(model, ALL)
    with pytest.warns(UserWarning, match=f"^an adapter does nothing {line}") as caught:
        model(X)
    assert len(caught) == 1
    quiet(lambda: model(X))
    assert not model._forward_hooks
    ll.detach(model)
    assert nothing_left(model)
    quiet(lambda: model(X))


@pytest.mark.parametrize("way", ["directly", "with a look at the weight"])
def test_every_way_to_call_a_layer_will_do(way):
    model = Stack(way=way)
    quiet(lambda: ll.attach(model, ALL))
    quiet(lambda: model(X))
    assert nothing_left(model)
    assert all(type(b.other).__mro__[1] is AdaptedLayer for b in model.blocks)  # nobody watches


def test_what_does_not_run_in_a_pass_is_no_matter():
    experts = Experts()
    dropped = Stack(way="called")
    t5, clip = tiny("t5"), _clip()
    mixture = tiny_experts("mixtral")
    passes = {
        experts: lambda: experts(X),
        dropped: lambda: dropped(X, skip={1}),
        t5: lambda: t5.encoder(input_ids=tokens()),
        clip: lambda: clip.get_text_features(input_ids=tokens()),
        mixture: lambda: mixture.generate(tokens(1, 2), max_new_tokens=2),
    }
    for model, run in passes.items():
        ll.attach(model, ALL.replace(target_modules=r".*\.(0|1|called|other|[qkvo]|._proj)"))
        quiet(run)
    quiet(lambda: dropped(X))
    quiet(lambda: t5(**tiny_inputs(t5)))
    assert nothing_left(dropped)
    assert nothing_left(t5)


def _clip():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 4
    text = {**sizes, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    images = {**sizes, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=images)
    return transformers.CLIPModel(config)


def test_weights_that_are_looked_at_between_passes_are_no_matter():
    model = Experts()
    ll.attach(model, ALL)
    assert all(layer.weight.device.type == "cpu" for layer in model.heads)
    quiet(lambda: model(X))


def test_a_pass_that_broke_off_is_no_pass():
    model = Stack()
    ll.attach(model, ALL)
    with pytest.raises(RuntimeError, match="shape"):
        model(X[:, :3])
    with pytest.warns(UserWarning, match="does nothing at blocks"):
        model(X)


def test_copies_merging_and_detaching_leave_nothing_behind():
    model = Stack(way="called")
    before = [copy.copy(part.__dict__) for part in model.modules()]
    classes = [type(part) for part in model.modules()]
    ll.attach(model, ALL)
    twin = pickle.loads(pickle.dumps(model))
    expected = copy.deepcopy(model)(X)
    torch.testing.assert_close(twin(X), expected)
    torch.testing.assert_close(model(X), expected)
    ll.merge(model)
    ll.unmerge(model)
    quiet(lambda: model(X))
    assert nothing_left(model)
    ll.attach(model, ALL, "second")
    ll.detach(model)
    assert [type(part) for part in model.modules()] == classes
    assert [part.__dict__.keys() for part in model.modules()] == [d.keys() for d in before]
    assert nothing_left(model)


def test_routed_experts_take_more_than_an_x_also_in_the_first_pass():
    model = tiny_architecture("mixtral")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"], target_parameters=["gate_up_proj"]))
    model(**tiny_batch(model))
