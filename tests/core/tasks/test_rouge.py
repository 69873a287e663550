"""ROUGE: the examples that Lin (2004) and the package rouge-score publish."""

from __future__ import annotations

import pytest

from lora_lab.tasks.metrics import ROUGE_1, ROUGE_2, ROUGE_L, metric_of


def test_the_example_of_rouge_scores_readme() -> None:
    right = [("The quick brown fox jumps over the lazy dog",)]
    said = ["The quick brown dog jumps on the log."]
    assert ROUGE_1.compute(said, right) == pytest.approx(70.58823529411765)
    assert ROUGE_L.compute(said, right) == pytest.approx(58.82352941176471)


def test_the_example_of_lin_section_3_1() -> None:
    right = [("police killed the gunman",)]
    assert ROUGE_L.compute(["police kill the gunman"], right) == pytest.approx(75)
    assert ROUGE_L.compute(["the gunman kill police"], right) == pytest.approx(50)
    # Of their bigrams each has one of three: "the gunman".
    for said in ("police kill the gunman", "the gunman kill police"):
        assert ROUGE_2.compute([said], right) == pytest.approx(100 / 3)


def test_the_best_reference_counts_and_nothing_is_no_error() -> None:
    assert ROUGE_L.compute(["a b"], [("c d", "A, b!")]) == 100
    assert ROUGE_1.compute(["", "x"], [("a",), ("",)]) == 0
    assert ROUGE_1.compute(["Größe 東京"], [("größe 東京",)]) == 100
    low, high = ROUGE_1.between(["a", "b", "a", "b"] * 5, [("a",)] * 20)
    assert low < 50 < high
    assert metric_of("rouge_l_after").label == "ROUGE-L"
