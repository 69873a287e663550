"""NumPy and torch side by side: the few conversions that `analysis` needs."""

from __future__ import annotations

from typing import Any

import numpy as np


def stack(arrays: list[Any]) -> Any:
    """Return arrays of one shape as one array with a leading axis, cut off from autograd."""
    if isinstance(arrays[0], np.ndarray):
        return np.stack(arrays)
    import torch

    return torch.stack([computable(array).detach() for array in arrays])


def computable(x: Any) -> Any:
    """Return x where LAPACK's routines exist: Apple's GPU has no QR or SVD of its own."""
    return x.cpu() if getattr(getattr(x, "device", None), "type", "") == "mps" else x


def same_library(x: Any, other: Any) -> Any:
    """Return x in the other's library, on its device, cut off from autograd."""
    if isinstance(other, np.ndarray):
        return x if isinstance(x, np.ndarray) else to_numpy(x)
    if not isinstance(x, np.ndarray):
        return x.detach().to(other.device)
    import torch

    # A copy: a Snapshot's arrays may be read-only, which torch warns about.
    return torch.tensor(x, device=other.device)


def to_numpy(x: Any) -> np.ndarray:
    """Return a float32 copy in NumPy of an array of any type on any device."""
    if isinstance(x, np.ndarray):
        return x.astype(np.float32)
    return x.detach().float().cpu().numpy().copy()
