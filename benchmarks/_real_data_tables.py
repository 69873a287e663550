"""REAL_DATA.md, written of what `benchmarks.real_data` has kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_lab._util.format import format_bytes, format_number
from lora_lab.analysis.seeds import mean_and_spread, spread_of
from lora_lab.tasks.metrics import metric_of

_GOAL = 0.005  # of the model's parameters
_HEAD = """# Real data

Written by `python -m benchmarks.real_data`; the outcomes as JSON lie in `real_data/`. Each method
has the learning rate that was best of those tried, with one seed, on one half of the held-out rows;
what is reported is the other half, mean ± standard deviation over the seeds, at that rate alone.
A classifier's head is trained with every method, at a rate of its own that all share, and is not
counted. Seconds are those of a machine that did other work beside: they say what a run costs, not
which is faster.

The goal was LoRA at ≤ 0.5 % of the parameters within FT's spread or above it. These are short runs:
they show what methods come to in minutes on one core, not where they end.
"""


def write_tables(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one section a study, in the order given."""
    sections = [_section(study) for study in found]
    missing = "" if found else "\nNothing has been measured yet.\n"
    path.write_text("\n".join([_HEAD + missing, *sections]), "utf-8")


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
        name = row["method"] + (f" ({row['setting']})" if row["setting"] else "")
        cells = [name, f"{row['trainable']:,}", f"{_share(study, row):.2%}", tried]
        cells += [mean_and_spread(row["scores"][name]) for name in metrics]
        cells += [mean_and_spread(row["kept"]) if row["kept"] else ""] * kept
        cells += [f"{row['seconds']:.0f}", format_bytes(row["peak_memory"])]
        lines.append(_line(cells))
    base = [format_number(found["base_scores"][name]) for name in metrics]
    lines.append(_line(["as it is", "0", "", "", *base, *[""] * kept, "", ""]))
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
    if at_edge := study["chosen"]["note"]:
        lines += ["", f"Of the choice of rates: {at_edge}."]
    return lines


def goal(study: Mapping[str, Any], name: str) -> str:
    """Say whether the goal was met by a metric."""
    rows = study["found"]["rows"]
    metric = metric_of(name)
    sign = 1 if metric.higher_is_better else -1
    full = next((row["scores"][name] for row in rows if row["method"] == "FT"), None)
    small = [r for r in rows if r["method"] == "LoRA" and _share(study, r) <= _GOAL]
    if full is None or not small:
        return f"Goal by {metric.label}: cannot be judged, LoRA at ≤ 0.5 % or FT is missing."
    best = max(small, key=lambda row: sign * statistics.fmean(row["scores"][name]))
    least = sign * statistics.fmean(full) - (spread_of(full) or 0.0)
    met = sign * statistics.fmean(best["scores"][name]) >= least
    return (
        f"Goal by {metric.label}: **{'met' if met else 'NOT MET'}**. LoRA at "
        f"{_share(study, best):.2%} has {mean_and_spread(best['scores'][name])}, FT "
        f"{mean_and_spread(full)}."
    )


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
    return f"{told}: no method is above it, so this comparison can carry no claim."


def _share(study: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    return row["trainable"] / study["parameters"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
