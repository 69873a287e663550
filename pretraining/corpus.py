"""Generated English: what the small model reads before anybody adapts it.

Six kinds of short documents. Some hold little facts that can be remembered, and so forgotten;
echoes, records and questions ask for names to be copied. None has the form of mini-e2e's meanings,
and no record here is about a restaurant: its words turn up in talk, beside nothing that they mean
there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pretraining import facts, names, records, tales, talk


def echo(rng: random.Random) -> str:
    """Return words that mean nothing, twice: nothing teaches copying sooner."""
    said = " ".join(names.word(rng) for _ in range(rng.randint(3, 8)))
    return f"{said}\n{said}"


# (kind, how often in twenty documents)
_KINDS = (
    (records.record, 6),
    (echo, 6),
    (tales.tale, 1),
    (tales.question, 3),
    (talk.talk, 2),
    (facts.facts, 2),
)


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end; the same seed, the same documents."""
    rng = random.Random(f"mini-llama {seed}")
    kinds = [kind for kind, often in _KINDS for _ in range(often)]
    while True:
        yield rng.choice(kinds)(rng)
