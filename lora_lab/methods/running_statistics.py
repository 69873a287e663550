"""State of a base that is no parameter and that a forward pass changes while it trains.

BatchNorm's running mean and variance, spectral norm's vectors, a codebook's averages: an adapter is
trained together with what they become, so each has values of its own, in the model while it is the
active one. The base keeps what it had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import FakeTensor, buffers_of, saved_buffers_of
from lora_lab.anatomy.wrappers import modules_within

Values = Mapping[str, Tensor]  # {name in the model's state dict: tensor on the CPU}


class RunningStatistics:
    """The values of a model's changing buffers, by owner: an adapter's name; None is the base.

    One owner's are in the model; the others' are on the CPU. What was changed is seen by comparing:
    BatchNorm's kernels do not count their writes among a tensor's versions.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = dict(_places(model))
        self._owner: str | None = None
        self._kept: dict[str | None, Values] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of the model's state dict is one of them."""
        return name in self._places

    def __bool__(self) -> bool:
        """Whether the model has any."""
        return bool(self._places)

    def become(self, owner: str | None) -> None:
        """Put an owner's values into the model; a new one's are the base's."""
        if owner == self._owner or not self._places:
            return
        wanted = self.values(owner)
        self._kept[self._owner] = self._read()
        self._owner = owner
        self._write(wanted)

    def values(self, owner: str | None) -> Values:
        """Return an owner's values."""
        if owner == self._owner:
            return self._read()
        return self._kept[owner] if owner in self._kept else self.values(None)

    def learned(self, owner: str) -> dict[str, Tensor]:
        """Return those of an adapter's values that are not the base's."""
        base = self.values(None)
        found = self.values(owner)
        return {name: v for name, v in found.items() if not torch.equal(v, base[name])}

    def replace(self, owner: str, values: Values) -> None:
        """Give an adapter values; what is not named is the base's."""
        if not self._places:
            return
        self._kept[owner] = {**self.values(None), **values}
        if owner == self._owner:
            self._write(self._kept[owner])

    def drop(self, owner: str) -> None:
        """Forget an adapter's values; the base's are in the model if these were."""
        if owner == self._owner:
            self.become(None)
        self._kept.pop(owner, None)

    def _read(self) -> Values:
        return {
            name: _buffer(*at).detach().to("cpu", copy=True) for name, at in self._places.items()
        }

    def _write(self, values: Values) -> None:
        with torch.no_grad():
            for name, before in self._read().items():
                if not torch.equal(before, values[name]):
                    _buffer(*self._places[name]).copy_(values[name])


@contextlib.contextmanager
def unchanged_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the statistics as they are, whatever is read of the model or passes through it."""
    here = RunningStatistics(model)
    here.become("meanwhile")
    try:
        yield
    finally:
        here.become(None)


def _places(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Yield (name, (module, key)) of buffers that a state dict holds and a pass may change.

    Packed weights of quantized layers are buffers too, with their scales; those stay as they are.
    """
    for path, module in modules_within(model):
        buffers = {key: b for key, b in saved_buffers_of(module).items() if b is not None}
        if any(not b.is_floating_point() and b.numel() > 1 for b in buffers.values()):
            continue
        for key, buffer in buffers.items():
            if not buffer.is_meta and not isinstance(buffer, FakeTensor):
                yield f"{path}.{key}".removeprefix("."), (module, key)


def _buffer(module: nn.Module, key: str) -> Tensor:
    buffer = buffers_of(module)[key]
    assert buffer is not None
    return buffer
