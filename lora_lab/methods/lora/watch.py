"""Says so when a forward pass goes past an adapted layer: attached, and does nothing.

A layer is watched until its forward has run once, by a subclass that then swaps itself away. The
modules above it have hooks until they have run once. After that the model alone has one, which
looks whether its modules are those that adapters were attached to.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab._util.class_swap import with_mixin
from lora_lab._util.thread_own import ThreadOwn
from lora_lab.methods.attached import attached_adapters
from lora_lab.methods.forward_switch import switch_of
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites, own_forwards, stored_weight
from lora_lab.methods.own_modes import class_of, set_class
from lora_lab.methods.standing import missing

# The key in a layer's __dict__ of its `Watch` and its path; None once its forward has run.
_WATCH = "_lora_watch"
_NOT_CALLED = "ran and did not call it"


@dataclass
class _Pass:
    """A thread's forward pass: the paths of the modules that it is in, and the weights it read."""

    running: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)


class Watch:
    """Waits for the first pass through a model's adapted layers.

    Attributes:
        passed_by: {path of a layer: what went past it}, as far as is known.
        tell: called with what a person should know.
    """

    def __init__(self, tell: Callable[[str], None] = warnings.warn) -> None:
        self.passed_by: dict[str, str] = {}
        self.tell = tell
        self._told: set[tuple[str, type]] = set()
        self._passes = ThreadOwn(_Pass)
        self._missing: set[str] = set()
        self._handles: dict[str, list[RemovableHandle]] = {}
        self._look: RemovableHandle | None = None

    def __reduce__(self) -> tuple[type[Watch], tuple[()], dict[str, Any]]:
        """Copy as one whose layers are not watched, their hooks go."""
        return Watch, (), {"_handles": self._handles, "_look": self._look}

    def begin(self, model: nn.Module) -> None:
        """Watch what was adapted of a model and has not run yet; twice is no error."""
        self._look = self._look or model.register_forward_pre_hook(self._tell_of_missing)
        modules = dict(model.named_modules())
        for path, layer in modules.items():
            if isinstance(layer, AdaptedLayer) and not layer.is_read and _WATCH not in vars(layer):
                layer.__dict__[_WATCH] = self, path
                set_class(cast(Any, layer), _watched_class(class_of(cast(Any, layer))))
        # A module's own name may have a dot in it: what is above it by its path need not be there.
        above = {path for below in _left(modules) for path in _above(below)} & modules.keys()
        for path in above:
            if path not in self._handles and not isinstance(modules[path], _CONTAINERS):
                self._handles[path] = [
                    modules[path].register_forward_pre_hook(functools.partial(self._enter, path)),
                    modules[path].register_forward_hook(functools.partial(self._leave, path)),
                ]

    def end(self, model: nn.Module) -> None:
        """Watch no more, and leave nothing behind."""
        for path in [*self._handles]:
            self._drop(path)
        if self._look is not None:
            self._look.remove()
        for part in model.modules():
            settle(part)
            part.__dict__.pop(_WATCH, None)

    def note_read(self, path: str) -> None:
        """Remember that somebody asked for a layer's weight within a pass."""
        own = self._passes.here()
        if own.running:
            own.read.add(path)

    def _tell_of_missing(self, model: nn.Module, *_: Any) -> None:
        known = attached_adapters(model)
        if torch.compiler.is_compiling() or known is None or known.merged:
            return
        active = known.active
        for name in {active.name} if active.samples is None else {*active.samples}:
            adapter = known.adapters.get(name or "")
            line = missing(model, adapter, parameters=False) if adapter is not None else ""
            if line and line not in self._missing:
                self._missing.add(line)
                self.tell(line)

    def _drop(self, path: str) -> None:
        for handle in self._handles.pop(path, ()):
            handle.remove()

    def _enter(self, path: str, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        own = self._passes.here()
        if path in own.running:  # the pass before broke off
            del own.running[own.running.index(path) :]
        if not own.running:
            own.read.clear()
        own.running.append(path)

    def _leave(self, path: str, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        own = self._passes.here()
        if path not in own.running:  # another thread's, which began before it was watched
            return
        del own.running[own.running.index(path) :]
        self._drop(path)
        prefix = path and f"{path}."
        # What holds a stack is a whole model: which of its branches run is up to its inputs.
        lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
        whole = any(not isinstance(part, LayerSites) for part in lists)
        for below in _left(dict(module.named_modules())):
            layer = prefix + below
            if layer in self.passed_by:
                continue
            if layer in own.read:
                self._pass_by(layer, path, module, "reads its weight and does not call it")
            elif "." not in below and not whole:
                self._pass_by(layer, path, module, _NOT_CALLED)

    def _pass_by(self, layer: str, path: str, module: nn.Module, how: str) -> None:
        self.passed_by[layer] = what = f"{path or type(module).__name__} {how}"
        kind = layer.rpartition(".")[2], type(module)
        if kind not in self._told:
            self._told.add(kind)
            fix = "adapt other layers, or train the module whole (modules_to_save)"
            if how == _NOT_CALLED and switch_of(getattr(module, kind[0], module)) is not None:
                fix = "name what it does call in modules_to_save"
            place = f"{layer}, nor at its like in other blocks"
            self.tell(f"an adapter does nothing at {place}: {what}; {fix}")


_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # they have no forward


class _Watched:
    """Mixed into an adapted layer's class until its forward has run."""

    def forward(self, x: Tensor) -> Tensor:
        # Who wraps a layer may keep this one: it is called on a layer of any class by then.
        if not torch.compiler.is_compiling():
            settle(cast(Any, self))
        return AdaptedLayer.forward(cast(Any, self), x)

    @property
    def weight(self) -> Tensor:
        waits = self.__dict__.get(_WATCH)
        if waits is not None and not torch.compiler.is_compiling():
            watch, path = waits
            watch.note_read(path)
        return stored_weight(cast(Any, self))

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.__dict__["weight"] = value


own_forwards.append(_Watched.forward)


def settle(layer: nn.Module) -> None:
    """Watch a layer no more; it keeps a mark, so that it is not watched again."""
    if isinstance(layer, _Watched):
        layer.__dict__[_WATCH] = None
        mixed, *adapted = class_of(layer).__bases__
        if mixed is _Watched:  # else somebody's own class, such as a parametrization's, is on top
            set_class(layer, adapted[0])


@functools.cache
def _watched_class(adapted: Any) -> Any:
    members = {"__module__": adapted.__module__}
    return with_mixin(_Watched, adapted, adapted.__name__, members)


def _left(modules: dict[str, nn.Module]) -> list[str]:
    """Return the paths of layers, and of modules that have copies, which nobody has called."""
    return [path for path, part in modules.items() if _waits(part)]


def _waits(part: nn.Module) -> bool:
    if isinstance(part, _Watched) and vars(part).get(_WATCH):
        return True
    switch = switch_of(part)
    return switch is not None and not switch.called


def _above(path: str) -> Iterator[str]:
    parts = path.split(".")
    yield from (".".join(parts[:depth]) for depth in range(len(parts)))
