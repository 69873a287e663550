"""AdapterDrop: which blocks go without their layers, in training and in the forecast."""

import math

import pytest
import torch

import lora_lab as ll
from lora_lab.budget.dry_run import dry_run
from tests.helpers.adapter_layers import (
    STACKS,
    VARIANTS,
    hooked_by_hand,
    places_by_hand,
    stir,
    values_of,
)
from tests.helpers.checkpointing import checkpoint
from tests.helpers.lora_outputs import outputs
from tests.helpers.measured_step import BATCH, LENGTH, gpt2, llama
from tests.helpers.tiny_models import tiny, tiny_inputs


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
            checkpoint(model, use_reentrant=False)
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
