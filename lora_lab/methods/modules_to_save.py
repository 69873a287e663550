"""Modules that are trained whole beside LoRA's factors: PEFT's modules_to_save.

A classifier's head starts at random, so an update of low rank is not what it needs. Each adapter
has a copy of its own of such a module, and while the adapter is active the copy answers in the
module's place; the module itself stays as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import is_offloaded
from lora_lab._util.patterns import endings
from lora_lab._util.torch_private import (
    FakeTensor,
    children_of,
    parameters_of,
)
from lora_lab.anatomy.children import (
    ADAPTER_CHILD,
    LEARNED_CHILD,
    SAVED_CHILD,
)
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.wrappers import children_within, parameters_within
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.config import unknown_module
from lora_lab.methods.forward_switch import ForwardSwitch, switch_of
from lora_lab.methods.lora.layers import AdaptedLayer
from lora_lab.methods.lora.own_forward import PATCHED, instance_forward
from lora_lab.methods.lora.peft_fields import HEADS
from lora_lab.methods.lora.read_past import read_past
from lora_lab.methods.own_tensors import added_children, own_modules, own_tensors

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class ModulesToSave:
    """One adapter's copies.

    Attributes:
        copies: {path: copy}, the parameters in float32 or better.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._originals = find_modules(model, names)
        _check(model, self._originals)
        # One memo: what is tied between two of them stays tied.
        memo: dict[int, Any] = {}
        self.copies = {
            path: _trainable_copy(module, memo) for path, module in self._originals.items()
        }
        self._other_ends = _other_ends(model, self._originals)
        for own, other in self._other_ends.items():
            warnings.warn(
                f"{own} is {other} too (tied weights), and modules_to_save names one of them: its "
                "copy is trained, the other stays, and no merged weight can hold both; name both "
                "to train them as one",
                stacklevel=2,
            )

    def covers(self, path: str) -> bool:
        """Whether a module is one of them, or within one."""
        return any(path == own or path.startswith(f"{own}.") for own in self.copies)

    def insert(self, name: str, active: Active) -> None:
        """Let the copies answer while the adapter `name` is active."""
        for path, module in self._originals.items():
            ForwardSwitch.of(module, path, active).add(name, self.copies[path])

    def remove(self, name: str) -> None:
        """Take the copies away again."""
        for module in self._originals.values():
            if (switch := switch_of(module)) is not None:
                switch.pop(name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained, a tied parameter once."""
        yield from dict.fromkeys(p for own in self.copies.values() for p in own.parameters())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name as in the model's state dict, learned tensor), buffers too."""
        for path, own in self.copies.items():
            for name, tensor in own_tensors(own):
                yield f"{path}.{name}", tensor

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into what `state` names. What is tied and has two values comes apart."""
        first: dict[int, str] = {}
        for path, own in self.copies.items():
            for name, tensor in list(own_tensors(own)):
                key = f"{path}.{name}"
                other = first.setdefault(id(tensor), key)
                if other == key or torch.equal(values[key], values[other]):
                    continue
                parent, _, leaf = name.rpartition(".")
                apart = nn.Parameter(tensor.detach().clone())
                parameters_of(own.get_submodule(parent))[leaf] = apart
        with torch.no_grad():
            for key, tensor in self.state():
                tensor.copy_(values[key])

    def check_merge(self) -> None:
        """Raise where one tensor of the model would have to hold two values.

        Raises:
            AdapterError: it names both ends.
        """
        ends = dict(self._other_ends)
        first: dict[int, tuple[str, Tensor]] = {}
        for path, own in self.copies.items():
            learned = dict(own_tensors(own))
            for name, tensor in own_tensors(self._originals[path]):
                key = f"{path}.{name}"
                other, value = first.setdefault(id(tensor), (key, learned[name]))
                if value is not learned[name] and not torch.equal(value, learned[name]):
                    ends[key] = other
        for one, other in ends.items():
            raise AdapterError(
                f"{one} and {other} are one tensor (tied weights), which cannot hold the two "
                "values that the adapter has for them; keep the adapter beside the base, or give "
                "the base's ends a weight each before attaching"
            )

    def merged_weights(self, dtype: torch.dtype | None) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (tensor of the model, the copy's value for it), buffers too, a tied one once."""
        seen = set()
        for path, own in self.copies.items():
            learned = dict(own_tensors(own))
            for name, tensor in own_tensors(self._originals[path]):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    to = dtype if dtype and tensor.is_floating_point() else tensor.dtype
                    yield cast(nn.Parameter, tensor), learned[name].detach().to(to)


def trained_whole(adapter: Adapter) -> dict[str, list[nn.Parameter]]:
    """Return {path: parameters} of the modules that an adapter trains whole beside its own."""
    parts = getattr(adapter, "adapters", (adapter,))  # of a combination
    saved = [own for own in (getattr(part, "saved", None) for part in parts) if own is not None]
    return {path: [*copy.parameters()] for own in saved for path, copy in own.copies.items()}


def task_heads(model: nn.Module, task_type: str | None) -> tuple[str, ...]:
    """Return the paths of the modules that PEFT trains whole by itself for a task."""
    heads = HEADS.get(task_type or "")
    if not heads:
        return ()
    return tuple(
        path
        for path, module in model.named_modules()
        if path.endswith(heads) and any(True for _ in own_tensors(module))
    )


def tied_ends(tied: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return both ends of every tied weight of which one is named; see `Anatomy.tied`."""
    return tuple(
        path
        for pair in tied.items()
        if any(f".{path}".endswith(f".{name}") for path in pair for name in names)
        for path in pair
    )


def find_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return {path: module} of what `modules_to_save` names.

    A name is a whole path, or the end of one or several. What only holds other modules in a row
    (Sequential, ModuleList) is taken apart into them.

    Raises:
        ConfigError: a name that matches nothing that could be trained.
    """
    modules = {path: m for path, m in own_modules(model) if path}
    ending: dict[str, list[str]] = defaultdict(list)
    for path in modules:
        for end in endings(path):
            ending[end].append(path)
    found: dict[str, nn.Module] = {}
    for name in dict.fromkeys(names):
        matching = [name] if name in modules else ending.get(name, [])
        inside = {path: m for own in matching for path, m in _parts(own, modules[own])}
        if not inside:
            why = "has no parameters" if matching else "names no module"
            children = (
                key
                for key, child in children_within(model)
                if any(True for _ in child.parameters())
            )
            raise unknown_module(name, children, why)
        found |= inside
    # The outermost of nested ones has the others in its copy.
    inner = {path for path in found for own in found if path.startswith(f"{own}.")}
    return {path: module for path, module in found.items() if path not in inner}


def _parts(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    forward = type(module).forward
    if isinstance(module, _CONTAINERS) or forward is nn.Sequential.forward:
        for name, child in children_within(module):
            yield from _parts(f"{path}.{name}", child)
    elif any(True for _ in own_tensors(module)):
        yield path, module


def _check(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    readers = read_past(dict(own_modules(model, every_name=True)), only=True)
    for path, module in originals.items():
        if reader := readers.get(module):
            raise ConfigError(
                f"{reader} reads the weight of {path} itself, so that a copy of it would not "
                f"answer; name {reader} in modules_to_save"
            )
    for path, module in originals.items():
        if any(map(is_offloaded, module.modules())):
            raise AdapterError(
                f"{path} is offloaded, so that there is nothing to copy; leave it out of "
                "modules_to_save, or load it onto a device"
            )
        for _, tensor in own_tensors(module):
            if isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
                raise AdapterError(
                    f"{path} holds {tensor.dtype}, not floating-point weights; leave it out of "
                    "modules_to_save"
                )
        if packed := next(filter(None, map(packing, module.modules())), None):
            raise AdapterError(
                f"{path} holds {packed}, not floating-point weights; leave it out of "
                "modules_to_save"
            )


def _other_ends(model: nn.Module, originals: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return {name of a parameter among them: its other name, outside of them} of tied weights."""
    own = {
        id(tensor): f"{path}.{name}"
        for path, module in originals.items()
        for name, tensor in own_tensors(module)
    }
    inside = tuple(f"{path}." for path in originals)
    return {
        own[id(parameter)]: name
        for name, parameter in parameters_within(model)
        if id(parameter) in own and not name.startswith(inside)
    }


def _trainable_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of a module without what adapters have added below it."""
    for part in module.modules():
        inside = children_of(part)
        memo |= {id(inside[name]): None for name in added_children(part) if name in inside}
        if (switch := switch_of(part)) is not None:
            memo[id(switch)] = None
        for made in vars(part).values():  # the weight that a hook makes anew for every pass
            if isinstance(made, Tensor) and not made.is_leaf:
                memo[id(made)] = made.detach().clone()
    for _, tensor in own_tensors(module):
        if isinstance(tensor, FakeTensor) and id(tensor) not in memo:
            # In a dry run: deepcopy would copy the fake mode too, and modes do not mix.
            memo[id(tensor)] = like = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(like.to(_master_dtype(tensor)))
    own = copy.deepcopy(module, memo)
    patches = {id(patch) for part in module.modules() if (patch := instance_forward(part))}
    for part in own.modules():
        if isinstance(part, AdaptedLayer):
            del children_of(part)[ADAPTER_CHILD], part._active
            cast(Any, part).__class__ = part.base_class
            if PATCHED in part.__dict__:
                part.__dict__["forward"] = part.__dict__.pop(PATCHED)
        children_of(part).pop(LEARNED_CHILD, None)
        if children_of(part).pop(SAVED_CHILD, part) is not part:
            part.__dict__.pop("forward", None)
        if id(part.__dict__.get("forward")) in patches:
            del part.__dict__["forward"]  # a function, which knows the original alone
    for parameter in own.parameters():
        parameter.data = parameter.data.to(_master_dtype(parameter))
        parameter.requires_grad_(True)
        parameter.grad = None
    return own


def _master_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
