"""Adapter layers: by hand in float64, as AdapterHub's library has them, and beside LoRA."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import lora_lab as ll
from lora_lab.budget.dry_run import dry_run
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import attached
from tests.core.methods.lora.test_quantized import quantized
from tests.core.methods.test_api import outputs
from tests.helpers.measured_step import BATCH, LENGTH, gpt2, llama
from tests.helpers.tiny_models import ARCHITECTURES, MORE_FUSED, tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task

RECORDED = Path(__file__).parents[3] / "recorded" / "adapterhub" / "adapterhub.safetensors"
VARIANTS = ["H", "L", "P", "D"]
# {architecture: [(a stack's blocks, what closes attention, what closes the MLP)]}
STACKS = {
    "gpt2": [("transformer.h", "attn.c_proj", "mlp.c_proj")],
    "llama": [("model.layers", "self_attn.o_proj", "mlp.down_proj")],
    "falcon-multi-query": [
        ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    ],
    "opt": [("model.decoder.layers", "self_attn.out_proj", "fc2")],
    "bert": [("bert.encoder.layer", "attention.output.dense", "output.dense")],
    "t5": [
        ("encoder.block", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
        ("decoder.block", "layer.0.SelfAttention.o", "layer.2.DenseReluDense.wo"),
    ],
}


def places_by_hand(name, model, variant):
    """Return [(number of the block, path)] by the table above."""
    found = []
    for stack, attention, mlp in STACKS[name]:
        for number in range(len(model.get_submodule(stack))):
            block = f"{stack}.{number}"
            closing = {"H": [attention, mlp], "L": [""]}.get(variant, [mlp])
            found += [(number, f"{block}.{leaf}".rstrip(".")) for leaf in closing]
    return found


def layer_by_hand(x, values):
    """Return x + W_up·max(0, W_down·x + b) + c, or with LN(x) below W_down."""
    read = x
    if "norm" in values:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        read = (x - mean) / (variance + 1e-5).sqrt() * values["norm"] + values["norm_bias"]
    hidden = (read @ values["down"].T + values["down_bias"]).clamp(min=0)
    return x + hidden @ values["up"].T + values["up_bias"]


def hooked_by_hand(model, values):
    """Hang the formula behind modules; values: {path: {name: tensor}}."""

    def behind(own):
        def hook(_module, _inputs, output):
            if isinstance(output, tuple):
                return (layer_by_hand(output[0], own), *output[1:])
            return layer_by_hand(output, own)

        return hook

    for path, own in values.items():
        model.get_submodule(path).register_forward_hook(behind(own))
    return model


def stir(adapter, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def values_of(adapter, paths):
    """Return {path: {name: copy that takes a gradient}} of an adapter's layers."""
    state = adapter.state()
    names = ("down", "down_bias", "up", "up_bias", "norm", "norm_bias")
    return {
        path: {
            name: state[key].detach().double().clone().requires_grad_()
            for name in names
            if (key := f"{path}.{name}") in state
        }
        for path in paths
    }


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


# What it computes ---------------------------------------------------------------------------------


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


# AdapterDrop --------------------------------------------------------------------------------------


def dropping(name, layers=4, **fields):
    """Return (model, stirred adapter, {n: outputs by hand with the lowest n blocks' left out})."""
    # Without dropout: only blocks shall be drawn.
    sizes = {"dropout_rate": 0.0} if name == "t5" else {"num_hidden_layers": layers}
    model = tiny(name, **sizes).double()
    adapter = ll.attach(model, ll.BottleneckConfig("D", r=3, **fields))
    stir(adapter)
    batch = tiny_inputs(model)
    places = places_by_hand(name, model, "D")
    shortest = min(len(model.get_submodule(stack)) for stack, _, _ in STACKS[name])
    expected = {}
    for n in range(shortest):
        kept = values_of(adapter, [path for number, path in places if number >= n])
        expected[n] = outputs(hooked_by_hand(tiny(name, **sizes).double(), kept), batch)
    return model, adapter, batch, expected


@pytest.mark.parametrize(
    ("name", "fields", "n"),
    [
        ("llama", {}, 3),  # 5, but at most all but one of 4
        ("llama", {"drop_layers": 2}, 2),
        ("llama", {"drop_layers": 0}, 0),
        ("bert", {"drop_layers": 1}, 1),
        ("t5", {}, 1),  # of both stacks, the shorter of which has 2 blocks
    ],
)
def test_the_lowest_blocks_answer_without_their_adapters(name, fields, n):
    model, _, batch, expected = dropping(name, **fields)
    torch.testing.assert_close(outputs(model, batch), expected[n], rtol=1e-10, atol=1e-10)


