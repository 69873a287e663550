"""Gradients that other threads neither see nor change."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_lab._util.own_gradients import OwnGradients
from lora_lab.errors import AdapterError


class Threads:
    """This thread's gradients, and what another one does meanwhile."""

    def __init__(self, **options: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        mine = threading.get_ident()
        self.own = OwnGradients(lambda: threading.get_ident() == mine, "run x", **options)
        self.own.follow(self.model.parameters())
        self.model(torch.ones(2, 3)).sum().backward()

    @property
    def gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def elsewhere(self, act: Callable[[nn.Module], Any]) -> Any:
        found: list[Any] = []

        def asked() -> None:
            try:
                found.append(act(self.model))
            except AdapterError as error:
                found.append(error)

        thread = threading.Thread(target=asked)
        thread.start()
        thread.join()
        return found[0]


def by_hand(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


CELLS: dict[str, Callable[[nn.Module], Any]] = {
    "zero_grad": lambda model: model.zero_grad(),
    "to zeros": lambda model: model.zero_grad(set_to_none=False),
    "by hand": by_hand,
    "of the second layer": lambda model: model[1].zero_grad(),
    "an optimizer's": lambda model: torch.optim.SGD(model.parameters(), 1.0).zero_grad(),
    "clipping": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-9),
}
STEPS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda own: torch.optim.SGD(own, 1.0, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda own: torch.optim.AdamW(own, 1.0),
    "AdamW, fused": lambda own: torch.optim.AdamW(own, 1.0, fused=True),
    "AdamW, foreach": lambda own: torch.optim.AdamW(own, 1.0, foreach=True),
    "RMSprop": lambda own: torch.optim.RMSprop(own, 1.0),
}


@pytest.mark.parametrize("name", CELLS)
def test_what_another_thread_does_to_them_does_nothing(name):
    threads = Threads()
    before = threads.gradients
    threads.elsewhere(CELLS[name])
    for now, was in zip(threads.gradients, before, strict=True):
        assert was is not None
        assert torch.equal(now, was)
    assert threads.own.are_whole([*threads.model.parameters()])


@pytest.mark.parametrize("name", STEPS)
def test_another_threads_optimizer_finds_nothing_to_step_by(name):
    threads = Threads()
    before = copy.deepcopy(threads.model.state_dict())
    threads.elsewhere(lambda model: STEPS[name](model.parameters()).step())
    assert all(torch.equal(now, before[key]) for key, now in threads.model.state_dict().items())
    STEPS[name](threads.model.parameters()).step()
    assert not any(torch.equal(now, before[key]) for key, now in threads.model.state_dict().items())


def test_what_would_change_them_is_refused():
    threads = Threads()
    before = threads.gradients

    def sets(model: nn.Module) -> None:
        model[0].bias.grad = torch.zeros(3)

    line = "here would add to the gradients of run x, which trains now; do it within `with run.pau"
    assert f"setting a gradient {line}" in str(threads.elsewhere(sets))
    learns = threads.elsewhere(lambda model: model(torch.ones(1, 3)).sum().backward())
    assert f"a backward pass {line}" in str(learns)
    for now, was in zip(threads.gradients, before, strict=True):
        assert was is not None
        assert torch.equal(now, was)


def test_the_parameters_are_what_they_were_to_whoever_looks_or_copies():
    threads = Threads()
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    plain.load_state_dict(threads.model.state_dict())
    assert repr([*threads.model.parameters()]) == repr([*plain.parameters()])
    assert {type(p).__qualname__ for p in threads.model.parameters()} == {"Parameter"}
    assert all(isinstance(p, nn.Parameter) for p in threads.model.parameters())
    for make in (copy.deepcopy, copy.copy, lambda own: pickle.loads(pickle.dumps(own))):
        made = make(threads.model[0].weight)
        assert type(made) is nn.Parameter
        assert torch.equal(made, plain[0].weight)
    tied = copy.deepcopy([threads.model[0].weight, threads.model[0].weight])
    assert tied[0] is tied[1]
    learns = copy.deepcopy(threads.model)
    threads.elsewhere(lambda _: learns(torch.ones(1, 3)).sum().backward())
    assert all(p.grad is not None for p in learns.parameters())


def test_afterwards_they_are_everybodys():
    threads = Threads()
    threads.own.close()
    assert {type(p) for p in threads.model.parameters()} == {nn.Parameter}
    threads.elsewhere(lambda model: model.zero_grad())
    assert threads.gradients == [None] * 4


def test_where_they_are_everybodys_what_is_dropped_is_noticed():
    threads = Threads(hidden=False)
    assert {type(p) for p in threads.model.parameters()} == {nn.Parameter}
    holders = [*threads.model.parameters()]
    assert threads.own.are_whole(holders)
    threads.elsewhere(lambda model: model.zero_grad())
    assert not threads.own.are_whole(holders)
    with pytest.raises(Exception, match=r"gradients of run x were dropped .* zero_grad\(\)"):
        raise threads.own.dropped()


def test_nobody_to_keep_them_from():
    own = OwnGradients()
    layer = nn.Linear(2, 2)
    own.follow(layer.parameters())
    assert {type(p) for p in layer.parameters()} == {nn.Parameter}
    with pytest.raises(AdapterError):
        raise own.refusal("nothing")
