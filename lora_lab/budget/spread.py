"""What a step takes on each device of a model that lies on several (`device_map`).

The dry run's tensors all say that they are on the CPU. So each storage is given a place: weights
have the model's own, what an operation makes lies where what it reads does, and what a module reads
from elsewhere is copied to its place first, as accelerate's hooks do, and its gradient back.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.devices import device_of
from lora_lab._util.torch_private import storage_key, tree_map
from lora_lab.budget.meter import LiveStorages


def places_of(model: nn.Module) -> dict[str, torch.device]:
    """Return {path: device} of the largest parts that lie on one; {} where the model does."""
    found: dict[str, set[torch.device]] = {}
    for path, part in model.named_modules():
        if any(True for _ in part.parameters(recurse=False)):
            names = path.split(".")
            for length in range(len(names) + 1):
                found.setdefault(".".join(names[:length]), set()).add(device_of(part))
    if len(found.get("", ())) < 2:
        return {}
    return {
        path: next(iter(devices))
        for path, devices in found.items()
        if len(devices) == 1 and len(found[path.rpartition(".")[0]]) > 1
    }


class SpreadStorages(LiveStorages):
    """Counts live storages device by device.

    Args:
        named: the model's tensors by name, which are there before.
        places: see `places_of`.

    Attributes:
        peaks: the most bytes at once on each device.
    """

    def __init__(
        self, named: Iterable[tuple[str, Tensor]], places: Mapping[str, torch.device]
    ) -> None:
        super().__init__()
        self._places = places
        self._main = next(iter(places.values()))
        self._place: dict[int, torch.device] = {}  # {storage's key: where it is}
        self._here = self._main  # where the operation at hand is done
        self._to: torch.device | None = None  # where it puts a copy
        self._now: Counter[torch.device] = Counter()
        self.peaks: Counter[torch.device] = Counter()
        for name, tensor in named:
            self.add(name, tensor)
        self.resident = dict(self._now)  # bytes of weights on each device

    def add(self, name: str, tensor: Tensor) -> None:
        """Count what is there beside the model's tensor of this name."""
        self._here = _place(name, self._places, self._main)
        self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation where the first tensor that it reads is."""
        self._here = self._to or next(map(self.place_of, _tensors(args)), self._main)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def place_of(self, tensor: Tensor) -> torch.device:
        """Return where a tensor is."""
        return self._place.get(storage_key(tensor.untyped_storage()), self._main)

    def grow(self, key: int, size: int) -> None:
        """See `LiveStorages.grow`."""
        self._place[key] = self._here
        self._now[self._here] += size
        self.peaks[self._here] = max(self.peaks[self._here], self._now[self._here])

    def shrink(self, key: int, size: int) -> None:
        """See `LiveStorages.shrink`."""
        self._now[self._place.pop(key)] -= size

    def copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a copy on another device."""
        self._to = device
        try:
            return tensor.clone()
        finally:
            self._to = None

    @contextlib.contextmanager
    def moving(self, model: nn.Module) -> Iterator[None]:
        """Have each part of a model read what it reads on its own device."""
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(
                partial(self._bring, device), with_kwargs=True
            )
            for path, device in self._places.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _bring(
        self, device: torch.device, _module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        def brought(value: Any) -> Any:
            if not isinstance(value, Tensor) or self.place_of(value) == device:
                return value
            return _Move.apply(value, self, device)

        return tree_map(brought, args), tree_map(brought, kwargs)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, storages: SpreadStorages, device: torch.device) -> Tensor:
        ctx.storages, ctx.source = storages, storages.place_of(x)
        return storages.copied(x, device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.storages.copied(grad, ctx.source), None, None


def _place(name: str, places: Mapping[str, torch.device], main: torch.device) -> torch.device:
    within = (path for path in places if name.startswith(f"{path}."))
    return next((places[path] for path in within), main)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
