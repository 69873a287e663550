"""Scores of texts that a model wrote: BLEU, chrF and TER as sacrebleu has them, and exact match.

sacrebleu: Post, 2018, https://aclanthology.org/W18-6319. References are, of each prompt, all of the
completions that count as right.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lora_lab._util.sacrebleu_private import resampled_scores
from lora_lab.tasks.intervals import Interval, between, drawn, wilson

References = Sequence[Sequence[str]]

_ORDER = 4  # BLEU's longest n-grams
_ENOUGH = 10  # one reference in so many in another script, and the tokens follow it
# Words are not set apart by spaces, or (Korean) sacrebleu's own choice needs an analyzer.
_BY_CHARACTER = (
    *("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "HANGUL"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI ", "JAVANESE", "BALINESE"),
)

Tokens = Literal["13a", "zh", "char"]


def bleu_tokens(references: References) -> Tokens:
    """Return sacrebleu's name of the tokens that BLEU is counted in: it follows the script.

    Chinese: "zh", each of its characters and other words as they are; where Japanese, Korean,
    Thai, Lao, Khmer, Burmese and their like are among the references: "char"; else "13a".
    """
    found = Counter(_script(text) for texts in references for text in texts)
    for tokens in ("char", "zh"):
        if found[tokens] * _ENOUGH >= found.total():
            return tokens
    return "13a"


def _script(text: str) -> Tokens:
    letters = Counter(_letter(character) for character in text)
    if letters["char"] and letters["char"] + letters["zh"] > letters["13a"]:
        return "char"
    return "zh" if letters["zh"] > letters["13a"] else "13a"


def _letter(character: str) -> str:
    if character.isascii():
        return "13a" if character.isalpha() else ""
    name = unicodedata.name(character, "")
    if name.startswith("CJK"):
        return "zh" if "IDEOGRAPH" in name else ""
    if name.startswith(_BY_CHARACTER):
        return "char"
    return "13a" if character.isalpha() else ""


def bleu(predictions: Sequence[str], references: References, lowercase: bool = False) -> float:
    """Return corpus BLEU from 0 to 100, mixed case by default, in the tokens of `bleu_tokens`."""
    return _corpus_score(_bleu(references, lowercase), predictions, references)


def bleu_interval(
    predictions: Sequence[str], references: References, lowercase: bool = False
) -> Interval:
    """Return the 95 % interval of `bleu`, by the bootstrap (Koehn, 2004)."""
    return _interval(_bleu(references, lowercase), predictions, references)


def too_short_for_bleu(references: References) -> str:
    """Return why BLEU says nothing of answers to these references; "" where it does.

    It is the mean of the matches of 1 to 4 words: a shorter answer has none of 4, right or wrong.
    """
    tokenizer = _bleu(references).tokenizer  # case changes no count of words
    short = sum(min(len(tokenizer(t).split()) for t in texts) < _ORDER for texts in references)
    if 2 * short < len(references):
        return ""
    return f"{short} of {len(references)} right answers have fewer than {_ORDER} words"


def bleu_signature(references: References, lowercase: bool = False) -> str:
    """Return sacrebleu's signature of `bleu`."""
    return _signature(_bleu(references, lowercase), references)


def chrf(predictions: Sequence[str], references: References) -> float:
    """Return corpus chrF2 from 0 to 100 (Popović, 2015): n-grams of 1 to 6 characters."""
    return _corpus_score(_chrf(), predictions, references)


def chrf_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `chrf`, by the bootstrap."""
    return _interval(_chrf(), predictions, references)


def chrf_signature(references: References) -> str:
    """Return sacrebleu's signature of `chrf`."""
    return _signature(_chrf(), references)


def ter(predictions: Sequence[str], references: References) -> float:
    """Return corpus TER (Snover et al., 2006): edits and shifts of a hundred words; less is better.

    Of several references the nearest one's edits count, of their lengths the mean; without regard
    to case.
    """
    return float(_ter().corpus_score(list(predictions), _streams(references)).score)


def ter_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `ter`, by the bootstrap."""
    rows = drawn(len(predictions))
    return between(resampled_scores(_ter(), predictions, _streams(references), rows))


def ter_signature(references: References) -> str:
    """Return sacrebleu's signature of `ter`."""
    return _signature(_ter(), references)


def words(references: References) -> Callable[[str], list[str]]:
    """Return what cuts a text into words, in lower case: the tokens that BLEU is counted in."""
    tokenizer = _bleu(references, lowercase=True).tokenizer
    return lambda text: tokenizer(text.lower()).split()


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Return how many answers of a hundred are one of the right ones; white space around is none.

    Nothing else is made alike: neither case nor punctuation.
    """
    return 100 * _hits(predictions, references) / len(references)


def exact_match_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `exact_match`."""
    return wilson(_hits(predictions, references), len(references))


def _hits(predictions: Sequence[str], references: References) -> int:
    return sum(
        prediction.strip() in {text.strip() for text in texts}
        for prediction, texts in zip(predictions, references, strict=True)
    )


def _bleu(references: References, lowercase: bool = False) -> Any:
    from sacrebleu.metrics import BLEU

    # force: no word on references that look as if they were tokenized before.
    return BLEU(lowercase=lowercase, tokenize=bleu_tokens(references), force=True)


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _ter() -> Any:
    from sacrebleu.metrics import TER

    return TER()


def _corpus_score(metric: Any, predictions: Sequence[str], references: References) -> float:
    score: float = metric.corpus_score(list(predictions), _streams(references)).score
    return min(score, 100.0)  # a perfect BLEU is 100.00000000000004


def _interval(metric: Any, predictions: Sequence[str], references: References) -> Interval:
    rows = drawn(len(predictions))
    low, high = between(resampled_scores(metric, predictions, _streams(references), rows))
    return low, min(high, 100.0)


def _signature(metric: Any, references: References) -> str:
    metric.corpus_score([texts[0] for texts in references], _streams(references))
    return str(metric.get_signature())


def _streams(references: References) -> list[list[str | None]]:
    # sacrebleu wants the i-th reference of every example as one stream; None: it has fewer.
    return [
        [texts[i] if i < len(texts) else None for texts in references]
        for i in range(max(map(len, references)))
    ]
