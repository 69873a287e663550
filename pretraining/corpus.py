"""Generated English: what the small model reads before anybody adapts it.

Five kinds of short documents. Some hold little facts that can be remembered, and so forgotten;
records and questions ask for names to be copied. None has the form of mini-e2e's meanings, and no
record here is about a restaurant: its words turn up in talk, beside nothing that they mean there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pretraining import facts, records, tales, talk

# (kind, how often in twenty documents)
_KINDS = (
    (records.record, 8),
    (tales.tale, 4),
    (tales.question, 3),
    (talk.talk, 3),
    (facts.facts, 2),
)


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end; the same seed, the same documents."""
    rng = random.Random(f"mini-llama {seed}")
    kinds = [kind for kind, often in _KINDS for _ in range(often)]
    while True:
        yield rng.choice(kinds)(rng)
