"""How many rows' logits are made at a time."""

from __future__ import annotations

CHUNK = 1 << 23  # numbers: 32 MiB in float32


def chunk_rows(vocabulary: int, learned: int) -> int:
    """Return how many rows make a chunk.

    Args:
        vocabulary: logits a row.
        learned: numbers that learn in the output layer; a chunk's gradient of them is as large.
    """
    return max(1, CHUNK // vocabulary, learned // vocabulary)
