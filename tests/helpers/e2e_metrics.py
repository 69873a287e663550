"""NIST and CIDEr-D as the script of the E2E challenge counts them: oracles.

Shortened from https://github.com/tuetschek/e2e-metrics, metrics/pymteval.py and
pycocoevalcap/cider/cider_scorer.py. Copyright (c) 2015-2017, Xinlei Chen, Hao Fang, Tsung-Yi Lin,
Ramakrishna Vedantam, and Ondrej Dusek; BSD 2-Clause (tests/recorded/e2e_metrics/LICENSE).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).parents[1] / "recorded" / "e2e_metrics"


def example() -> tuple[list[str], list[list[str]]]:
    """The answers of the challenge's baseline to 10 meanings, and people's, as its script has."""
    said = (RECORDED / "baseline-output.txt").read_text("utf-8").splitlines()
    blocks = (RECORDED / "devel-conc.txt").read_text("utf-8").strip().split("\n\n")
    return said, [block.splitlines() for block in blocks]


def tokenize(sent: str) -> list[str]:
    """pymteval's tokens, in lower case."""
    sent = f" {sent.lower()} "
    sent = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", sent)
    sent = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", sent)
    sent = re.sub(r"([\.,])([^0-9])", r" \1 \2", sent)
    sent = re.sub(r"([0-9])(-)", r"\1 \2 ", sent)
    return re.sub(r"\s+", " ", sent).strip().split(" ")


def _ngrams(n: int, sent: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*[sent[i:] for i in range(n)], strict=False))


def _counts(n: int, sents: Sequence[Sequence[str]]) -> dict[tuple[str, ...], int]:
    merged: dict[tuple[str, ...], int] = {}
    for sent in sents:
        own: dict[tuple[str, ...], int] = defaultdict(int)
        for ngram in _ngrams(n, sent):
            own[ngram] += 1
        for ngram, count in own.items():
            merged[ngram] = max(merged.get(ngram, 0), count)
    return merged


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]], orders: int = 5) -> float:
    """pymteval's NISTScore."""
    seen: list[dict[Any, int]] = [defaultdict(int) for _ in range(orders + 1)]
    hits: list[list[dict[Any, int]]] = [[] for _ in range(orders)]
    lengths = [0] * orders
    mean_length = 0.0
    for prediction, texts in zip(predictions, references, strict=True):
        said, right = tokenize(prediction), [tokenize(text) for text in texts]
        for n in range(orders):
            lengths[n] += len(said) - n
            allowed, own = _counts(n + 1, right), _counts(n + 1, [said])
            found = {g: min(c, allowed.get(g, 0)) for g, c in own.items()}
            hits[n].append({g: c for g, c in found.items() if c})
            for text in right:
                for ngram in _ngrams(n + 1, text):
                    seen[n + 1][ngram] += 1
        total = sum(len(text) for text in right)
        seen[0][()] += total
        mean_length += total / len(right)

    def info(ngram: tuple[str, ...]) -> float:
        return math.log(seen[len(ngram) - 1][ngram[:-1]] / seen[len(ngram)][ngram], 2)

    score = sum(
        sum(info(g) * c for each in hits[n] for g, c in each.items()) / lengths[n]
        for n in range(orders)
    )
    ratio = lengths[0] / mean_length
    beta = -math.log(0.5) / math.log(1.5) ** 2
    return score * (1.0 if ratio >= 1 else math.exp(-beta * math.log(ratio) ** 2))


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """coco-caption's CiderScorer, of texts whose tokens have blanks between them."""
    n_max, sigma = 4, 6.0

    def cook(text: str) -> dict[Any, int]:
        words, counts = text.split(), defaultdict(int)
        for k in range(1, n_max + 1):
            for i in range(len(words) - k + 1):
                counts[tuple(words[i : i + k])] += 1
        return counts

    tests, refs = [cook(t) for t in predictions], [[cook(t) for t in ts] for ts in references]
    frequency: dict[Any, float] = defaultdict(float)
    for own in refs:
        for ngram in {ngram for ref in own for ngram in ref}:
            frequency[ngram] += 1
    ref_len = np.log(float(len(refs)))

    def vector(counts: dict[Any, int]) -> tuple[list[dict[Any, float]], list[float], int]:
        vec: list[dict[Any, float]] = [defaultdict(float) for _ in range(n_max)]
        length, norm = 0, [0.0] * n_max
        for ngram, count in counts.items():
            n = len(ngram) - 1
            vec[n][ngram] = float(count) * (ref_len - np.log(max(1.0, frequency[ngram])))
            norm[n] += vec[n][ngram] ** 2
            if n == 1:
                length += count
        return vec, [float(np.sqrt(x)) for x in norm], length

    scores = []
    for test, own in zip(tests, refs, strict=True):
        vec, norm, length = vector(test)
        score = np.zeros(n_max)
        for ref in own:
            vec_ref, norm_ref, length_ref = vector(ref)
            for n in range(n_max):
                val = sum(min(w, vec_ref[n][g]) * vec_ref[n][g] for g, w in vec[n].items())
                if norm[n] != 0 and norm_ref[n] != 0:
                    val /= norm[n] * norm_ref[n]
                score[n] += val * np.e ** (-((length - length_ref) ** 2) / (2 * sigma**2))
        scores.append(np.mean(score) / len(own) * 10.0)
    return float(np.mean(scores))


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """coco-caption's Rouge, of texts whose tokens have blanks between them."""
    beta, scores = 1.2, []
    for prediction, texts in zip(predictions, references, strict=True):
        said, prec, rec = prediction.split(" "), [], []
        for text in texts:
            right = text.split(" ")
            table = np.zeros((len(said) + 1, len(right) + 1), int)
            for i, a in enumerate(said, 1):
                for j, b in enumerate(right, 1):
                    up, left = table[i - 1, j], table[i, j - 1]
                    table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(up, left)
            prec.append(table[-1, -1] / len(said))
            rec.append(table[-1, -1] / len(right))
        p, r = max(prec), max(rec)
        scores.append((1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0)
    return float(np.mean(scores))
