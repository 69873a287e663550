"""What accelerate leaves on the modules that it hooks: each private name, in one function.

Seen on accelerate 1.1 to 1.15, which is not imported here. `tests/core/_util/test_private_names.py`
fails first after an upgrade.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Return what accelerate has hooked into a module's forward."""
    hook = module.__dict__.get("_hf_hook")
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def hooked_forward(module: nn.Module) -> Any:
    """Return what a hook calls for the module's own output, and puts back when it goes; or None."""
    return module.__dict__.get("_old_forward")


def hook_forward(module: nn.Module, forward: Any) -> None:
    """Have a module's hook call this; None: what the module's class does."""
    own = types.MethodType(type(module).forward, module) if forward is None else forward
    module.__dict__["_old_forward"] = own


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device that a hook runs a module on; None: nothing hooks it, or says where."""
    devices = (getattr(hook, "execution_device", None) for hook in hooks_of(module))
    device = next((device for device in devices if device is not None), None)
    return None if device is None else torch.device(device)


def offloaded(module: nn.Module, name: str) -> Tensor | None:
    """Return a tensor that a hook keeps away from its module, from the CPU or the disk.

    Args:
        module: hooked, or not.
        name: of the tensor below it.
    """
    for hook in hooks_of(module):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            value: Tensor = hook.weights_map[name]
            return value
    return None


def is_offloaded(module: nn.Module) -> bool:
    """Whether a hook brings a module's own tensors for each pass, and takes them away again."""
    return any(getattr(hook, "offload", False) for hook in hooks_of(module))


def loads_submodules(module: nn.Module) -> bool:
    """Whether a hook brings what it keeps away of all modules below this one at once."""
    return any(getattr(h, "offload", False) and h.place_submodules for h in hooks_of(module))
