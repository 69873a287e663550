"""Metrics: a name, a function, and how to read its values. Needs no torch.

A metric of your own is one object, on a task of yours:

>>> rouge = register_metric(Metric("rouge", rouge_l, label="ROUGE-L"))
>>> task = dataclasses.replace(task, metrics=(*task.metrics, rouge))

From then on runs record "rouge_before" and "rouge_after", and every table and figure knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from lora_lab._util.format import format_number
from lora_lab.tasks import intervals, logical_form, meteor, nlg_scores, rouge, text_scores
from lora_lab.tasks.intervals import Interval

Score = Callable[[Sequence[Any], Sequence[Any]], float]
NATS = "nats per token"
RISE = "_rise"  # behind a metric's name: of the interval by which it rose


@dataclass(frozen=True)
class Metric:
    """How answers are scored, and what the score means.

    Attributes:
        name: its key in a run's metrics, in front of "_before" and "_after".
        function: (predictions, references) → score, one reference a prediction: of a prompt the
            tuple of completions that count as right, of a text with a class its number (as is the
            prediction), of a text with a number that number. None: measured in training (the loss).
        higher_is_better: which way comparisons, colors and sweeps read it.
        unit: such as "%"; "" where there is none.
        label: what people read; by default the name.
        unfit: references → why the score says nothing of them, so that it is left out; "" where it
            does. None: it always does.
        undefined: references → why the score has no value, so that 0 stands for it; "" where it
            has one. None: it always has.
        signature: references → how exactly it is counted, for the record.
        interval: (predictions, references) → the score's 95 % interval; None: the bootstrap's,
            for which `function` is called 200 times.
    """

    name: str
    function: Score | None
    higher_is_better: bool = True
    unit: str = ""
    label: str = ""
    unfit: Callable[[Sequence[Any]], str] | None = None
    undefined: Callable[[Sequence[Any]], str] | None = None
    signature: Callable[[Sequence[Any]], str] | None = None
    interval: Callable[[Sequence[Any], Sequence[Any]], Interval] | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    @property
    def title(self) -> str:
        """The label with its unit: "accuracy (%)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Return the score of predictions against their references."""
        assert self.function is not None, f"{self.name} is measured, not computed from answers"
        return float(self.function(predictions, references))

    def no_use(self, references: Sequence[Any]) -> str:
        """Return why nothing can be chosen by it on these references; "" where it can."""
        whys = (look(references) for look in (self.unfit, self.undefined) if look is not None)
        return next(filter(None, whys), "")

    def between(self, predictions: Sequence[Any], references: Sequence[Any]) -> Interval | None:
        """Return the score's 95 % interval; None of one prediction, or where it is not defined."""
        if len(predictions) < 2 or (self.undefined is not None and self.undefined(references)):
            return None
        if self.interval is not None:
            return self.interval(predictions, references)
        return intervals.of_function(self.compute, predictions, references)


