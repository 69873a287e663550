"""What answers in a module's place while one of its adapters is active: a copy, or learned rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import hook_forward, hooked_forward
from lora_lab._util.torch_private import children_of, pre_hooks_of, with_tensors
from lora_lab.anatomy.children import SAVED_CHILD, without_wrappers
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active, AdapterNames
from lora_lab.methods.lora.own_forward import instance_forward
from lora_lab.methods.offload import check_present
from lora_lab.methods.own_tensors import own_tensors


class ForwardSwitch:
    """A module's `forward` while adapters have copies of it.

    It stands below accelerate's hook where there is one, so that the hook may come and go. Not a
    class swap as in `AdaptedLayer`, so that another adapter can have factors on the very
    module that this one trains whole, in any order of attaching and detaching.
    """

    def __init__(self, module: nn.Module, path: str, active: Active) -> None:
        self._module, self._path, self._active = module, path, active
        self.called = False  # while nobody compiles
        self._before = hooked_forward(module) or instance_forward(module)
        self._base = dict(own_tensors(module))
        module.add_module(SAVED_CHILD, nn.Module())

    @staticmethod
    def of(module: nn.Module, path: str, active: Active) -> ForwardSwitch:
        """Return a module's switch, which it gets if it has none."""
        if (switch := switch_of(module)) is None:
            switch = ForwardSwitch(module, path, active)
            if hooked_forward(module) is not None:
                hook_forward(module, switch)
            else:
                module.forward = switch
        return switch

    def bare(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module itself returns."""
        return self._answer(None, args, kwargs)

    def add(self, name: str, own: nn.Module) -> None:
        """Add an adapter's copy below the module."""
        own.train(self._module.training)
        self._held()[name] = own

    def pop(self, name: str) -> None:
        """Take an adapter's copy away; with the last one gone the module is as it was."""
        self._held().pop(name, None)
        if not self._held():
            # First the switch: another thread may be in the midst of a forward pass.
            if hooked_forward(self._module) is self:
                hook_forward(self._module, self._before)
            else:
                del self._module.forward
                if self._before is not None:
                    self._module.forward = self._before
            delattr(self._module, SAVED_CHILD)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the active adapter's copy returns, or else the module itself."""
        if not torch.compiler.is_compiling():
            self.called = True
        if self._active.samples is not None:
            return self._mixed(self._active.samples, args, kwargs)
        return self._answer(self._active.name, args, kwargs)

    def _held(self) -> dict[str, nn.Module]:
        # Not an nn.ModuleDict: adapters may be called "keys" or "update".
        child = children_of(self._module).get(SAVED_CHILD)
        return {} if child is None else cast(Any, children_of(child))

    def _answer(self, name: str | None, args: Any, kwargs: Any) -> Any:
        own = self._held().get(name) if name is not None else None
        if own is None:
            if self._before is not None:
                return self._before(*args, **kwargs)
            return type(self._module).forward(self._module, *args, **kwargs)
        if isinstance(hooked_forward(self._module), ForwardSwitch):
            check_present(own, self._path)
        # The masters are float32; what computes has the dtype that the model has.
        cast_down = {
            tensor: tensor.to(self._base[without_wrappers(key)].dtype)
            for key, tensor in own.named_parameters()
            if tensor.dtype != self._base[without_wrappers(key)].dtype
        }
        if cast_down:
            return with_tensors(own, cast_down)(*args, **kwargs)
        for hook in pre_hooks_of(own).values():
            # The older weight_norm and spectral_norm, and pruning, make the weight in a hook.
            if hasattr(hook, "compute_weight") or hasattr(hook, "apply_mask"):
                hook(own, args)
        return own.forward(*args, **kwargs)

    def _mixed(self, samples: AdapterNames, args: Any, kwargs: Any) -> Any:
        """Return the answers of a batch whose rows belong to different adapters."""
        held = self._held()
        owners = {name if name in held else None for name in samples or (None,)}
        if len(owners) == 1:
            return self._answer(owners.pop(), args, kwargs)
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None:
            raise AdapterError(f"{self._path} reads no tensor; run the samples apart")
        rows = x.shape[0] if x.dim() else 0
        names = self._active.names_of(x, self._path)
        others = [name for name in dict.fromkeys(names) if name not in held]
        groups = {name: [name] for name in names if name in held} | (
            {None: others} if others else {}
        )
        y = None
        for name, group in groups.items():
            index = functools.partial(self._places, names, group)
            part = tuple(_rows(v, index, rows) for v in args)
            out = self._answer(name, part, {k: _rows(v, index, rows) for k, v in kwargs.items()})
            if not isinstance(out, Tensor):
                raise AdapterError(
                    f"{self._path} returns more than one tensor, so samples of one batch cannot "
                    "have different adapters there; run them apart"
                )
            y = out.new_zeros(rows, *out.shape[1:]) if y is None else y
            y = y.index_copy(0, index(out.device), out)
        return y

    def _places(
        self, names: AdapterNames, group: Sequence[str | None], device: torch.device
    ) -> Tensor:
        places = self._active.places_of(names, device)
        return torch.cat([places[name] for name in group])


def switch_of(module: nn.Module) -> ForwardSwitch | None:
    """Return a module's switch: below accelerate's hook, or in its class's forward's place."""
    for forward in (hooked_forward(module), instance_forward(module)):
        if isinstance(forward, ForwardSwitch):
            return forward
    return None


def _rows(value: Any, index: Callable[[torch.device], Tensor], rows: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
        return value.index_select(0, index(value.device))
    return value
