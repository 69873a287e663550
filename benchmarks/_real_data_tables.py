"""REAL_DATA.md, written of what `benchmarks.real_data` has kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab._util.format import format_bytes, format_number
from lora_lab.analysis.seeds import mean_and_spread, spread_of
from lora_lab.methods.registry import methods
from lora_lab.tasks.metrics import metric_of

_GOAL = 0.005  # of the model's parameters
_NO_CLAIM = "no method is above it, so this comparison can carry no claim."
_HEAD = """# Real data

Written by `python -m benchmarks.real_data`; the outcomes as JSON lie in `real_data/`. Each method
has the learning rate that was best of those tried, with one seed, on one half of the held-out rows;
what is reported is the other half, mean ± standard deviation over the seeds, at that rate alone.
A classifier's head is trained with every method, at a rate of its own that all share, and is not
counted. Seconds are those of a machine that did other work beside: they say what a run costs, not
which is faster.

The goal was LoRA at ≤ 0.5 % of the parameters within FT's spread or above it: its mean no worse
than FT's by more than FT's standard deviation over the seeds. Of two or three seeds that deviation
is itself known to a factor of about two, and the held-out rows are few: a difference below what
their number tells is none. These are short runs on subsets, each stated: they show what methods
come to in minutes on one core, not where they end, and not whether FT passes LoRA later on. The
published tables (`ll.paper.table(2)`, `ll.paper.table(3)`) are of long runs.
"""


def write_tables(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one section a study, in the order given."""
    sections = [*_in_short(found), *(_section(study) for study in found), *_own_rates(found)]
    missing = "" if found else "\nNothing has been measured yet.\n"
    path.write_text("\n".join([_HEAD + missing, *sections]), "utf-8")


