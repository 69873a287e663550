"""How a tensor lies in memory."""

from __future__ import annotations

from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its piece of memory, in any order, without gaps and overlaps.

    torch's rule (`is_non_overlapping_and_dense`, c10/core/TensorImpl.cpp).
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return tensor.numel() == 0
            expected *= size
    return True
