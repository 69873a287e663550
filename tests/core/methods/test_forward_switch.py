"""A copy answers while its adapter is active, under accelerate's hooks that come and go."""

import itertools

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

import lora_lab as ll
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import assert_changed
from tests.helpers.tiny_models import tiny, tiny_inputs

CONFIGS = {
    "classifier": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "factors elsewhere": ("bert", {"target_modules": ["query", "classifier"]}),
    "tokens": ("gpt2", {"target_modules": ["c_fc"], "trainable_token_indices": [3, 4]}),
}


def attach(model, case) -> None:
    torch.manual_seed(0)
    stirred(ll.attach(model, ll.LoraConfig(r=2, **CONFIGS[case][1]), case.split()[0]))


def hooked(model) -> list:
    parts = (getattr(model, "classifier", None), model.get_input_embeddings())
    return [part for part in parts if part is not None]


def add(model) -> None:
    for part in hooked(model):
        add_hook_to_module(part, AlignDevicesHook(execution_device="cpu"))


def take_off(model) -> None:
    for part in hooked(model):
        remove_hook_from_module(part)


ORDERS = [
    order
    for order in itertools.permutations(("add", "take off", "attach", "detach"))
    if order.index("add") < order.index("take off")
    if order.index("attach") < order.index("detach")
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("case", CONFIGS)
def test_hooks_come_and_go_in_any_order(case, order):
    name = CONFIGS[case][0]
    model, expected = tiny(name), tiny(name)
    batch = tiny_inputs(model)
    before = outputs(model, batch)
    attach(expected, case)
    tuned = outputs(expected, batch)
    assert_changed(tuned, before)
    attached = False
    for step in order:
        if step == "attach":
            attach(model, case)
        elif step == "detach":
            ll.detach(model)
        else:
            (add if step == "add" else take_off)(model)
        attached = (attached or step == "attach") and step != "detach"
        torch.testing.assert_close(outputs(model, batch), tuned if attached else before)
    assert not any("lora_saved" in path for path, _ in model.named_modules())
    assert {path: type(part) for path, part in model.named_modules()} == {
        path: type(part) for path, part in tiny(name).named_modules()
    }


def test_a_second_adapter_trains_whole_what_the_first_has_factors_on():
    model = tiny("bert")
    batch = tiny_inputs(model)
    before = outputs(model, batch)
    add(model)
    answers = {}
    for name in ("classifier", "factors elsewhere"):
        attach(model, name)
        answers[name.split()[0]] = outputs(model, batch)
    take_off(model)
    for name in ("classifier", "factors", "classifier"):
        ll.activate(model, name)
        assert torch.equal(outputs(model, batch), answers[name])
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)
