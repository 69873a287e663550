"""AdamW's one kernel, on the CPU too: the formula's steps, whatever lies how in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_lab.budget.meter import Meter
from lora_lab.methods.masters import Masters
from lora_lab.training.adamw import AdamW
from tests.helpers.made_up_hardware import cpu_can

RATE, DECAY, EPS = 1e-2, 0.1, 1e-8
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda whole: whole,
    "transposed": lambda whole: whole.T,
    "some columns": lambda whole: whole[:, 1:5],
    "every other column, transposed": lambda whole: whole.T[::2],
}


def by_the_formula(start: Tensor, gradients: list[Tensor]) -> Tensor:
    """Loshchilov and Hutter (2019), algorithm 2, in float64."""
    x, m, v = start.double(), torch.zeros(start.shape).double(), torch.zeros(start.shape).double()
    for t, gradient in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        x = x - RATE * DECAY * x
        x = x - RATE * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + EPS)
    return x


def stepped(parameters: list[nn.Parameter], weights: list[Tensor]) -> AdamW:
    """Three steps, each parameter's gradient being `weights` times the number of the step."""
    masters = Masters(parameters)
    model = nn.ParameterList(parameters)
    moved = [masters.of(each) for each in parameters]
    optimizer = AdamW(Meter(model), [{"params": moved}], lr=RATE, weight_decay=DECAY)
    for step in (1, 2, 3):
        total = [(p * w).sum() for p, w in zip(parameters, weights, strict=True)]
        (torch.stack(total).sum() * step).backward()
        masters.gather()
        optimizer.step()
        masters.write()
        for each in (*parameters, *moved):
            each.grad = None
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_moved_by_its_own_gradients(layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(8, 6, generator=generator).to(dtype)
    untouched = whole.clone()
    own = LAYOUTS[layout](whole)
    weights = torch.randn(own.shape, generator=generator).to(dtype)
    expected = by_the_formula(own, [weights * step for step in (1, 2, 3)])
    stepped([nn.Parameter(own)], [weights])
    precise = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(own.double(), expected, rtol=precise, atol=precise)
    # What else lies there has not moved.
    LAYOUTS[layout](untouched).copy_(own)
    assert torch.equal(whole, untouched)


def test_one_kernel_where_all_are_dense() -> None:
    dense, gaps = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4)[:, :2])
    assert stepped([dense], [torch.ones(4, 4)]).moves_all_or_nothing
    assert not stepped([dense, gaps], [torch.ones(4, 4), torch.ones(4, 2)]).moves_all_or_nothing


def test_devices_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_can(monkeypatch, fused_optimizer=False)
    one = nn.Parameter(torch.ones(3))
    expected = by_the_formula(torch.ones(3), [torch.full((3,), float(n)) for n in (1, 2, 3)])
    assert not stepped([one], [torch.ones(3)]).moves_all_or_nothing
    torch.testing.assert_close(one.detach().double(), expected, rtol=1e-6, atol=1e-6)
