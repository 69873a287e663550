"""What sacrebleu does not say in public: each private name that is used, in one function.

Seen on sacrebleu 2.4 to 2.6. Its own bootstrap (`n_bootstrap`) fails in 2.6 where one resample has
nothing right: `statistics.mean` takes no float beside NumPy's float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def resampled_scores(
    metric: Any,
    predictions: Sequence[str],
    streams: Sequence[Sequence[str | None]],
    resamples: np.ndarray,
) -> list[float]:
    """Return a metric's corpus score of each resample; what is counted in a text is counted once.

    Args:
        metric: sacrebleu's BLEU, CHRF or TER.
        predictions: one an example.
        streams: references as sacrebleu takes them.
        resamples: (resamples, examples) of examples' numbers.
    """
    counts = np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.float64)
    return [float(metric._compute_score_from_stats(counts[r].sum(0)).score) for r in resamples]