_REGISTERED: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Have runs on disk, tables and figures know a metric by its name; return it."""
    _REGISTERED[metric.name] = metric
    return metric


def metric_of(key: str) -> Metric:
    """Return the metric of a run's key, such as "bleu" or "bleu_after".

    One that nobody registered goes by its name, and higher is better.
    """
    name = key.removesuffix("_before").removesuffix("_after")
    return _REGISTERED.get(name) or Metric(name, None)


class Change(NamedTuple):
    """A metric before training and after it; None where it is not known, or not finite."""

    metric: Metric
    before: float | None
    after: float | None

    def __str__(self) -> str:
        """Return "2.31 → 1.20", or the one that is known."""
        known = [format_number(value) for value in (self.before, self.after) if value is not None]
        return " → ".join(known)


def in_words(found: Sequence[Change], name: Callable[[Metric], str]) -> list[str]:
    """Return "BLEU 3.10 → 38.2" of each; what only the base has comes last, and is called its.

    >>> in_words([Change(LOSS, 4.0, None), Change(BLEU, 3.1, 38.2)], lambda metric: metric.label)
    ['BLEU (cased) 3.10 → 38.2', 'base model: held-out loss 4.00']
    """
    both = [f"{name(change.metric)} {change}" for change in found if change.after is not None]
    base = [f"{name(change.metric)} {change}" for change in found if change.after is None]
    return both + [f"base model: {text}" for text in base[:1]] + base[1:]


def changes(values: Mapping[Any, Any]) -> list[Change]:
    """Return what a run's {"bleu_before": …, "bleu_after": …} came to, in their order.

    What a file holds besides finite numbers does not count.
    """
    finite = {
        str(key): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    found = (
        Change(metric_of(name), finite.get(f"{name}_before"), finite.get(f"{name}_after"))
        for name in dict.fromkeys(key.rpartition("_")[0] for key in finite)
    )
    return [change for change in found if change[1:] != (None, None)]


def sureness(between: Mapping[str, Sequence[float]] | None, evaluated: Sequence[int] | None) -> str:
    """Return in one line how far a run's scores may be off, "" where nothing is known of it.

    Args:
        between: {"bleu_after": (low, high), …}, of 95 %; of "kept_loss_rise", by how much the loss
            after lies above the one before.
        evaluated: examples that were scored, of how many there are.
    """
    if not evaluated:
        return ""
    line = f"scored on {evaluated[0]:,} of {evaluated[1]:,} held-out examples"
    known = between or {}
    after = {k: pair for k, pair in known.items() if k.endswith("_after")}
    rises = {f"{k.removesuffix(RISE)}_after": p for k, p in known.items() if k.endswith(RISE)}
    each = [
        f"{metric_of(key).label} {format_number(low)} to {format_number(high)}"
        f"{_rise(rises.get(key))}"
        for key, (low, high) in (after or known).items()
    ]
    return f"{line}; 95 % intervals: {', '.join(each)}" if each else line


def _rise(between: Sequence[float] | None) -> str:
    if between is None:
        return ""
    low, high = ("+" * (value >= 0) + format_number(value) for value in between)
    return f" ({low} to {high} against the base model)"


def _accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    return 100 * _hits(predictions, references) / len(references)


def _hits(predictions: Sequence[int], references: Sequence[int]) -> int:
    return sum(p == r for p, r in zip(predictions, references, strict=True))


def _accuracy_between(predictions: Sequence[int], references: Sequence[int]) -> Interval:
    return intervals.wilson(_hits(predictions, references), len(references))


def _matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return Matthews's correlation times 100, as GLUE has it for CoLA; 0 of one class."""
    from sklearn.metrics import matthews_corrcoef

    varies = _vary(predictions, references)
    return 100 * matthews_corrcoef(references, predictions) if varies else 0.0


def _f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return F1 of the second of two classes from 0 to 100, as GLUE has it for MRPC and QQP."""
    from sklearn.metrics import f1_score

    return 100 * f1_score(references, predictions, zero_division=0.0)


def _macro_f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return the mean of all classes' F1 from 0 to 100."""
    from sklearn.metrics import f1_score

    return 100 * f1_score(references, predictions, average="macro", zero_division=0.0)


def _pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Return Pearson's correlation times 100, as GLUE has it for STS-B; 0 where one is constant."""
    from scipy.stats import pearsonr

    varies = _vary(predictions, references)
    return 100 * pearsonr(predictions, references).statistic if varies else 0.0


def _spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Return Spearman's rank correlation times 100; 0 where one is constant."""
    from scipy.stats import spearmanr

    varies = _vary(predictions, references)
    return 100 * spearmanr(predictions, references).statistic if varies else 0.0


def _one_class(references: Sequence[int]) -> str:
    return "the right answers are all of one class" if len(set(references)) == 1 else ""


def _no_positive(references: Sequence[int]) -> str:
    return "" if 1 in references else "no right answer is of the second class"


def _one_number(references: Sequence[float]) -> str:
    return "the right answers are all one number" if len(set(references)) == 1 else ""


def _vary(*values: Sequence[float]) -> bool:
    return all(len(set(each)) > 1 for each in values)


