"""Ways to write into weights; torch's `_version` is raised by the last one alone."""

import functools

import torch
from torch import Tensor


def _fused(kind: str, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    getattr(torch.optim, kind)(parameters, lr=0.1, fused=True).step()


def by_address(parameters: list[Tensor]) -> None:
    """As another library's kernel writes: torch hears nothing of it."""
    for parameter in parameters:
        parameter.detach().numpy()[:] *= 1.5


def by_data(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.mul_(1.5)


def by_new_data(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data = parameter.data * 1.5


def in_place(parameters: list[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_mul_(parameters, 1.5)


WRITERS = {
    **{kind: functools.partial(_fused, kind) for kind in ("Adam", "AdamW", "SGD", "Adagrad")},
    **{w.__name__: w for w in (by_address, by_data, by_new_data, in_place)},
}