def test_five_blocks_are_left_out_where_there_are_enough():
    model, _, batch, expected = dropping("gpt2", layers=7)
    torch.testing.assert_close(outputs(model, batch), expected[5], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_training_leaves_out_a_random_number_of_blocks_drawn_once_a_pass(name):
    model, _, batch, expected = dropping(name)
    model.train()

    def passes(seed, count):
        torch.manual_seed(seed)
        seen = []
        for _ in range(count):
            with torch.no_grad():
                found = model(**batch)[0]
            seen += [n for n, own in expected.items() if torch.allclose(found, own, atol=1e-9)]
        return seen

    seen = passes(0, 200)
    assert len(seen) == 200, "each is one of the models with n blocks left out"
    counts = [seen.count(n) for n in expected]
    share, spread = 200 / len(expected), math.sqrt(200 / len(expected))
    assert all(abs(count - share) < 4 * spread for count in counts), counts
    assert passes(0, 20) == seen[:20]
    assert passes(1, 20) != seen[:20]


def test_checkpointed_blocks_are_recomputed_with_the_same_draw():
    gradients = []
    for checkpointing in (False, True):
        model = tiny("llama", num_hidden_layers=4).double()
        adapter = ll.attach(model, ll.BottleneckConfig("D", r=3))
        stir(adapter)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(5)
        found = []
        for _ in range(6):
            model.zero_grad(set_to_none=True)
            model(**tiny_inputs(model))[0].pow(2).sum().backward()
            found.append([p.grad for p in adapter.parameters()])
        gradients.append(found)
    missing = {sum(g is None for g in step) for step in gradients[0]}
    assert len(missing) > 1, "some passes leave out more than others"
    for plain, again in zip(*gradients, strict=True):
        for one, other in zip(plain, again, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_only_the_active_adapter_draws():
    model = tiny("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    ll.attach(model, ll.BottleneckConfig("D", r=3), name="d")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"]), name="lora")
    before = torch.get_rng_state()
    model(**tiny_inputs(model))
    assert torch.equal(torch.get_rng_state(), before)
    ll.activate(model, "d")
    model(**tiny_inputs(model))
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_dry_run_draws_nothing_and_takes_every_layer_for_present():
    model, before = llama(), torch.get_rng_state()
    peaks = {
        variant: dry_run(model, ll.BottleneckConfig(variant, r=4), batch_size=2).peak
        for variant in "PD"
    }
    assert peaks["D"] == peaks["P"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_forecast_is_close_to_the_dry_run(make, variant):
    model, config = make(), ll.BottleneckConfig(variant, r=16)
    sizes = {"batch_size": BATCH, "sequence_length": LENGTH}
    found = ll.budget(model, config, **sizes).adapted.total
    assert found == pytest.approx(dry_run(model, config, **sizes).peak, rel=0.01)


# Beside others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
@pytest.mark.parametrize("variant", ["H", "L"])
@pytest.mark.parametrize("lora_first", [True, False])
def test_combined_with_lora_on_the_very_same_matrices(name, variant, lora_first):
    lora = ll.LoraConfig(r=2, lora_alpha=6, target_modules=["o", "down"], init_lora_weights=False)
    configs = [lora, ll.BottleneckConfig(variant, r=3)]
    model = tiny(name).double()
    batch = tiny_inputs(model)
    combined = ll.attach(model, configs if lora_first else configs[::-1])
    stir(combined)
    parts = {part.method: part for part in combined.adapters}
    base = tiny(name).double()
    for site in parts["LoRA"].sites.values():
        weight = base.get_submodule(site.site.module).weight
        delta = 3.0 * site.B.detach() @ site.A.detach()
        weight.data += delta.T if site.site.transposed else delta
    paths = [path for _, path in places_by_hand(name, model, variant)]
    values = values_of(parts[f"Adapter^{variant}"], paths)
    expected = outputs(hooked_by_hand(base, values), batch)
    torch.testing.assert_close(outputs(model, batch), expected, rtol=1e-9, atol=1e-9)
    learnt = set(map(id, combined.parameters()))
    assert {id(p) for p in model.parameters() if p.requires_grad} == learnt
    bare = outputs(tiny(name).double(), batch)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), bare)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_of_the_model_is_its_own(variant):
    model = tiny("llama")
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    stir(ll.attach(model, ll.BottleneckConfig(variant, r=3)))
    before = outputs(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, batch), before)
    for parameter in attached(twin)["default"].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(outputs(twin, batch), bare)
    assert torch.equal(outputs(model, batch), before)
    stir(attached(twin)["default"])
    ll.activate(twin, None)
    assert torch.equal(outputs(twin, batch), bare)
    ll.detach(twin)
    assert not [m for m in twin.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(outputs(model, batch), before)


def test_another_adapters_merge_leaves_it_as_it_was():
    model = tiny("llama")
    batch = tiny_inputs(model)
    stir(ll.attach(model, ll.BottleneckConfig("H", r=3), name="h"))
    before = outputs(model, batch)
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False, target_modules=["o"]), name="lora")
    with_lora = outputs(model, batch)
    ll.merge(model, "lora")
    torch.testing.assert_close(outputs(model, batch), with_lora)
    ll.activate(model, "lora")
    ll.unmerge(model)
    ll.activate(model, "h")
    assert torch.equal(outputs(model, batch), before)


def test_learned_activations_and_adapter_l_hang_on_the_same_blocks():
    model = tiny("llama")
    both = ll.attach(model, [ll.BottleneckConfig("L", r=3), ll.PrefixLayerConfig(2, 0)])
    learnt = set(map(id, both.parameters()))
    assert {id(p) for p in model.parameters() if p.requires_grad} == learnt


