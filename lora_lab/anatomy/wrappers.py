"""Modules that only stand around another: torch.compile's, DataParallel's and their like.

What is read and written lies in the module within, under names without the wrapper's: a model has
the same sites, and files the same keys, whether it was compiled, distributed, or neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar, cast

from torch import nn

from lora_lab._util.torch_private import children_of, compiled_from, parameters_of
from lora_lab.anatomy.children import WRAPPED
from lora_lab.errors import ModelError

Thing = TypeVar("Thing")

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Thing) -> Thing:
    """Return the module within all wrappers around it; anything else as it is.

    Raises:
        ModelError: FSDP's first version is around it, where the parameters are no longer its own.
    """
    if not isinstance(model, nn.Module):
        model = compiled_from(model)
    while isinstance(model, nn.Module):
        children = children_of(model)
        if not children:
            break
        if "_fsdp_wrapped_module" in children:
            raise ModelError(
                "FullyShardedDataParallel has cut the model's parameters into flat pieces; attach "
                "to the model itself, and distribute it with fully_shard (FSDP2)"
            )
        inner = next((name for name in WRAPPED if name in children), None)
        kind: Any = type(model)
        inner = "module" if _is_parallel(kind) else inner
        if inner is None:
            break
        model = cast(Any, children[inner])
    return model


def is_deepspeed(model: object) -> bool:
    """Whether a model is DeepSpeed's engine, which is not imported here."""
    return _is_deepspeed(type(model))


def _is_deepspeed(kind: type) -> bool:
    return any(each.__name__ == "DeepSpeedEngine" for each in kind.__mro__)


@functools.cache  # asked of each module of a model, over and over
def _is_parallel(kind: Any) -> bool:
    return issubclass(kind, _PARALLEL) or _is_deepspeed(kind)


def children_within(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, child) as `named_children` does, each without wrappers around it."""
    for name, child in module.named_children():
        yield name, unwrapped(child)


def modules_within(
    model: nn.Module,
    prefix: str = "",
    *,
    every_name: bool = False,
    left_out: Callable[[nn.Module], Collection[str]] | None = None,
) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) as `named_modules` does, without wrappers in either.

    Args:
        model: any module.
        prefix: of every path.
        every_name: a module that has several names is yielded under each of them.
        left_out: gives the names of a module's children that are passed by, with all below.
    """
    seen: set[int] = set()
    waiting = [(prefix, unwrapped(model))]  # no recursion: each would come through all above it
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        if not every_name:
            seen.add(id(module))
        yield path, module
        children = children_of(module)
        if not children:
            continue
        passed_by = () if left_out is None else left_out(module)
        waiting += [
            (f"{path}.{name}" if path else name, unwrapped(child))
            for name, child in reversed(children.items())
            if child is not None and name not in passed_by
        ]


def parameters_within(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) without wrappers in the name, a tied one under each of its names."""
    for path, module in modules_within(model, every_name=True):
        for name, parameter in parameters_of(module).items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, parameter


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return what stands at a path of `modules_within`."""
    module = unwrapped(model)
    for name in path.split(".") if path else ():
        child = children_of(module).get(name)
        if child is None:
            raise AttributeError(f"{type(module).__name__} has no module {name!r} ({path})")
        module = unwrapped(child)
    return module
