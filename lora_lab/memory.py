"""What training really takes: the live meter (CUDA, MPS, tensors on the CPU)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

KINDS = {"cuda": "CUDA memory", "mps": "MPS memory", "cpu": "tensor bytes on the CPU"}


@dataclass(frozen=True)
class MemoryReading:
    """Bytes in use, now and at the peak, and what kind of bytes they are."""

    current: int
    peak: int
    kind: str  # one of KINDS' values


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the distinct storages behind `tensors`: views and ties count once."""
    sizes = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages alive that this thread's operations read or write.

    A storage counts from the operation that first names it until it is freed. What a kernel
    allocates and frees within itself is not seen: the count is of tensors, not of the process.
    Measured: about 30 µs more an operation, 0.26 s more a step of SmolLM2-135M with all linear
    sites adapted (9,000 operations).
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = 0  # bytes
        self.peak = 0  # bytes
        self._references: dict[int, weakref.ref] = {}
        for tensor in existing:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._count(value)
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._references:
            return
        size = storage.nbytes()

        def freed(_: object, key: int = key, size: int = size) -> None:
            if self._references.pop(key, None) is not None:
                self.live -= size

        self._references[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


class Meter:
    """Measures what training `model` takes on the device that it lives on.

    - CUDA: the allocator's own count, less what was allocated before and is not this model's.
    - MPS: the driver's count at the moments that `sample` or `reading` is called, likewise less.
    - CPU: bytes of live tensors. The peak is counted operation by operation, and only while
      `measure` finds it worth its cost; `current` is weights, gradients and optimizer state.

    Args:
        model: the model, adapter attached.
        optimizer: its state counts too; it may be given later (`meter.optimizer = …`).
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = next(model.parameters()).device
        self.kind = KINDS.get(self.device.type, f"{self.device.type} memory")
        self._peak = 0
        self._measured_steps = 0
        self._most_tokens = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        # On a shared device: another model's bytes are not this training's.
        self._foreign = max(0, self._allocated() - self.resident())

    def resident(self) -> int:
        """Return the bytes of weights, buffers, gradients and optimizer state."""
        return storage_bytes(self._resident_tensors())

    def reading(self) -> MemoryReading:
        """Return the bytes in use now and the most seen since the meter was made."""
        if self.device.type == "cuda":
            current = torch.cuda.memory_allocated(self.device) - self._foreign
            self._peak = torch.cuda.max_memory_allocated(self.device) - self._foreign
        elif self.device.type == "mps":
            current = self._allocated() - self._foreign
        else:
            current = self.resident()
        self._peak = max(self._peak, current)
        return MemoryReading(current=current, peak=self._peak, kind=self.kind)

    def sample(self) -> None:
        """Look at the MPS driver's count now: it keeps no peak of its own. Elsewhere: nothing."""
        if self.device.type == "mps":
            self._peak = max(self._peak, self._allocated() - self._foreign)

    @contextlib.contextmanager
    def measure(self, tokens: int) -> Iterator[bool]:
        """Measure the block, one forward and backward pass; yields whether it does so.

        On the CPU only the first two passes are measured (the second is the first with optimizer
        state) and then those with more tokens than any measured before, since counting makes a
        pass slower. CUDA counts by itself, always.

        Args:
            tokens: the size of the padded batch, examples × length.
        """
        worth_it = self._measured_steps < 2 or tokens > self._most_tokens
        if self.device.type != "cpu" or not worth_it:
            yield self.device.type == "cuda"
            return
        counter = LiveStorages(self._resident_tensors())
        try:
            with counter:
                yield True
        finally:
            self._peak = max(self._peak, counter.peak)
        self._measured_steps += 1
        self._most_tokens = max(tokens, self._most_tokens)

    def _allocated(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory()
        return 0

    def _resident_tensors(self) -> Iterator[torch.Tensor]:
        for parameter in self.model.parameters():
            yield parameter.detach()
            if parameter.grad is not None:
                yield parameter.grad
        yield from self.model.buffers()
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))
