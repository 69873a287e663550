"""The first pass that goes past an adapted layer says so; what need not run is no matter."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lora_lab as ll
from lora_lab.methods.lora.layers import AdaptedLayer
from lora_lab.methods.lora.shared_input import SharedInput
from lora_lab.methods.lora.watch import Watch
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
    own = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    hooks = [hook for kinds in own for kind in kinds for hook in kind.values()]
    # While there are adapters two kinds stay: of layers that share what they read, and the one look
    # whether the model's modules are the same.
    return all(isinstance(getattr(hook, "__self__", None), SharedInput | Watch) for hook in hooks)


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


class Past(nn.Module):
    """Calls what is within a module, not the module; and a table by its weight."""

    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.head = Block(way="called")

    def forward(self, ids):
        own = dict(self.named_children())
        x = self.body(F.embedding(ids, own["table"].weight))
        return self.head.other(self.head.called(x))


SAVED = ll.LoraConfig(r=2, target_modules=["body"])


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (SAVED.replace(modules_to_save=["head"]), "head"),
        (SAVED.replace(modules_to_save=["table"]), "table"),
        (SAVED.replace(trainable_token_indices={"table": [1]}), "table"),
        (ll.HeadConfig(modules=["head"]), "head"),
        (ll.IA3Config(target_modules=["body"], modules_to_save=["head"]), "head"),
    ],
)
def test_so_does_one_that_goes_past_a_module_that_is_trained_whole(config, place):
    model = Past()
    ids = torch.tensor([[1, 2]])
    line = f"^an adapter does nothing at {place}, .*: Past ran and did not call it; name what it d"
    ll.attach(model, config)
    with pytest.warns(UserWarning, match=line) as caught:
        model(ids)
    assert len(caught) == 1
    ll.detach(model)
    ll.attach(model, SAVED.replace(modules_to_save=["called", "other"]))
    quiet(lambda: model(ids))


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
    assert nothing_left(twin)
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


def counted(layer):
    """Wrap a layer's forward in a function that keeps the one of before."""
    own = layer.forward
    layer.forward = lambda x: own(x)


def hooked(layer):
    add_hook_to_module(layer, ModelHook())


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
@pytest.mark.parametrize("wrap", [counted, hooked])
def test_a_forward_that_is_kept_from_before_the_first_pass_works_ever_after(kind, wrap):
    layer, x = {
        "linear": (nn.Linear(8, 8), X),
        "conv": (nn.Conv1d(8, 8, 1), X[None].mT),
        "embedding": (nn.Embedding(9, 8), torch.arange(5)),
    }[kind]
    plain = copy.deepcopy(layer)
    model = nn.Sequential(layer)
    ll.attach(model, ALL.replace(target_modules=["0"]))
    merged = copy.deepcopy(model)
    ll.merge(merged)
    expected = merged(x)
    kept = layer.forward
    wrap(layer)
    assert not torch.allclose(expected, plain(x))
    for _ in range(3):
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(kept(x), expected)
    ll.merge(model)
    torch.testing.assert_close(kept(x), expected)
    ll.detach(model)
    assert torch.equal(kept(x), plain(x))
    assert torch.equal(model(x), plain(x))


def test_a_hook_that_goes_after_the_first_pass_leaves_no_forward_behind():
    model = nn.Sequential(nn.Linear(8, 8))
    ll.attach(model, ALL.replace(target_modules=["0"]))
    hooked(model[0])
    expected = model(X)
    remove_hook_from_module(model[0])
    torch.testing.assert_close(model(X), expected)
    ll.detach(model)
    assert "forward" not in vars(model[0])


def test_a_parametrization_may_come_before_the_first_pass():
    model = Stack(way="called")
    ll.attach(model, ALL)
    expected = copy.deepcopy(model)(X)
    for block in model.blocks:
        parametrize.register_parametrization(block.other, "weight", nn.Identity())
    torch.testing.assert_close(quiet(lambda: model(X)), expected)
    torch.testing.assert_close(quiet(lambda: model(X)), expected)
    assert nothing_left(model)
