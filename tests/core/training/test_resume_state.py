"""A checkpoint's state of another type or shape is refused before it moves anything."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lora_lab.errors import AdapterError, RunError
from lora_lab.training.optimizer_state import load_optimizer, load_scheduler
from lora_lab.training.resume_state import fitting


def made() -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW of two parameters, and a schedule."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([torch.randn(3, 2, requires_grad=True), torch.zeros(4)], lr=0.1)
    return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))


def stepped() -> tuple[torch.optim.AdamW, LambdaLR]:
    optimizer, scheduler = made()
    (weights, _) = optimizer.param_groups[0]["params"]
    for _ in range(3):
        weights.square().sum().backward()
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def test_a_state_goes_on_where_it_was():
    optimizer, scheduler = stepped()
    again, schedule = made()
    load_optimizer(again, optimizer.state_dict())
    load_scheduler(schedule, scheduler.state_dict())
    assert again.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == 0.1 / 4
    moments = next(iter(optimizer.state.values()))
    for name, value in next(iter(again.state.values())).items():
        assert torch.equal(value, moments[name])


def test_an_option_that_the_checkpoint_is_older_than_has_its_default():
    optimizer, _ = stepped()
    state = optimizer.state_dict()
    del state["param_groups"][0]["maximize"]
    again, _ = made()
    load_optimizer(again, state)
    assert again.param_groups[0]["maximize"] is False


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("state", 0, "exp_avg"), torch.zeros(2, 3), r"exp_avg of parameter 0 is .* \(2, 3\)"),
        (("state", 0, "exp_avg"), torch.zeros(1), r"\(1,\), and \(3, 2\) is needed"),
        (("state", 0, "exp_avg"), torch.zeros(3, 2).bool(), r"is torch\.bool \(3, 2\)"),
        (("state", 0, "exp_avg_sq"), 1.0, "exp_avg_sq of parameter 0 is of type float"),
        (("state", 0, "step"), torch.zeros(3), r"step of parameter 0 is .* \(3,\)"),
        (("state", 0), {}, "parameter 0 has nothing"),
        (("state", 0), [], "AttributeError|parameter 0 has nothing"),
        (("state", 7), {}, "parameter 7 has nothing"),
        (("state", 0), {"\x1b[2J\0": 1}, r"parameter 0 has .x1b.2J.x00"),
        (("state",), None, "AttributeError"),
        (("param_groups",), [], "groups has 0 entries, and 1 are needed"),
        (("param_groups", 0, "params"), [0], r"params\[0\] has 1 entries, and 2 are needed"),
        (("param_groups", 0, "lr"), "0.1", r"groups\[0\].lr is of type str"),
        (("param_groups", 0, "lr"), float("nan"), r"groups\[0\].lr is nan"),
        (("param_groups", 0, "lr"), True, r"groups\[0\].lr is True"),
        (("param_groups", 0, "betas"), (0.9,), r"groups\[0\].betas has 1 entries, and 2"),
        (("param_groups", 0, "weight_decay"), 10**400, r"groups\[0\].weight_decay is 1000"),
        (("param_groups", 0, "amsgrad"), 1, r"groups\[0\].amsgrad is of type int"),
    ],
)
def test_an_optimizers_state_of_another_type_is_refused(place, value, said):
    state = copy.deepcopy(stepped()[0].state_dict())
    into = state
    for key in place[:-1]:
        into = into[key]
    into[place[-1]] = value
    optimizer, _ = made()
    line = rf"the checkpoint of step 3 is no state that this version goes on from \(.*{said}"
    with pytest.raises(RunError, match=f"(?:{line})") as caught, fitting(3):
        load_optimizer(optimizer, state)
    assert "remove the folder step-3 to go on from the one before it" in str(caught.value)
    assert not optimizer.state, "nothing was taken"


@pytest.mark.parametrize(
    ("key", "value"),
    [("base_lrs", [1.0, 2.0]), ("last_epoch", "3"), ("_last_lr", [None]), ("lr_lambdas", [1.5])],
)
def test_a_schedulers_state_of_another_type_is_refused(key, value):
    state = stepped()[1].state_dict() | {key: value}
    _, scheduler = made()
    with pytest.raises(RunError, match=rf"scheduler\.{key}"), fitting(3):
        load_scheduler(scheduler, state)
    assert scheduler.last_epoch == 0


def test_what_says_its_own_line_and_what_is_out_of_memory_go_through():
    with pytest.raises(AdapterError, match="mine"), fitting(3):
        raise AdapterError("mine")
    with pytest.raises(torch.OutOfMemoryError), fitting(3):
        raise torch.OutOfMemoryError("CUDA out of memory")
