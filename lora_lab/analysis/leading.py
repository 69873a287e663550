"""W₀'s strongest directions, remembered.

They are kept by content: the same weight is found again whether it comes as the parameter, a view
or a gathered copy, and a changed one (another model in the same memory, a merge) is not mistaken
for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._arrays import to_numpy

_KEPT = 128
_directions: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
_lock = threading.Lock()


def leading_directions(W: Any, count: int) -> Any:
    """Return U (out, count) of W₀'s strongest directions, computed once for each weight."""
    step = [max(1, n // 64) for n in W.shape]
    sample = to_numpy(W[:: step[0], :: step[1]])
    key = (
        tuple(W.shape),
        str(getattr(W, "device", "cpu")),
        isinstance(W, np.ndarray),
        count,
        float(spectra.matrix_norm(W)),
        hashlib.sha256(sample.tobytes()).hexdigest(),
    )
    with _lock:
        if key in _directions:
            _directions.move_to_end(key)
            return _directions[key]
    U = spectra.top_directions(W, count)[0]
    with _lock:
        _directions[key] = U
        while len(_directions) > _KEPT:
            _directions.popitem(last=False)
    return U
