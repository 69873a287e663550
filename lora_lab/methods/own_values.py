"""A second set of values of some of a model's own parameters: FT's, BitFit's, LoRA's `bias`.

While it is off, the model's parameters hold W₀ and the tuned values wait on the CPU; while it is
on, it is the other way round. Switching changes the contents, parameter by parameter, so that
optimizers, ties, hooks and the names in the state dict stay as they are. Gradients go with the
values, so those of one adapter are never added to another's.

They have the model's dtype; a run trains those of half precision through float32 copies, see
`masters`. Another loop that does not loses the small updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import is_offloaded
from lora_lab._util.host_memory import HostRoom
from lora_lab._util.torch_private import parameters_of
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.wrappers import module_at
from lora_lab.errors import AdapterError


class OwnValues:
    """One adapter's values.

    Attributes:
        own: {name in the model's state dict: the parameter}, a tied one once.
        on: whether the parameters hold the tuned values now.

    Raises:
        AdapterError: the computer's memory does not hold a second set.
    """

    def __init__(self, own: Mapping[str, nn.Parameter], learns: bool = True) -> None:
        self.own = dict(own)
        self.on = False
        self._learns = learns
        HostRoom(
            "a second set of values of the weights that are trained",
            "train fewer of them, load the model in half precision, or take LoRA",
        ).take(self.own.values())
        self._other = {parameter: _kept(parameter) for parameter in self.own.values()}
        self._gradients: dict[nn.Parameter, Tensor | None] = dict.fromkeys(self._other)

    def set_active(self, on: bool) -> None:
        """Change the values, gradients with them; needs the memory of one parameter, on the CPU."""
        if on == self.on:
            return
        # The model may have moved meanwhile.
        gradients = {p: None if g is None else g.to(p) for p, g in self._gradients.items()}
        changed: list[nn.Parameter] = []
        try:
            for parameter in self._other:
                self._exchange(parameter)
                changed.append(parameter)
        except BaseException:  # there was no room for the next one: all or none
            for parameter in changed:
                self._exchange(parameter)
            raise
        for parameter, gradient in gradients.items():
            self._gradients[parameter], parameter.grad = parameter.grad, gradient
            parameter.requires_grad_(on and self._learns)
        self.on = on

    def _exchange(self, parameter: nn.Parameter) -> None:
        other = self._other[parameter]
        with torch.no_grad():
            before = parameter.detach().to(other.device, copy=True)
            parameter.copy_(other)
            other.copy_(before)

    def base_value(self, weight: nn.Parameter) -> Tensor | None:
        """Return W₀ of a parameter while the tuned values are in the model, else None."""
        if not self.on or weight not in self._other:
            return None
        return self._other[weight].to(weight)

    def tuned(self, weight: nn.Parameter) -> Tensor | None:
        """Return the tensor that holds a parameter's tuned values now; None: it has none."""
        return weight if self.on and weight in self._other else self._other.get(weight)

    def state(self) -> dict[str, Tensor]:
        """Return {name in the model's state dict: the tensor that holds the tuned values now}."""
        return {name: p if self.on else self._other[p] for name, p in self.own.items()}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained: they hold the tuned values only while these are on."""
        yield from self.own.values() if self._learns else ()

    def merged_weights(self, dtype: torch.dtype | None) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (parameter, tuned value); nothing is added, so nothing is rounded."""
        for name, tuned in self.state().items():
            yield self.own[name], tuned.detach().to(dtype or self.own[name].dtype)


def check_own(model: nn.Module, own: Mapping[str, nn.Parameter]) -> None:
    """Refuse what no gradient step can change, before anything is changed.

    Raises:
        AdapterError: it names the parameter.
    """
    away = {p for part in model.modules() if is_offloaded(part) for p in part.parameters(False)}
    for name, parameter in own.items():
        path, _, leaf = name.rpartition(".")
        holder = module_at(model, path)
        if parameter in away:
            raise AdapterError(
                f"{name} is offloaded, so that it cannot be trained; load it onto a device"
            )
        # bitsandbytes' weights are floating-point still until they are moved to their device.
        packed = leaf == "weight" and packing(holder)
        if packed or not parameter.is_floating_point():
            raise not_floating(name, packed if packed else str(parameter.dtype))


def check_in_place(model: nn.Module, own: Mapping[str, nn.Parameter]) -> None:
    """Refuse to write into parameters that are the model's no more.

    accelerate's offloading, also when it ends, puts others in their place; people replace modules.

    Raises:
        AdapterError: it names the parameter.
    """
    for name, parameter in own.items():
        path, _, leaf = name.rpartition(".")
        try:
            held = parameters_of(module_at(model, path)).get(leaf)
        except AttributeError:  # there is no such module any more
            held = None
        if held is not parameter:
            raise AdapterError(
                f"{name} is another tensor than the one that the adapter trains: its module was "
                "replaced or the model offloaded after attaching; put the module back, or load the "
                "model again, and offload it first, then attach"
            )


def not_floating(name: str, kind: str) -> AdapterError:
    """Return the error of what is quantized."""
    return AdapterError(
        f"{name} holds {kind}, not floating-point weights; load the base unquantized"
    )


def _kept(parameter: nn.Parameter) -> Tensor:
    device = "meta" if parameter.is_meta else "cpu"
    return parameter.detach().to(device, copy=True)
