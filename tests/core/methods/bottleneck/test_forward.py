"""Adapter layers: by hand in float64, and as AdapterHub's library has them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lora_lab as ll
from tests.helpers.adapter_layers import (
    STACKS,
    VARIANTS,
    hooked_by_hand,
    hooks_of,
    places_by_hand,
    stir,
    values_of,
)
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import ARCHITECTURES, MORE_FUSED, tiny, tiny_inputs

RECORDED = Path(__file__).parents[3] / "recorded" / "adapterhub" / "adapterhub.safetensors"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STACKS)
def test_forward_and_gradients_are_those_of_the_formula(name, variant):
    model = tiny(name).double()
    batch = tiny_inputs(model, batch=2)
    drop = {"drop_layers": 0} if variant == "D" else {}
    adapter = ll.attach(model, ll.BottleneckConfig(variant, r=3, **drop))
    stir(adapter)
    paths = [path for _, path in places_by_hand(name, model, variant)]
    values = values_of(adapter, paths)
    assert sum(map(len, values.values())) == len(adapter.state())
    expected = hooked_by_hand(tiny(name).double(), values)(**batch)[0]
    found = model(**batch)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for path, own in values.items():
        for key, value in own.items():
            learnt = adapter.state()[f"{path}.{key}"].grad
            torch.testing.assert_close(learnt, value.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", ["H", "L"])  # P's and D's places are among H's
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE_FUSED])
def test_every_architecture_starts_as_the_base_learns_everywhere_and_is_given_back(name, variant):
    model = tiny(name)
    batch, bare = tiny_inputs(model), outputs(model, tiny_inputs(model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks, flags = hooks_of(model), [p.requires_grad for p in model.parameters()]
    config = ll.BottleneckConfig(variant, r=3)
    counted = ll.budget(model, config).parameters_trainable
    for _ in range(2):
        adapter = ll.attach(model, config, name="one")
        ll.attach(model, config, name="two", activate=False)
        assert torch.equal(outputs(model, batch), bare)
        ll.detach(model, "two")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        blocks, d = len(ll.anatomy(model).rows), model.config.hidden_size
        layers = blocks * (2 if variant == "H" else 1)
        norms = 2 * blocks * d if variant == "L" else 0
        assert trained == adapter.trainable == layers * (2 * d * 3 + 3 + d) + norms == counted
        model.train()(**batch)[0].pow(2).sum().backward()
        for learnt in adapter.parameters_by_location().values():
            assert learnt[0].grad.any()
            assert not learnt[0].any(), "training looks at what starts at zero and moves"
        stir(adapter)
        assert not torch.equal(outputs(model, batch), bare)
        ll.activate(model, None)
        assert torch.equal(outputs(model, batch), bare)
        ll.detach(model)
    assert hooks_of(model) == hooks
    assert [p.requires_grad for p in model.parameters()] == flags
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def recorded():
    with safe_open(RECORDED, "pt") as file:
        sizes = json.loads(file.metadata()["sizes"])
        return sizes, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# What AdapterHub hangs where, and whose output that is.
OURS = {
    "bert": {
        "attention.output.adapters": "attention.output.dense",
        "output.adapters": "output.dense",
    },
    "gpt2": {
        "attention_adapters.adapters": "attn.c_proj",
        "output_adapters.adapters": "mlp.c_proj",
    },
}
LEAVES = {
    "adapter_down.{}.weight": "down",
    "adapter_down.{}.bias": "down_bias",
    "adapter_up.weight": "up",
    "adapter_up.bias": "up_bias",
    "adapter_norm_before.weight": "norm",
    "adapter_norm_before.bias": "norm_bias",
}


@pytest.mark.parametrize("case", ["bert.H", "bert.P", "gpt2.H", "gpt2.P", "gpt2.L"])
def test_adapterhub_answers_and_learns_the_same_from_the_same_weights(case, recorded):
    import transformers

    sizes, tensors = recorded
    kind, variant = case.split(".")
    classes = {"bert": ("BertConfig", "BertModel"), "gpt2": ("GPT2Config", "GPT2Model")}[kind]
    config = getattr(transformers, classes[0])(**sizes[kind])
    model = getattr(transformers, classes[1])._from_config(config).double().eval()
    prefix = f"{kind}.base."
    base = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    model.load_state_dict(base, strict=False)
    assert base.keys() == {key for key, _ in model.named_parameters()}
    adapter = ll.attach(model, ll.BottleneckConfig(variant, r=4))
    stack = {"bert": "encoder.layer", "gpt2": "h"}[kind]
    theirs = {}
    for number in range(2):
        for their_place, our_place in OURS[kind].items():
            for their_leaf, our_leaf in LEAVES.items():
                leaf = their_leaf.format(1 if variant == "L" else 0)
                ours = f"{stack}.{number}" if variant == "L" else f"{stack}.{number}.{our_place}"
                theirs[f"{stack}.{number}.{their_place}.a.{leaf}"] = f"{ours}.{our_leaf}"
    values = {k: t for k, t in tensors.items() if k.startswith(f"{case}.value.")}
    assert len(values) == len(adapter.state())
    with torch.no_grad():
        for key, value in values.items():
            adapter.state()[theirs[key.removeprefix(f"{case}.value.")]].copy_(value)
    found = model(input_ids=tensors[f"{kind}.input_ids"])[0]
    torch.testing.assert_close(found, tensors[f"{case}.output"], rtol=1e-10, atol=1e-10)
    found.pow(2).sum().backward()
    for key in values:
        name = key.removeprefix(f"{case}.value.")
        gradient = tensors[f"{case}.gradient.{name}"]
        torch.testing.assert_close(
            adapter.state()[theirs[name]].grad, gradient, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("variant", ["H", "L", "P"])
def test_half_precision_bases_have_float32_masters(variant):
    exact = tiny("llama").double()
    batch = tiny_inputs(exact)
    reference = ll.attach(exact, ll.BottleneckConfig(variant, r=3))
    stir(reference)
    expected = outputs(exact, batch)
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny("llama").to(dtype)
        adapter = ll.attach(model, ll.BottleneckConfig(variant, r=3))
        assert {p.dtype for p in adapter.parameters()} == {torch.float32}
        adapter.restore([v.float() for v in reference.snapshot()])
        found = outputs(model, batch)
        assert found.dtype == dtype
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 8 * torch.finfo(dtype).eps
    model = tiny("llama")
    adapter = ll.attach(model, ll.BottleneckConfig(variant, r=3))
    adapter.restore([v.float() for v in reference.snapshot()])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).logits
    found.float().sum().backward()
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 8 * torch.finfo(torch.bfloat16).eps
    assert {p.grad.dtype for p in adapter.parameters()} == {torch.float32}


def test_hidden_states_are_recorded_with_adapter_ls_layers():
    model = tiny("llama")
    batch = tiny_inputs(model)
    model(**batch, output_hidden_states=True)  # transformers' own hooks are there first
    adapter = ll.attach(model, ll.BottleneckConfig("L", r=3))
    read = []
    first = adapter.layers["model.layers.0"]
    first.register_forward_hook(lambda _module, _inputs, output: read.append(output))
    stir(adapter)
    with torch.no_grad():
        recorded_states = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(recorded_states[1], read[0])


@pytest.mark.parametrize("variant", ["L", "D"])
def test_compiled_answers_are_the_same(variant):
    model = tiny("gpt2")
    batch = tiny_inputs(model)
    stir(ll.attach(model, ll.BottleneckConfig(variant, r=3)))
    expected = outputs(model, batch)
    with torch.no_grad():
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch).logits
    torch.testing.assert_close(found, expected)