def _in_short(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the goal over all sets: a table, and what it comes to."""
    if not found:
        return
    header = ["set", "by", "rows", "seeds", "LoRA at ≤ 0.5 %", "FT", "goal"]
    lines, told = [_line(header), _line(["---"] * len(header))], []
    for study in found:
        for name in study["goal_by"]:
            judged = _judged(study, name)
            seen = "no claim" if doubt(study).endswith(_NO_CLAIM) else judged and judged.word
            cells = [study["name"], metric_of(name).title, str(study["found"]["reported_on"])]
            cells += [str(study["seeds"]), *(judged.shown if judged else ("", ""))]
            lines.append(_line([*cells, seen or "not judged"]))
            told.append(seen or "not judged")
    counts = ", ".join(f"{told.count(word)} {word}" for word in dict.fromkeys(told))
    yield "\n".join(["\n## In short\n", *lines, "", f"Of {len(told)} comparisons: {counts}.", ""])


def _own_rates(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the best of the rates tried beside those that the forms begin with."""
    if not found:
        return
    header = ["set", "width", "steps", "method", "own rate", "best here", "times", ""]
    lines, times = [_line(header), _line(["---"] * len(header))], []
    for study in found:
        width, steps = study["width"], study["training"]["max_steps"]
        for row in study["chosen"]["rows"]:
            own = methods()[row["method"]].rate_for(width)
            times.append(row["learning_rate"] / own)
            edge = "at the edge" if row["learning_rate"] in _ends(row["curve"]) else ""
            cells = [study["name"], str(width), str(steps), _name(row), f"{own:g}"]
            lines.append(_line([*cells, f"{row['learning_rate']:g}", f"{times[-1]:.2g}", edge]))
    yield "\n".join(
        [
            "\n## Own learning rates\n",
            "What the forms and `ll.advise` begin with for a model of this width "
            "(`Method.rate_for`), beside the best of the rates tried here, by one seed.",
            "",
            *lines,
            "",
            f"The best is {statistics.median(times):.2g} times the own rate in the median, "
            f"{min(times):.2g} to {max(times):.2g} times in all.",
            "",
        ]
    )


def _ends(curve: Sequence[Sequence[Any]]) -> tuple[float, float]:
    rates = [rate for rate, _ in curve]
    return min(rates), max(rates)


def _section(study: Mapping[str, Any]) -> str:
    found = study["found"]
    metrics = [found["metric"], *(name for name in found["base_scores"] if name != found["metric"])]
    kept = any(row["kept"] for row in found["rows"])
    header = ["method", "trainable", "share", "rate, of those tried"]
    header += [metric_of(name).title for name in metrics]
    header += ["kept loss"] * kept + ["seconds a run", "peak memory"]
    curves = {row["place"]: [rate for rate, _ in row["curve"]] for row in study["chosen"]["rows"]}
    lines = [_line(header), _line(["---"] * len(header))]
    for row in sorted(found["rows"], key=lambda row: row["trainable"]):
        tried = ", ".join(
            f"**{rate:g}**" if rate == row["learning_rate"] else f"{rate:g}"
            for rate in curves[row["place"]]
        )
        cells = [_name(row), f"{row['trainable']:,}", f"{_share(study, row):.2%}", tried]
        cells += [mean_and_spread(row["scores"][name]) for name in metrics]
        cells += [mean_and_spread(row["kept"]) if row["kept"] else ""] * kept
        cells += [f"{row['seconds']:.0f}", format_bytes(row["peak_memory"])]
        lines.append(_line(cells))
    base = [format_number(found["base_scores"][name]) for name in metrics]
    if kept:
        base.append(format_number(study["kept_before"]))
    lines.append(_line(["as it is", "0", "", "", *base, "", ""]))
    return "\n".join([f"\n## {study['name']}, {found['model']}\n", *lines, "", *_below(study), ""])


def _below(study: Mapping[str, Any]) -> list[str]:
    found, training = study["found"], study["training"]
    steps, batch = training["max_steps"], training["per_device_train_batch_size"]
    settings = ", ".join(f"{name} = {value}" for name, value in training.items())
    seen = (
        f"{steps} steps of {batch} from {study['train_examples']:,} of {study['train_rows']:,} rows"
    )
    lines = [
        f"{study['seeds']} seeds; {seen}; rates chosen on {found['chosen_on']} held-out rows, "
        f"scores on {found['reported_on']} others; {settings}. "
        f"{study['cpu_minutes']:.0f} processor minutes, {study['machine']}.",
        "",
        found["summary"],
        "",
        *(goal(study, name) for name in study["goal_by"]),
    ]
    if study["missing"]:
        lines.append(f"Not measured yet: {', '.join(study['missing'])}.")
    if doubted := doubt(study):
        lines.append(doubted)
    edges = [
        _name(row) for row in study["chosen"]["rows"] if row["learning_rate"] in _ends(row["curve"])
    ]
    if study["kept_before"] is not None:
        by = sorted(found["rows"], key=lambda row: statistics.fmean(row["kept"]))
        told = ", ".join(f"{_name(row)} {mean_and_spread(row['kept'])}" for row in by)
        lines += [
            "",
            f"Kept: the loss on texts that the model wrote itself was "
            f"{format_number(study['kept_before'])} before; after training, least first: {told}.",
        ]
    if edges:
        lines += ["", f"Best at the edge of the rates that were tried: {', '.join(edges)}."]
    return lines


@dataclass(frozen=True)
class _Judged:
    """The goal by one metric: whether it is met; LoRA's share; its score and FT's, for people."""

    met: bool
    share: float
    shown: tuple[str, str]

    @property
    def word(self) -> str:
        return "met" if self.met else "NOT MET"


def _judged(study: Mapping[str, Any], name: str) -> _Judged | None:
    """Judge the goal by a metric; None: a method is missing."""
    rows = study["found"]["rows"]
    sign = 1 if metric_of(name).higher_is_better else -1
    full = next((row["scores"][name] for row in rows if row["method"] == "FT"), None)
    small = [r for r in rows if r["method"] == "LoRA" and _share(study, r) <= _GOAL]
    if full is None or not small:
        return None
    best = max(small, key=lambda row: sign * statistics.fmean(row["scores"][name]))
    own = best["scores"][name]
    least = sign * statistics.fmean(full) - (spread_of(full) or 0.0)
    met = sign * statistics.fmean(own) >= least
    return _Judged(met, _share(study, best), (mean_and_spread(own), mean_and_spread(full)))


def goal(study: Mapping[str, Any], name: str) -> str:
    """Say whether the goal was met by a metric."""
    label, judged = metric_of(name).label, _judged(study, name)
    if judged is None:
        return f"Goal by {label}: cannot be judged, LoRA at ≤ 0.5 % or FT is missing."
    lora, full = judged.shown
    return f"Goal by {label}: **{judged.word}**. LoRA at {judged.share:.2%} has {lora}, FT {full}."


def doubt(study: Mapping[str, Any]) -> str:
    """Say where no method has learned more than the noise of so few held-out rows; "" elsewhere."""
    found, count = study["found"], study["found"]["reported_on"]
    if found["metric"] == "accuracy":
        share = study["majority"] / 100
        floor, noise = 100 * share, 196 * math.sqrt(share * (1 - share) / count)
    elif found["metric"] == "matthews":  # of one who guesses; its error is about 1/√n
        floor, noise = 0.0, 196 / math.sqrt(count)
    else:
        return ""
    told = (
        f"One who always names the commonest class has {floor:.1f}, which {count} rows tell to "
        f"± {noise:.1f}"
    )
    best = max(statistics.fmean(row["values"]) for row in found["rows"])
    if best > floor + noise:
        return f"{told}."
    return f"{told}: {_NO_CLAIM}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['method']} ({row['setting']})" if row["setting"] else str(row["method"])


def _share(study: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    return row["trainable"] / study["parameters"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
