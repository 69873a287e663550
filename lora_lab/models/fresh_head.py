"""Heads that `load_model` began at random: each run draws its own anew, from its seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.own_random import seeded
from lora_lab._util.torch_private import parameters_of
from lora_lab._util.transformers_private import draw_again
from lora_lab.anatomy.heads import head_modules
from lora_lab.anatomy.wrappers import module_at, unwrapped

_ATTRIBUTE = "_lora_lab_fresh_head"  # of a model: {module: a hash of what was drawn for it}


def remember_fresh(model: nn.Module, begun: Collection[str]) -> None:
    """Note which modules of a model's head hold what was drawn for them, and nothing else.

    Args:
        model: just loaded.
        begun: the names of the parameters that started random.
    """
    fresh = {
        path: _hash(module)
        for path, module in _leaves(model)
        if all(f"{path}.{name}" in begun for name, _ in _own(module))
    }
    model.__dict__[_ATTRIBUTE] = fresh


def draw_head(model: Any, adapter: Any, seed: int) -> None:
    """Begin a head anew in the tensors that train it, if it is as `load_model` drew it.

    A head that was loaded, trained or merged into since then is left as it is, and so is the
    model's own.

    Args:
        model: the base.
        adapter: what trains it, or a combination that has such a part.
        seed: of the run; its other draws stay as they are.
    """
    known = getattr(unwrapped(model), _ATTRIBUTE, {})
    state: dict[str, Tensor] = {}  # live tensors, by their names in the model's state dict
    for part in getattr(adapter, "adapters", (adapter,)):
        state |= part.state()
    with seeded(int(hashlib.sha256(f"head {seed}".encode()).hexdigest()[:15], 16)):
        for path, drawn in known.items():
            module: Any = module_at(model, path)
            offloaded = any(tensor.is_meta for _, tensor in _own(module))
            trained = all(f"{path}.{name}" in state for name, _ in _own(module))
            if offloaded or not trained or _hash(module) != drawn:
                continue
            shell = _empty_like(module)
            draw_again(unwrapped(model), shell)
            with torch.no_grad():
                for name, parameter in _own(shell):
                    state[f"{path}.{name}"].copy_(parameter)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for head in head_modules(model):
        for path, module in module_at(model, head).named_modules(prefix=head):
            if _own(module) and not any(tensor.is_meta for _, tensor in _own(module)):
                yield path, module


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _empty_like(module: nn.Module) -> nn.Module:
    """Return a module of the same class with parameters of its own, and nothing below it."""
    shell = object.__new__(type(module))
    shell.__dict__.update(module.__dict__)
    own = {name: nn.Parameter(torch.empty_like(parameter)) for name, parameter in _own(module)}
    shell.__dict__ |= {"_parameters": {**parameters_of(module), **own}, "_modules": {}}
    return shell


def _hash(module: nn.Module) -> str:
    found = hashlib.sha256()
    for _, parameter in _own(module):
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