def test_it_stands_behind_packed_weights():
    model = quantized()
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    adapter = ll.attach(model, ll.BottleneckConfig("H", r=3))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert torch.equal(outputs(model, batch), bare)
    model(**batch).logits.pow(2).sum().backward()
    assert all(learnt[0].grad.any() for learnt in adapter.parameters_by_location().values())


def test_two_adapter_layers_at_one_place_are_refused():
    model = tiny("llama")
    with pytest.raises(ConfigError, match="both claim the place after the MLP of layer 0"):
        ll.attach(model, [ll.BottleneckConfig("H"), ll.BottleneckConfig("P")])
    assert not attached(model)


@pytest.mark.parametrize("configs", [None, ll.LoraConfig(r=2, init_lora_weights=False)])
def test_merging_is_refused_and_nothing_changes(configs):
    model = tiny("llama")
    batch = tiny_inputs(model)
    own = ll.BottleneckConfig("P", r=3)
    stir(ll.attach(model, own if configs is None else [configs, own]))
    before = outputs(model, batch)
    with pytest.raises(AdapterError, match=r"Adapter\^P cannot be merged: no W₀ can hold the nonl"):
        ll.merge(model)
    assert torch.equal(outputs(model, batch), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_answers_the_same(variant, tmp_path):
    model = tiny("t5")
    batch = tiny_inputs(model)
    adapter = ll.attach(model, ll.BottleneckConfig(variant, r=3))
    stir(adapter)
    before = outputs(model, batch)
    ll.save_adapter(model, tmp_path / "adapter")
    other = tiny("t5")
    loaded = ll.load_adapter(other, tmp_path / "adapter")
    assert loaded.config == adapter.config
    assert torch.equal(outputs(other, batch), before)
    with pytest.raises(AdapterError, match="load it onto the base it was made for"):
        ll.load_adapter(tiny("llama"), tmp_path / "adapter")


def test_generation_with_a_cache_is_generation_without():
    model = tiny("llama")
    stir(ll.attach(model, ll.BottleneckConfig("H", r=3)))
    batch = tiny_inputs(model, length=5)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(**batch, use_cache=False, **settings))


@pytest.mark.parametrize(("variant", "checkpointing"), [("H", False), ("D", True)])
def test_a_run_trains_every_layer_and_leaves_the_base(variant, checkpointing, tmp_path):
    lm = tiny_lm()
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    run = ll.train(
        lm,
        tiny_task(),
        ll.BottleneckConfig(variant, r=8),
        output_dir=tmp_path,
        max_steps=15,
        learning_rate=1e-2,
        eval_examples=0,
        gradient_checkpointing=checkpointing,
    )
    losses = [loss for _, loss in run.result(120).losses]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    (adapter,) = attached(lm.model).values()
    assert all(layer.up.any() and layer.up_bias.any() for layer in adapter.layers.values())
    ll.detach(lm.model)
    assert all(torch.equal(value, before[key]) for key, value in lm.model.state_dict().items())


# Where it stands ----------------------------------------------------------------------------------


def test_a_mixture_of_experts_gets_its_layer_behind_the_whole_mixture():
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        experts_implementation="eager",  # the default has no float64
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM._from_config(config).double().eval()
    paths = [f"model.layers.{n}.{leaf}" for n in (0, 1) for leaf in ("self_attn.o_proj", "mlp")]
    batch = tiny_inputs(model)
    adapter = ll.attach(model, ll.BottleneckConfig("H", r=3))
    stir(adapter)
    values = values_of(adapter, paths)
    found = outputs(model, batch)
    ll.detach(model)
    expected = outputs(hooked_by_hand(model, values), batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Odd(nn.Module):
    """A language model whose blocks have attention and nothing else."""

    def __init__(self):
        super().__init__()
        self.config = tiny("llama").config
        attention = tiny("llama").model.layers[0].self_attn
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": attention})])


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (lambda: tiny("llama"), ll.BottleneckConfig(r=33), "r is 33 and the model is 32 wide; use"),
        (
            lambda: tiny("t5"),
            ll.BottleneckConfig("D", drop_layers=2),
            "drop_layers is 2 and the model has 2 blocks; use a drop_layers of at most 1",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
            ll.BottleneckConfig("P", r=2),
            "Adapter^P needs the width of the model's blocks, and its config does not tell; use L",
        ),
    ],
)
def test_what_cannot_be_is_refused_alike_by_attach_and_budget(make, config, message):
    model = make()
    keys = list(model.state_dict())
    for refused in (ll.attach, ll.budget):
        with pytest.raises(ConfigError) as caught:
            refused(model, config)
        assert message in str(caught.value)
    assert list(model.state_dict()) == keys
    assert not attached(model)


def test_a_block_without_an_mlp_is_named():
    message = r"Adapter\^P finds no output of the MLP of width 32 in layer 0; use LoRA"
    with pytest.raises(ConfigError, match=message):
        ll.attach(Odd(), ll.BottleneckConfig("P", r=2))
