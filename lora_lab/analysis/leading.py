"""W₀ with what was found out about it before: its norm, strongest directions, left vectors.

All of it is kept by content: the same weight is found again whether it comes as the parameter, a
view or a gathered copy, and a changed one (another model in the same memory, a merge) is not
mistaken for it. To recognize a 4096² weight takes about 3 ms.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import computable, to_numpy

_Arrays = tuple[np.ndarray, ...]

# In host memory. All left vectors of SmolLM2-135M take 340 MB; a larger model's come and go.
_KEPT_BYTES = 512 << 20
_kept: OrderedDict[tuple[Any, ...], _Arrays] = OrderedDict()
_lock = threading.Lock()


class BaseWeight:
    """One W₀ (out, in), and what is known of it. Found arrays are NumPy's, float32.

    All members raise `ModelError` where W₀ holds NaN or infinite values.

    Attributes:
        W: the weight itself, where LAPACK's routines exist; never changed.
    """

    def __init__(self, W: Any) -> None:
        self.W = computable(W)
        self._content = _content(self.W)

    @property
    def norm(self) -> float:
        """‖W₀‖_F."""

        def find() -> _Arrays:
            return (np.asarray(float(spectra.matrix_norm(self.W))),)

        return float(self._recall("norm", find)[0])

    def leading(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `spectra.top_directions`: U (out, c), s (c,), Vt (c, in), c ≤ `count`."""

        def find() -> _Arrays:
            return tuple(map(to_numpy, spectra.top_directions(self.W, count)))

        U, s, Vt = self._recall("leading", find)
        if len(s) < min(count, *self.W.shape):  # fewer were asked for before
            U, s, Vt = self._keep("leading", find())
        return U[:, :count], s[:count], Vt[:count]

    def left_vectors(self) -> np.ndarray:
        """Return all left singular vectors, (out, min(out, in)), strongest first: an exact SVD."""

        def find() -> _Arrays:
            return (to_numpy(spectra.top_directions(self.W, min(self.W.shape))[0]),)

        return self._recall("left vectors", find)[0]

    def random_projections(self, r: int, draws: int, seed: int) -> np.ndarray:
        """Return `spectra.sampled_random_projection`, (draws,)."""

        def find() -> _Arrays:
            return (to_numpy(spectra.sampled_random_projection(self.W, r, draws, seed)),)

        return self._recall(("random", r, draws, seed), find)[0]

    def _recall(self, what: Any, find: Callable[[], _Arrays]) -> _Arrays:
        key = (*self._content, what)
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
        return self._keep(what, find())

    def _keep(self, what: Any, arrays: _Arrays) -> _Arrays:
        with _lock:
            _kept[(*self._content, what)] = arrays
            size = sum(array.nbytes for known in _kept.values() for array in known)
            while size > _KEPT_BYTES:
                size -= sum(array.nbytes for array in _kept.popitem(last=False)[1])
        return arrays


def leading_directions(W: Any, count: int) -> np.ndarray:
    """Return U (out, count) of W₀'s strongest directions, computed once for each weight."""
    return BaseWeight(W).leading(count)[0]


def _content(W: Any) -> tuple[Any, ...]:
    """Return what tells weights apart: shape, type, some of the numbers, and sums over all."""
    step = [max(1, n // 64) for n in W.shape]
    digest = hashlib.sha256(to_numpy(W[:: step[0], :: step[1]]).tobytes())
    for sums in _sums_of_bits(W):
        digest.update(sums.tobytes())
    return tuple(W.shape), str(W.dtype), digest.hexdigest()


def _sums_of_bits(W: Any) -> tuple[np.ndarray, ...]:
    """Return the sums of W's memory, read as integers, over each of about √size equal parts.

    They are exact, and take one walk through the memory: a cryptographic hash of it all takes
    fifteen times as long.
    """
    if not isinstance(W, np.ndarray):
        import torch

        same_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[W.itemsize]
        W = W.detach().view(same_size)
        if W.device.type != "cpu":
            return (W.sum(1, dtype=torch.int64).cpu().numpy(),)
        W = W.numpy()
    flat = W.ravel(order="K")
    words = flat[: flat.size - flat.size % (8 // flat.itemsize)].view(np.int64)
    side = math.isqrt(words.size)
    sums = words[: side * side].reshape(side, side).sum(axis=1)
    return sums, words[side * side :], flat[words.nbytes // flat.itemsize :]
