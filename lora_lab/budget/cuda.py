"""What a CUDA device needs on top of the tensors: allocator, cuBLAS, the attention kernel.

A model of torch's caching allocator (c10/cuda/CUDACachingAllocator.cpp, the default settings) is
fed the storages of a dry run in their true order; what kernels allocate for themselves is added
from their sources.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lora_lab.budget.gpu import Gpu
from lora_lab.budget.gpu_attention import attention_scratch
from lora_lab.budget.meter import LiveStorages

KIB, MIB = 2**10, 2**20
_SMALL = MIB  # up to here a storage lives in the small pool
# Two threads, the one that trains and autograd's own, have a cuBLAS handle each.
_HANDLES = 2


@dataclass(eq=False)
class _Block:
    """A stretch of a segment."""

    address: int
    size: int
    small: bool
    free: bool = True
    before: _Block | None = None  # neighbors in the same segment
    after: _Block | None = None


@dataclass
class CachingAllocator:
    """Torch's CUDA caching allocator: what it hands out, and what it holds.

    Sizes are rounded up to 512 bytes. A small request (up to 1 MiB) is cut from segments of 2 MiB,
    one below 10 MiB from segments of 20 MiB, a larger one gets a segment of its own, rounded up to
    2 MiB. Freed blocks are merged and used again, the smallest that fits first; of a large block
    no rest of up to 1 MiB is split off.

    Attributes:
        allocated: bytes handed out (`torch.cuda.memory_allocated`).
        reserved: bytes of all segments (`torch.cuda.memory_reserved`); none is given back.
    """

    allocated: int = 0
    reserved: int = 0
    _used: dict[int, _Block] = field(default_factory=dict)  # {key: block}
    _free: dict[bool, list[tuple[int, int]]] = field(default_factory=lambda: {True: [], False: []})
    _blocks: dict[int, _Block] = field(default_factory=dict)  # {address: free block}

    def allocate(self, key: int, size: int) -> None:
        """Hand out a block of at least `size` bytes under a key."""
        if size == 0:
            return
        size = -(-size // 512) * 512
        small = size <= _SMALL
        block = self._best_fit(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= 512 if small else rest > _SMALL:
            self._split(block, size)
        block.free = False
        self.allocated += block.size
        self._used[key] = block

    def free(self, key: int) -> None:
        """Take back the block under a key, and merge it with its free neighbors."""
        block = self._used.pop(key, None)
        if block is None:  # of no bytes
            return
        self.allocated -= block.size
        block.free = True
        if (after := block.after) and after.free:
            self._take(after)
            block.size += after.size
            block.after = after.after
        if (before := block.before) and before.free:
            self._take(before)
            before.size += block.size
            before.after = block.after
            block = before
        if block.after:
            block.after.before = block
        self._put(block)

    def _best_fit(self, size: int, small: bool) -> _Block | None:
        for found, address in self._free[small]:
            if found >= size:
                block = self._blocks[address]
                self._take(block)
                return block
        return None

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            length = 2 * MIB
        elif size < 10 * MIB:
            length = 20 * MIB
        else:
            length = -(-size // (2 * MIB)) * 2 * MIB
        block = _Block(address=self.reserved, size=length, small=small)
        self.reserved += length
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(
            block.address + size, block.size - size, block.small, before=block, after=block.after
        )
        if block.after:
            block.after.before = rest
        block.after, block.size = rest, size
        self._put(rest)

    def _put(self, block: _Block) -> None:
        insort(self._free[block.small], (block.size, block.address))
        self._blocks[block.address] = block

    def _take(self, block: _Block) -> None:
        self._free[block.small].remove((block.size, block.address))
        del self._blocks[block.address]


class CudaStorages(LiveStorages):
    """Counts live storages, and follows what a CUDA device would allocate for them.

    Args:
        existing: see `LiveStorages`.
        workspace: bytes of one cuBLAS workspace.
    """

    def __init__(self, existing: Iterable[Tensor] = (), workspace: int = 0) -> None:
        self.allocator = CachingAllocator()
        self.allocated_peak = 0  # without the workspaces and what kernels allocate for themselves
        self.full_peak = 0  # with them
        self._workspaces = 0
        super().__init__(existing)
        for handle in range(_HANDLES):
            before = self.allocator.allocated
            self.allocator.allocate(-1 - handle, workspace)
            self._workspaces += self.allocator.allocated - before

    def grow(self, key: int, size: int) -> None:
        """See `LiveStorages.grow`."""
        super().grow(key, size)
        self.allocator.allocate(key, size)
        now = self.allocator.allocated
        self.allocated_peak = max(self.allocated_peak, now - self._workspaces)
        self.full_peak = max(self.full_peak, now)

    def shrink(self, key: int, size: int) -> None:
        """See `LiveStorages.shrink`."""
        super().shrink(key, size)
        self.allocator.free(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation; let a kernel's own temporaries come and go."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if "attention" in str(func) and "backward" in str(func):
            kernel = "efficient" if "efficient" in str(func) else "flash"
            self.allocator.allocate(0, attention_scratch(args[1], args[2], kernel))
            self.full_peak = max(self.full_peak, self.allocator.allocated)
            self.allocator.free(0)
        return out

    def extras(self) -> dict[str, int]:
        """Return what comes on top of the live tensors' peak, by name, in bytes."""
        kernels = self.full_peak - self._workspaces - self.allocated_peak
        return {
            "allocator rounding": self.allocated_peak - self.peak,
            "cuBLAS workspaces": self._workspaces,
            "attention kernel": kernels,
            "cached blocks": self.allocator.reserved - self.full_peak,
        }


def cublas_workspace(gpu: Gpu | None) -> int:
    """Return a cuBLAS workspace's bytes (`parseChosenWorkspaceSize` in CublasHandlePool.cpp)."""
    return 32 * MIB if gpu and gpu.capability[0] >= 9 else 2 * 4096 * KIB + 8 * 16 * KIB
