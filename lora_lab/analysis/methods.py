"""Several methods on one task: what each came to, and what it took."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lora_lab._util.format import format_bytes, plural
from lora_lab._util.tables import Table
from lora_lab.analysis.differing import (
    NO_MATTER,
    full_settings,
    of_kept,
    same_but,
    settings_in_words,
)
from lora_lab.analysis.identity import OLDER, grouped, named_groups, untold
from lora_lab.analysis.records import (
    end_state,
    final_score,
    loss_unit,
    metrics,
    nothing_to_show,
    refuse_differences,
    shared_settings,
    training_settings,
)
from lora_lab.analysis.seeds import OverSeeds, mean_and_spread
from lora_lab.errors import RunError
from lora_lab.redaction import shown_redacted
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import KEPT, NATS, metric_of

# Every method wants its own learning rate; the rest of the training is the same for all.
_FREE = (
    *("learning_rate", "loraplus_lr_ratio", "weight_decay"),
    *("seed", "train_sampling_strategy", *NO_MATTER),
)
_IN_A_ROW = ("seed", *NO_MATTER)  # what runs of one row may differ in: nothing else is averaged
_OF_START = "start_from"
_KEPT = f"{KEPT.name}_after"
_HEAD = "+Head"  # a combination's name ends so where a classifier's head has a config of its own
_FIX = "compare runs of one model, task and training that differ in method, learning rate and seed"


@dataclass(frozen=True)
class MethodRow(OverSeeds):
    """One method with one setting, over its runs.

    Attributes:
        method: the paper's name, such as "LoRA+PE"; a classifier's head has no part in it.
        setting: what sets the row apart, such as "r = 8, q v".
        learning_rate: the peak rate.
        trainable: parameters at the end, AdaLoRA's after its last cut; a classifier's head is not
            counted, as in the paper.
        values: the metric of every run.
        seconds: trained time of a run, the median.
        peak_memory: bytes at the peak of training, the largest; see `MemoryReading`.
        checkpoint_bytes: of the saved weights, the largest.
        kept: the loss on text that the base model wrote, of every run that has it; see
            `lora_lab.training.kept`.
        evaluated: held-out examples that each run was scored on, of how many; None: not known.
    """

    method: str
    setting: str
    learning_rate: float
    trainable: int
    values: tuple[float, ...]
    seconds: float
    peak_memory: int
    checkpoint_bytes: int
    kept: tuple[float, ...] = ()
    evaluated: tuple[int, int] | None = None


@shown_redacted
@dataclass(frozen=True, repr=False)
class MethodComparison:
    """Methods side by side. Printing it shows a table.

    Attributes:
        metric: such as "loss_after" (nats per token), "bleu_after" or "accuracy_after".
        model, task, steps: what all runs share.
        rows: by the number of trainable parameters, fewest first.
        base: the same metric before training; None where it was not measured.
        kept_base: the base model's loss on its own text, likewise.
        note: what the reader has to know of the runs, "" when nothing.
        loss_unit: of a metric that is a loss.
    """

    metric: str
    model: str
    task: str
    steps: int
    rows: tuple[MethodRow, ...]
    base: float | None
    note: str
    loss_unit: str = NATS
    kept_base: float | None = None

    @property
    def low_is_good(self) -> bool:
        """Whether the metric is best when lowest, as a loss is."""
        return not metric_of(self.metric).higher_is_better

    @property
    def best(self) -> MethodRow:
        """The row with the best mean."""
        pick = min if self.low_is_good else max
        return pick(self.rows, key=lambda row: row.mean)

    def to_table(self) -> Table:
        """Return the rows as a table for people."""
        kept = any(row.kept for row in self.rows) and self.metric != _KEPT
        header = (
            *("method", "setting", "learning rate", "trainable", self.metric),
            *((KEPT.label,) if kept else ()),
            *("seconds", "peak memory", "checkpoint"),
        )
        rows = tuple(_cells(row, kept) for row in self.rows)
        return Table(header, rows, frozenset(header[2:]))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        rows = [
            {**vars(row), **_lists(row), "mean": row.mean, "spread": row.spread}
            for row in self.rows
        ]
        return {**vars(self), "rows": rows}

    def __str__(self) -> str:
        return "\n".join(filter(None, (str(self.to_table()), self.note)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_table()._repr_html_() + (
            f"<div>{escape(self.note)}</div>" if self.note else ""
        )


def compare_methods(records: Iterable[RunRecord], metric: str = "loss_after") -> MethodComparison:
    """Lay runs of several methods side by side: what each came to, and what it took.

    Runs that differ in nothing but the seed make one row; every field in which rows of one method
    differ is in their setting. Runs that have not ended with the metric are left out and counted
    in the note.

    Args:
        records: as `list_runs` returns them.
        metric: a key of the runs' metrics; which way is better, the registered `Metric` says.

    Raises:
        RunError: nothing to show: no runs, none that ended with the metric, or runs that are not
            comparable (another model, task, number of steps, batch …); the line names the setting
            in which they differ.
    """
    records = list(records)
    settings = [_settings(record, metric) for record in records]
    refuse_differences(settings, _FIX)
    ended = [record for record in records if final_score(record, metric) is not None]
    if not ended:
        raise nothing_to_show(records, metric)
    groups: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for record in ended:
        groups[same_but(full_settings(record), _IN_A_ROW)].append(record)
    told = ("learning_rate", *_IN_A_ROW)
    words = settings_of_rows([group[0] for group in groups.values()], told)
    rows = [_row(*pair, metric) for pair in zip(groups.values(), words, strict=True)]
    shared = settings[0]
    return MethodComparison(
        metric=metric,
        model=shared["model name"],
        task=shared["task"],
        steps=shared["max_steps"],
        rows=tuple(sorted(rows, key=lambda row: (row.trainable, row.method, row.setting))),
        base=_base(ended, metric),
        kept_base=_base(ended, _KEPT),
        note=_note(records, metric, len(ended), groups.values(), untold(settings)),
        loss_unit=loss_unit(ended[0]),
    )


def comparable_methods(records: Iterable[RunRecord]) -> tuple[tuple[RunRecord, ...], ...]:
    """Sort runs into groups that one `compare_methods` can show, the largest group first."""
    known: list[tuple[RunRecord, dict[str, Any]]] = []
    for record in records:
        with contextlib.suppress(RunError):
            known.append((record, _settings(record)))
    groups = grouped(known, lambda own: own[1])
    found = (tuple(record for record, _ in group) for group in groups)
    return tuple(sorted(found, key=len, reverse=True))


def method_group_names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return what people tell such groups apart by."""
    return named_groups(groups, [_settings(group[0]) for group in groups])


