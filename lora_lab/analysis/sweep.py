"""Many runs as one map: what a metric came to at each rank and learning rate."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_lab._util.format import plural
from lora_lab.analysis.differing import NO_MATTER, of_kept
from lora_lab.analysis.identity import OLDER, grouped, named_groups, untold
from lora_lab.analysis.records import (
    end_state,
    final_score,
    loss_unit,
    nothing_to_show,
    refuse_differences,
    shared_settings,
    training_settings,
)
from lora_lab.errors import RunError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import NATS, metric_of

# What runs of one sweep may differ in: its axes, and what does not change what a score means. α may
# follow the rank; within a cell, over which the mean is taken, it is one.
_FREE_LORA = ("r", "lora_alpha")
_FREE_TRAINING = ("learning_rate", "seed", *NO_MATTER)
_FIX = "give runs that differ only in rank and learning rate, such as comparable_runs(records)[0]"


@dataclass(frozen=True)
class SweepMap:
    """A metric over ranks and learning rates.

    Attributes:
        metric: such as "loss_after" (nats per token) or "bleu_after" (0 to 100).
        ranks: the rows, ascending.
        learning_rates: the columns, ascending.
        values: (ranks, learning rates) float32, mean over a cell's runs; NaN where no run ended
            with the metric.
        counts: (ranks, learning rates) int32, the runs behind each value.
        best: (rank, learning rate) of the best value, the way the metric is read.
        note: what the reader has to know of the runs, "" when nothing.
        loss_unit: of a metric that is a loss.
        alphas: α of each rank.
    """

    metric: str
    ranks: tuple[int, ...]
    learning_rates: tuple[float, ...]
    values: np.ndarray
    counts: np.ndarray
    best: tuple[int, float]
    note: str
    loss_unit: str = NATS
    alphas: tuple[float, ...] = ()


def comparable_runs(records: Iterable[RunRecord]) -> tuple[tuple[RunRecord, ...], ...]:
    """Sort runs into groups that one `sweep_map` can show, the largest group first.

    Runs of a group have the same model, data, targets and training settings; rank, learning rate
    and seed may differ, and α where it follows the rank. Runs of other methods, which have no rank,
    are left out.
    """
    known: list[tuple[RunRecord, dict[str, Any]]] = []
    for record in records:
        with contextlib.suppress(RunError):
            known.append((record, _settings(record)))
    groups = [
        tuple(part)
        for group in grouped(known, lambda own: own[1])
        for part in _of_one_alpha([record for record, _ in group])
    ]
    return tuple(sorted(groups, key=len, reverse=True))


def _of_one_alpha(records: list[RunRecord]) -> Iterable[list[RunRecord]]:
    """Take runs apart by α, or by α/r if that makes fewer parts, where a rank has several."""
    if all(len(alphas) == 1 for alphas in _alphas(records).values()):
        return [records]
    parts = []
    for rule in (lambda lora: lora["lora_alpha"], lambda lora: lora["lora_alpha"] / lora["r"]):
        found: defaultdict[float, list[RunRecord]] = defaultdict(list)
        for record in records:
            found[rule(_lora(record))].append(record)
        parts.append([*found.values()])
    return min(parts, key=len)


def _alphas(records: Iterable[RunRecord]) -> dict[int, set[float]]:
    """Return {rank: its α}, several where runs of one rank have several."""
    found: defaultdict[int, set[float]] = defaultdict(set)
    for record in records:
        lora = _lora(record)
        found[lora["r"]].add(lora["lora_alpha"])
    return found


def sweep_map(records: Iterable[RunRecord], metric: str = "loss_after") -> SweepMap:
    """Lay a metric of comparable runs out as rank × learning rate.

    Runs that failed keep their place on the axes; those that are still running, were cut off or
    stopped do not. The note counts both.

    Args:
        records: as `list_runs` returns them.
        metric: a key of the runs' metrics; which way is better, the registered `Metric` says.

    Raises:
        RunError: nothing to show: no runs, none that ended with the metric, or runs that are not
            comparable; the line names the setting in which they differ.
    """
    records = list(records)
    settings = [_settings(record, metric) for record in records]
    refuse_differences(settings, _FIX)
    _refuse_mixed_alphas(alphas := _alphas(records))
    scores_of: defaultdict[tuple[int, float], list[float]] = defaultdict(list)
    failed = unfinished = 0
    for record in records:
        cell = _cell(record)
        score = final_score(record, metric)
        if score is not None:
            scores_of[cell].append(score)
        elif end_state(record) == "failed":
            scores_of[cell] += []
            failed += 1
        else:
            unfinished += 1
    if not any(scores_of.values()):
        raise nothing_to_show(records, metric)

    ranks = tuple(sorted({r for r, _ in scores_of}))
    learning_rates = tuple(sorted({rate for _, rate in scores_of}))
    values = np.full((len(ranks), len(learning_rates)), np.nan, np.float32)
    counts = np.zeros(values.shape, np.int32)
    for (r, rate), scores in scores_of.items():
        at = ranks.index(r), learning_rates.index(rate)
        values[at] = np.mean(scores) if scores else np.nan
        counts[at] = len(scores)
    find_best = np.nanargmax if metric_of(metric).higher_is_better else np.nanargmin
    row, column = divmod(int(find_best(values)), len(learning_rates))
    return SweepMap(
        metric=metric,
        ranks=ranks,
        learning_rates=learning_rates,
        values=values,
        counts=counts,
        best=(ranks[row], learning_rates[column]),
        note=_note(counts, untold(settings), failed, unfinished),
        loss_unit=loss_unit(records[0]),
        alphas=tuple(max(alphas[r]) for r in ranks),
    )


def group_names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return "model · task · 4 runs" of groups of runs, with what tells two of one name apart."""
    told = [_settings(group[0]) | {"α": _alpha_rule(group)} for group in groups]
    return named_groups(groups, told)


