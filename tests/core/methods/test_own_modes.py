"""A run's modes on a model that others set theirs on meanwhile."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lora_lab as ll
from lora_lab.errors import AdapterError
from lora_lab.methods.own_modes import OwnModes, are_training, class_of, is_anothers
from tests.helpers.tiny_models import tiny


def elsewhere(act: Callable[[], Any]) -> Any:
    """Return what another thread is answered."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).eval()


def test_each_sets_its_own_and_reads_its_own():
    model = stack()
    own = OwnModes(model)
    with own.here():
        assert modes(model) == [False] * 4
        model.train()
        assert modes(model) == [True] * 4
        assert elsewhere(lambda: modes(model)) == [False] * 4
        elsewhere(lambda: model[1].train())
        assert elsewhere(lambda: modes(model)) == [False, False, True, False]
        model[2].training = False
        assert modes(model) == [True, True, True, False]
        elsewhere(model.eval)
        assert modes(model) == [True, True, True, False]
        everything = {id(part): part for part in model.modules()}
        assert not are_training(everything)
        model.train()
        assert are_training(everything)
        assert not elsewhere(lambda: are_training(everything))
    assert modes(model) == [False] * 4


def test_a_pass_goes_by_its_threads_modes():
    model, x = stack(), torch.ones(4, 2)
    expected = model(x)
    with OwnModes(model).here():
        model.train()
        assert torch.equal(elsewhere(lambda: model(x)), expected)
        torch.manual_seed(0)
        dropped = model[1](x)
    torch.manual_seed(0)
    assert torch.equal(dropped, nn.functional.dropout(x, 0.5, training=True))


def test_the_model_is_what_it_was_to_whoever_looks_copies_or_pickles():
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q", "embed_tokens"]))
    kinds, text = [type(part) for part in model.modules()], repr(model)
    with OwnModes(model).here():
        model.train()
        assert repr(model) == text
        for part, kind in zip(model.modules(), kinds, strict=True):
            assert isinstance(part, kind)
            assert type(part).__qualname__ == kind.__qualname__
            assert class_of(part) is kind
        copies = [
            make(model)
            for make in (copy.deepcopy, copy.copy, lambda own: pickle.loads(pickle.dumps(own)))
        ]
    assert [type(part) for part in model.modules()] == kinds
    for each in copies:
        assert not each.training
        assert type(each) is type(model)
    expected = [type(part) for part in copy.deepcopy(model).modules()]
    assert [type(part) for part in copies[0].modules()] == expected


def test_adapters_come_and_go_meanwhile():
    model = tiny("llama")
    kinds = [type(part) for part in model.modules()]
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"]), "kept")
    with OwnModes(model).here():
        ll.attach(model, ll.LoraConfig(r=2, target_modules=["v"]), "other", activate=False)
        model(input_ids=torch.arange(4)[None])
    ll.detach(model)
    assert [type(part) for part in model.modules()] == kinds


def test_who_is_lent_the_model_finds_the_runs_modes_and_leaves_none():
    model = stack()
    own = OwnModes(model)
    with own.here():
        model.train()
        elsewhere(lambda: model[0].train())
        lent = own.lend()
        assert elsewhere(lambda: modes(model)) == [True] * 4
        elsewhere(model.eval)
        own.take_back(lent)
        assert modes(model) == [True] * 4
        assert elsewhere(lambda: modes(model)) == [False, True, False, False]
    assert modes(model) == [False, True, False, False]


def test_two_threads_have_two_models():
    one, other = stack(), stack()
    with OwnModes(one).here():
        one.train()

        def trains() -> Any:
            with OwnModes(other).here():
                other.train()
                return modes(one) + modes(other)

        assert elsewhere(trains) == [False] * 4 + [True] * 4
        assert modes(one) + modes(other) == [True] * 4 + [False] * 4


def test_a_module_is_anothers_where_a_run_has_it():
    model = stack()
    with OwnModes(model).here():
        assert not is_anothers(model[0])
        assert elsewhere(lambda: is_anothers(model[0]))
    assert not elsewhere(lambda: is_anothers(model[0]))


def test_a_compiled_model_keeps_its_classes_and_one_set_of_modes():
    model = torch.compile(stack(), backend="eager")
    own = OwnModes(model)
    assert own.shared
    with own.here():
        assert all(class_of(part) is type(part) for part in model.modules())
        model.train()
    assert modes(model) == [True] * len(modes(model))


@pytest.mark.parametrize("wrap", [nn.DataParallel, checkpoint_wrapper])
def test_what_a_wrapper_calls_on_the_same_thread_has_its_own(wrap):
    model = wrap(stack())
    own, x = OwnModes(model), torch.ones(4, 2)
    assert not own.shared
    with own.here():
        model.train()
        elsewhere(model.eval)
        assert all(modes(model))
        assert not any(elsewhere(lambda: modes(model)))
        assert not torch.equal(model(x), elsewhere(lambda: model(x)))
    assert not any(modes(model))


def test_modes_are_here_for_their_thread_and_whoever_has_the_model():
    own = OwnModes(stack())
    with own.here():
        assert own.are_here()
        assert not elsewhere(own.are_here)
        lent = own.lend()
        assert elsewhere(own.are_here)
        own.take_back(lent)
        assert not elsewhere(own.are_here)


def convolving() -> nn.Module:
    made = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(2, 2))
    made.half_scale = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    return made


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to a dtype": lambda model: model.to(torch.float16),
    "float": lambda model: model.float(),  # one of them is bfloat16
    "type": lambda model: model.type(torch.float64),
    "of one layer": lambda model: model[2].half(),
    "to a device": lambda model: model.to("meta"),
    "emptied": lambda model: model.to_empty(device="cpu"),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "from around": lambda model: nn.Sequential(model).half(),
}
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "to its device": lambda model: model.to("cpu"),
    "cpu": lambda model: model.cpu(),
    "one layer's own dtype": lambda model: model[2].float(),
    "a copy": lambda model: copy.deepcopy(model).half(),
    "another": lambda _: convolving().half(),
    "shared": lambda model: model.share_memory(),
}


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def states(model: nn.Module) -> list[Any]:
    return [(t.dtype, t.device, t.stride(), t.tolist()) for t in tensors(model)]


def asked(act: Callable[[Any], Any], model: nn.Module) -> str:
    def attempt() -> str:
        try:
            act(model)
        except AdapterError as error:
            return str(error)
        return ""

    return str(elsewhere(attempt))


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_would_convert_a_runs_weights_is_refused_before_anything_has_changed(name):
    model = convolving()
    before = states(model)
    with OwnModes(model, whose="run x").here():
        assert "would change the weights that run x trains on" in asked(CONVERSIONS[name], model)
        assert states(model) == before
    assert asked(CONVERSIONS[name], model) == ""


@pytest.mark.parametrize("name", HARMLESS)
def test_what_converts_nothing_of_a_runs_is_not(name):
    model = convolving()
    before = states(model)
    with OwnModes(model).here():
        assert asked(HARMLESS[name], model) == ""
        assert states(model) == before


def test_the_run_itself_converts_and_a_pause_may_move_and_not_cast():
    model = convolving()
    own = OwnModes(model, whose="run x")
    with own.here():
        model.double()
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        lent = own.lend()
        before = states(model)
        for name in ("half", "channels last"):
            assert "that run x trains on" in asked(CONVERSIONS[name], model)
        assert states(model) == before
        assert asked(CONVERSIONS["to a device"], model) == ""
        own.take_back(lent)