def _settings(record: RunRecord, metric: str = "") -> dict[str, Any]:
    try:
        record.config["configs"], record.config["method"]
        shared = shared_settings(record, {*_FREE}.difference(of_kept(metric)))
        return {key: value for key, value in shared.items() if key != _OF_START}
    except KeyError as error:
        raise RunError(
            f"{record.folder / 'config.json'} does not tell its method ({error!r}); leave that "
            "run out"
        ) from None


def settings_of_rows(records: Sequence[RunRecord], told: Collection[str]) -> list[str]:
    """Return each row's setting, with what tells it from the other rows of its method.

    Args:
        records: of each row the first run.
        told: training settings that are told elsewhere, or not at all.
    """
    of_method: defaultdict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        of_method[named(record)].append(place)
    words = [""] * len(records)
    for places in of_method.values():
        own = settings_in_words([records[place] for place in places], told)
        for place, setting in zip(places, own, strict=True):
            words[place] = setting
    return words


def named(record: RunRecord) -> str:
    """Return a run's method by the paper's name, without a classifier's head."""
    return str(record.config["method"]).removesuffix(_HEAD)


def measured(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what a row's runs took, and what they kept: its seconds, memory, bytes, losses."""
    return {
        "seconds": statistics.median(_measured(run, "seconds") for run in runs),
        "peak_memory": max(_measured(run, "peak_memory") for run in runs),
        "checkpoint_bytes": max(_measured(run, "checkpoint_bytes") for run in runs),
        "kept": _scores(runs, _KEPT),
    }


def _row(runs: Sequence[RunRecord], setting: str, metric: str) -> MethodRow:
    return MethodRow(
        method=named(runs[0]),
        setting=setting,
        learning_rate=training_settings(runs[0])["learning_rate"],
        trainable=max(map(trained, runs)),
        values=_scores(runs, metric),
        **measured(runs),
        evaluated=_evaluated(runs),
    )


def _scores(runs: Sequence[RunRecord], metric: str) -> tuple[float, ...]:
    scores = (final_score(run, metric) for run in runs)
    return tuple(score for score in scores if score is not None)


def _evaluated(runs: Iterable[RunRecord]) -> tuple[int, int] | None:
    """Return (held-out examples scored, of how many), the fewest; None: the runs do not tell."""
    told = [(run.summary or {}).get("evaluated", {}) for run in runs]
    known = [(each["examples"], each["of"]) for each in told if {"examples", "of"} <= each.keys()]
    return min(known, default=None)


def trained(run: RunRecord) -> int:
    """Return how many parameters a run trained at its end, without a classifier's head."""
    return int(_measured(run, "trainable")) - _head(run.config)


def _head(config: Mapping[str, Any]) -> int:
    """Return how many parameters of a classifier's head a run has trained beside its method."""
    only_head = config["method"] == _HEAD.removeprefix("+")
    return 0 if only_head else config["task"].get("head_parameters", 0)


def _measured(run: RunRecord, key: str) -> Any:
    summary = run.summary or {}
    if key not in summary:
        raise RunError(
            f"{run.folder / 'summary.json'} has no {key!r}: the run is older than comparisons of "
            "methods; leave it out or train it again"
        )
    return summary[key]


def _base(runs: Sequence[RunRecord], metric: str) -> float | None:
    """Return what the bare model came to, the mean over the runs: all measured the same."""
    before = f"{metric.removesuffix('_after')}_before"
    scores = [metrics(run)[before] for run in runs if before in metrics(run)]
    return statistics.fmean(scores) if scores else None


def _note(
    records: Sequence[RunRecord],
    metric: str,
    ended: int,
    groups: Iterable[Sequence[RunRecord]],
    older: int,
) -> str:
    parts, groups = [], list(groups)
    if (scored := _evaluated(records)) is not None:
        parts.append(f"scored on {scored[0]:,} of {scored[1]:,} held-out examples")
    if head := max(map(_head, (record.config for record in records))):
        parts.append(f"heads of {head:,} parameters are trained too and not counted")
    sizes = {len(group) for group in groups}
    if max(sizes) > 1:
        counts = " to ".join(str(n) for n in sorted({min(sizes), max(sizes)}))
        parts.append(f"{counts} runs a row: mean ± standard deviation")
    if again := sum(_repeated(group, metric) for group in groups):
        parts.append(f"{plural(again, 'run')} of a seed that its row has already, with its value")
    texts = {training_settings(r)["kept_texts"] for r in records if _KEPT in metrics(r)}
    if len(texts) > 1:
        told = " and ".join(map(str, sorted(texts)))
        parts.append(f"{KEPT.label} is on {told} texts: not the same in all runs")
    if older:
        parts.append(OLDER.format(plural(older, "run")))
    failed = sum(end_state(record) == "failed" for record in records)
    if failed:
        parts.append(f"{plural(failed, 'run')} failed")
    if left_out := len(records) - ended - failed:
        parts.append(f"{plural(left_out, 'run')} not finished, or without the metric, left out")
    return "; ".join(parts)


def _repeated(runs: Sequence[RunRecord], metric: str) -> int:
    """Return how many runs are another one over again, and so make a spread look small."""
    return len(runs) - len({(training_settings(r)["seed"], final_score(r, metric)) for r in runs})


def _lists(row: MethodRow) -> dict[str, list[Any]]:
    return {"values": list(row.values), "kept": list(row.kept)}


def _cells(row: MethodRow, kept: bool) -> tuple[str, ...]:
    return (
        row.method,
        row.setting,
        f"{row.learning_rate:g}",
        f"{row.trainable:,}",
        row.score,
        *((mean_and_spread(row.kept) if row.kept else "",) if kept else ()),
        f"{row.seconds:.0f}",
        format_bytes(row.peak_memory),
        format_bytes(row.checkpoint_bytes),
    )