LOSS = register_metric(Metric("loss", None, higher_is_better=False, label="held-out loss"))
KEPT = register_metric(
    Metric("kept_loss", None, higher_is_better=False, unit=NATS, label="kept loss")
)
"""On text that the base model wrote itself; see `lora_lab.training.kept`."""
KEPT_DATA = register_metric(
    Metric("kept_data_loss", None, higher_is_better=False, label="loss on kept data")
)
"""On data that `kept_data` names."""
PERPLEXITY = register_metric(Metric("perplexity", None, higher_is_better=False))
BLEU = register_metric(
    Metric(
        "bleu",
        text_scores.bleu,
        label="BLEU (cased)",
        signature=text_scores.bleu_signature,
        interval=text_scores.bleu_interval,
        unfit=text_scores.too_short_for_bleu,
    )
)
BLEU_LOWERCASE = register_metric(
    Metric(
        "bleu_lowercase",
        partial(text_scores.bleu, lowercase=True),
        label="BLEU (lowercase)",
        signature=partial(text_scores.bleu_signature, lowercase=True),
        interval=partial(text_scores.bleu_interval, lowercase=True),
        unfit=text_scores.too_short_for_bleu,
    )
)
"""As the script of the E2E challenge counts it (mteval-v13a): case says nothing."""
CHRF = register_metric(
    Metric(
        "chrf",
        text_scores.chrf,
        label="chrF",
        signature=text_scores.chrf_signature,
        interval=text_scores.chrf_interval,
    )
)
EXACT_MATCH = register_metric(
    Metric(
        "exact_match",
        text_scores.exact_match,
        unit="%",
        label="exact match",
        interval=text_scores.exact_match_interval,
    )
)
OF_TEXTS = (BLEU, CHRF, EXACT_MATCH)  # by default
ROUGE_1, ROUGE_2 = (
    register_metric(
        Metric(
            f"rouge_{n}",
            partial(rouge.rouge_n, n=n),
            label=f"ROUGE-{n}",
            interval=partial(rouge.interval, n=n),
        )
    )
    for n in (1, 2)
)
ROUGE_L = register_metric(
    Metric("rouge_l", rouge.rouge_l, label="ROUGE-L", interval=rouge.interval)
)
COCO_ROUGE_L = register_metric(
    Metric(
        "rouge_l_coco",
        nlg_scores.coco_rouge_l,
        label="ROUGE-L (coco)",
        interval=nlg_scores.coco_rouge_l_interval,
    )
)
NIST = register_metric(
    Metric("nist", nlg_scores.nist, label="NIST", interval=nlg_scores.nist_interval)
)
CIDER = register_metric(
    Metric(
        "cider",
        nlg_scores.cider,
        label="CIDEr-D",
        interval=nlg_scores.cider_interval,
        unfit=nlg_scores.no_cider,
    )
)
METEOR, COCO_METEOR = (
    register_metric(
        Metric(
            name,
            function,
            label=label,
            signature=meteor.signature,
            interval=interval,
            unfit=meteor.no_meteor,
        )
    )
    for name, label, function, interval in (
        ("meteor", "METEOR", meteor.meteor, meteor.meteor_interval),
        ("meteor_coco", "METEOR (coco)", meteor.coco_meteor, meteor.coco_meteor_interval),
    )
)
"""Left out, with a line that says why, where its program is not installed."""
TER = register_metric(
    Metric(
        "ter",
        text_scores.ter,
        higher_is_better=False,
        label="TER",
        signature=text_scores.ter_signature,
        interval=text_scores.ter_interval,
    )
)
LOGICAL_FORM = register_metric(
    Metric(
        "logical_form",
        logical_form.accuracy,
        unit="%",
        label="logical form",
        interval=logical_form.interval,
    )
)
OF_E2E = (BLEU_LOWERCASE, NIST, COCO_METEOR, COCO_ROUGE_L, CIDER, ROUGE_L, *OF_TEXTS)
OF_TRIPLES = (BLEU_LOWERCASE, TER, METEOR, *OF_TEXTS)
OF_QUERIES = (LOGICAL_FORM, *OF_TEXTS)
OF_SUMMARIES = (ROUGE_1, ROUGE_2, ROUGE_L)
ACCURACY = register_metric(
    Metric("accuracy", _accuracy, unit="%", label="accuracy", interval=_accuracy_between)
)
MATTHEWS = register_metric(
    Metric(
        "matthews",
        _matthews,
        label="Matthews × 100",
        undefined=_one_class,
        interval=intervals.matthews,
    )
)
F1 = register_metric(
    Metric("f1", _f1, unit="%", label="F1", undefined=_no_positive, interval=intervals.f1)
)
MACRO_F1 = register_metric(
    Metric("macro_f1", _macro_f1, unit="%", label="macro F1", interval=intervals.macro_f1)
)
PEARSON = register_metric(
    Metric(
        "pearson",
        _pearson,
        label="Pearson × 100",
        undefined=_one_number,
        interval=intervals.pearson,
    )
)
SPEARMAN = register_metric(
    Metric(
        "spearman",
        _spearman,
        label="Spearman × 100",
        undefined=_one_number,
        interval=intervals.spearman,
    )
)
