"""Whether an adapter has room for its data: bits it can store against bits the data holds.

Source: Schulman & Thinking Machines Lab, "LoRA Without Regret" (2025): about 2 bits a parameter can
be stored; the data holds at most what a first pass over it costs, the log-loss of unseen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_lab.errors import AdapterError

BITS_PER_PARAMETER = 2.0


def capacity_bits(parameters: int) -> float:
    """Return 2·|Θ|, about how many bits that many trainable parameters can store."""
    return BITS_PER_PARAMETER * parameters


def first_epoch_bits(
    losses: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray
) -> float:
    """Return Σ loss·tokens/ln 2: the data's information, as the first epoch's log-loss in bits.

    An upper bound on what there is to learn by heart: every token is still new when its loss is
    taken. Later epochs must not be counted again.

    Args:
        losses: (steps,) mean cross-entropy of each step, in nats per token.
        tokens: (steps,) how many tokens each mean was taken over.

    Raises:
        AdapterError: arrays of different lengths, or NaN or infinite losses.
    """
    nats, counts = np.asarray(losses, np.float64), np.asarray(tokens, np.float64)
    if nats.shape != counts.shape:
        raise AdapterError(
            f"{nats.size} losses for {counts.size} token counts; each step needs one of both"
        )
    if not (np.isfinite(nats).all() and np.isfinite(counts).all()):
        raise AdapterError(
            "the losses hold NaN or infinite values: training diverged; lower the learning rate"
        )
    return float((nats * counts).sum()) / math.log(2)


def capacity_used(data_bits: float, parameters: int) -> float:
    """Return the data's bits over `capacity_bits`: above 1, the adapter cannot hold all of them.

    Raises:
        AdapterError: no parameters.
    """
    if parameters < 1:
        raise AdapterError("no trainable parameters, so no capacity; adapt at least one matrix")
    return data_bits / capacity_bits(parameters)
