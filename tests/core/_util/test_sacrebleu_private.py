"""sacrebleu's private names: what fails first after an upgrade."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from lora_lab._util import sacrebleu_private


@pytest.mark.parametrize("metric", [sacrebleu.BLEU(), sacrebleu.CHRF()], ids=["bleu", "chrf"])
def test_a_resamples_score_is_that_of_its_texts(metric: sacrebleu.metrics.base.Metric) -> None:
    said = ["a cat sat on the mat", "it rains in Spain today", "", "nothing is right here at all"]
    right = ["the cat sat on the mat", "it rains in Spain", "yes it is", "wholly other words"]
    others = ["a cat sat on a mat", None, None, None]
    rows = np.array([[0, 1, 2, 3], [0, 0, 1, 1], [2, 3, 3, 2]])
    found = sacrebleu_private.resampled_scores(metric, said, [right, others], rows)
    for score, row in zip(found, rows, strict=True):
        texts, *streams = ([given[i] for i in row] for given in (said, right, others))
        assert score == pytest.approx(metric.corpus_score(texts, streams).score, rel=1e-9)