def _alpha_rule(group: Sequence[RunRecord]) -> str:
    found = {max(alphas) for alphas in _alphas(group).values()}
    return f"{found.pop():g}" if len(found) == 1 else "follows r"


def _settings(record: RunRecord, metric: str = "") -> dict[str, Any]:
    """Return what must be the same in all runs of a sweep, flat."""
    free = {*_FREE_TRAINING}.difference(of_kept(metric))
    try:
        lora = _lora(record)
        targets = lora["target_modules"]
        lora["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
        shared = {key: value for key, value in lora.items() if key not in _FREE_LORA}
        return shared_settings(record, free) | shared
    except KeyError as error:
        raise RunError(
            f"{record.folder / 'config.json'} is no LoRA run's ({error!r}); leave that run out"
        ) from None


def _lora(record: RunRecord) -> dict[str, Any]:
    """Return a run's LoRA config; a field that it is older than has its default."""
    return {**LoraConfig().to_dict(), **record.config["lora"]}


def _cell(record: RunRecord) -> tuple[int, float]:
    return _lora(record)["r"], float(training_settings(record)["learning_rate"])


def _refuse_mixed_alphas(of_rank: Mapping[int, set[float]]) -> None:
    for r, alphas in of_rank.items():
        if len(alphas) > 1:
            shown = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
            raise RunError(
                f"these runs are not comparable: lora_alpha is {shown} at r = {r}, and means are "
                f"taken over seeds alone; {_FIX}"
            )


def _note(counts: np.ndarray, older: int, failed: int, unfinished: int) -> str:
    parts = []
    if counts.max() > 1:
        parts.append(f"means of up to {counts.max()} runs a cell")
    if older:
        parts.append(OLDER.format(plural(older, "run")))
    if failed:
        parts.append(f"{plural(failed, 'run')} failed")
    if unfinished:
        parts.append(f"{plural(unfinished, 'run')} not finished, or without the metric, left out")
    return "; ".join(parts)
