"""The caching allocator's rules, worked out by hand from its source."""

from __future__ import annotations

import pytest
import torch

from lora_lab.budget.cuda import CachingAllocator, CudaStorages

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (19 * MIB, 20 * MIB, 20 * MIB),  # a rest of 1 MiB is not split off
        (10 * MIB, 10 * MIB, 10 * MIB),
        (21 * MIB, 22 * MIB, 22 * MIB),
        (21 * MIB - 512, 21 * MIB - 512, 22 * MIB),  # but one of more than that is
    ],
)
def test_one_storage(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)
    allocator.free(1)
    assert (allocator.allocated, allocator.reserved) == (0, reserved)


def test_small_storages_share_a_segment_until_it_is_full() -> None:
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 512 * KIB)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(4, 1)
    assert allocator.reserved == 4 * MIB


def test_freed_neighbours_are_merged_and_used_again() -> None:
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 512 * KIB)
    allocator.free(0)
    allocator.free(2)
    allocator.allocate(5, 768 * KIB)  # two holes of 512 KiB do not hold it
    assert allocator.reserved == 4 * MIB
    allocator.free(1)  # now the first three are one hole
    allocator.allocate(6, 1024 * KIB)
    assert allocator.reserved == 4 * MIB
    for key in (3, 5, 6):
        allocator.free(key)
    allocator.allocate(7, MIB)
    allocator.allocate(8, MIB)
    allocator.allocate(9, MIB)
    allocator.allocate(10, MIB)
    assert (allocator.allocated, allocator.reserved) == (4 * MIB, 4 * MIB)


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 30 * MIB)
    allocator.allocate(2, 14 * MIB)
    allocator.free(1)
    allocator.free(2)
    allocator.allocate(3, 13 * MIB)  # of the 14, whose rest of 1 MiB stays with it
    assert allocator.allocated == 14 * MIB
    allocator.allocate(4, 30 * MIB)
    assert allocator.reserved == 44 * MIB


def test_nothing_takes_nothing() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 0)
    allocator.free(1)
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_pools_do_not_mix() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 2 * MIB)  # 18 MiB of its segment are free
    allocator.allocate(2, KIB)
    assert allocator.reserved == 22 * MIB


def test_storages_are_followed_in_their_order() -> None:
    counter = CudaStorages(workspace=8 * MIB + 1)
    with counter:
        first = torch.zeros(100)  # 400 bytes
        second = torch.zeros(MIB)  # 4 MiB
        del first
        third = torch.zeros(MIB)
    assert counter.peak == 8 * MIB
    extras = counter.extras()
    # The two workspaces fill a segment of 20 MiB together; the rest of it, just below 4 MiB, holds
    # nothing here, and both tensors lie in another.
    assert extras["cuBLAS workspaces"] == 2 * (8 * MIB + 512)
    assert extras["allocator rounding"] == 0
    assert extras["attention kernel"] == 0
    assert counter.allocator.reserved == (20 + 20 + 2) * MIB
    assert counter.peak + sum(extras.values()) == counter.allocator.reserved
    del second, third
