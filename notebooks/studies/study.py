"""What the studies share: results are computed once, kept as small JSON, and redone by one switch.

`results/<name>.json` has what came out, on which machine, from which seeds, in which time of its
processor.
Runs are kept as their records, so the tables and figures of LoRA Lab show them as if they were on
the disk. A study that is cut off while it is redone goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

import lora_lab
from lora_lab import spectra
from lora_lab._util.format import format_number
from lora_lab._util.tables import Table
from lora_lab.analysis import Choices, MethodChoice, OverlapMap
from lora_lab.analysis.choices import difference
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.decoding import Decoding

HERE = Path(__file__).parent
_UNUSED = "id", "sources", "origin"  # of a run's config.json
_MOST_TICKS = 10
_COLORS = "#3b6fd4", "#c2570c", "#667085", "#2e7d5b", "#8a4fbf", "#b0892f", "#1f2328"


def kept(name: str, compute: Callable[[], Any], redo: bool, seeds: Sequence[int]) -> Any:
    """Return a study's results as plain JSON, and say in a line where they come from.

    Args:
        name: of the study, and of its file.
        compute: makes them; called with `redo` alone.
        redo: compute, and keep that in place of what was kept.
        seeds: that it trains with.
    """
    path = HERE / "results" / f"{name}.json"
    if redo:
        resumed = any((HERE / "runs" / name).glob("*"))  # what is there is not trained again
        began = time.process_time()
        found = compute()
        about = {**_machine(), "seeds": [*seeds], "seconds": round(time.process_time() - began)}
        about |= {"resumed": True} if resumed else {}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"about": about, "found": found}) + "\n", "utf-8")
    read = json.loads(path.read_text("utf-8"))
    print(_said(read["about"]))
    return read["found"]


def kept_runs(
    name: str, train: Callable[[], Iterable[RunRecord]], redo: bool, seeds: Sequence[int]
) -> list[RunRecord]:
    """Return a study's runs as records; see `kept`."""
    return _unpacked(kept(name, lambda: _packed(train()), redo, seeds), HERE / "runs" / name)


def kept_choices(
    name: str, compare: Callable[[], Choices], redo: bool, seeds: Sequence[int]
) -> Choices:
    """Return what a study's `ll.compare` found; see `kept`."""
    return choices(kept(name, lambda: compare().to_json(), redo, seeds))


def choices(found: Mapping[str, Any]) -> Choices:
    """Return what `Choices.to_json` wrote as it was."""
    names = [field.name for field in dataclasses.fields(MethodChoice)]
    rows = []
    for told in found["rows"]:
        row = {name: told[name] for name in names}
        row |= {name: tuple(row[name]) for name in ("values", "kept")}
        row["curve"] = {rate: tuple(values) for rate, values in row["curve"]}
        row["intervals"] = {k: tuple(map(tuple, v)) for k, v in row["intervals"].items()}
        rows.append(MethodChoice(**row))
    own = {field.name: found[field.name] for field in dataclasses.fields(Choices)}
    base = {name: tuple(pair) for name, pair in own["base_intervals"].items()}
    return Choices(**{**own, "rows": tuple(rows), "base_intervals": base})


def against(first: MethodChoice, second: MethodChoice) -> str:
    """Say whether the spread over seeds carries the difference between two rows."""
    ends = difference(first.values, second.values)
    told = f"{first.name} ({first.score}) against {second.name} ({second.score})"
    if ends is None:
        return f"{told}: of one seed there is no spread."
    apart = ends[0] * ends[1] > 0
    low, high = map(format_number, sorted(map(abs, ends)) if apart else ends)
    carried = "carries" if apart else "does not carry"
    return f"{told}: the spread {carried} the difference (95 % interval {low} to {high})."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column names its rows; the others are numbers."""
    return Table(tuple(header), tuple(map(tuple, rows)), frozenset(header[1:]))


def packed_overlap(overlap: OverlapMap, most: int) -> dict[str, Any]:
    """Return φ of the first `most` directions of either as small plain JSON, three digits each.

    Of two updates one of which has no more than that, all directions of the other are kept.
    """
    i_max, j_max = overlap.values.shape
    cut = overlap.values if min(i_max, j_max) < most else overlap.values[:most, :most]
    told = {name: getattr(overlap, name) for name in ("site", "first", "second", "side", "n")}
    return told | {"values": [[round(float(value), 3) for value in row] for row in cut]}


def overlap_map(found: Mapping[str, Any]) -> OverlapMap:
    """Return what `packed_overlap` packed, with its random level."""
    values = np.array(found["values"], np.float32)
    return OverlapMap(
        **{**found, "values": values},
        random=spectra.random_subspace_overlap(*values.shape, found["n"]),
        spread=spectra.random_subspace_spread(*values.shape, found["n"]),
    )


def spread_figure(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    x: str,
    y: str,
    base: float | None = None,
    width: int = 640,
) -> go.Figure:
    """Draw means over seeds with their standard deviation.

    Args:
        lines: {name: {x: a value for each seed}}.
        x, y: what stands at the axes; x is logarithmic.
        base: the model before training, a dotted line.
        width: in pixels.
    """
    figure = go.Figure()
    looks = itertools.cycle(itertools.product(("solid", "dash", "dot"), _COLORS))
    for (dash, color), (name, points) in zip(looks, lines.items(), strict=False):
        values = [points[at] for at in sorted(points)]
        figure.add_scatter(
            x=sorted(points),
            y=[statistics.fmean(own) for own in values],
            error_y={"array": [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]},
            mode="lines+markers",
            name=name,
            line={"color": color, "dash": dash, "width": 1.6},
        )
    if base is not None:
        figure.add_hline(y=base, line={"dash": "dot", "color": "#98a2b3"}, annotation_text="base")
    ticks = sorted({at for points in lines.values() for at in points})
    if len(ticks) <= _MOST_TICKS:  # else plotly's own
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_xaxes(type="log", title=x)
    figure.update_yaxes(title=y)
    figure.update_layout(width=width, height=380, margin={"l": 60, "r": 12, "t": 24, "b": 48})
    return figure


def on_white(figure: go.Figure) -> go.Figure:
    """Return a figure of LoRA Lab on white, so that as it is saved a dark page shows it too."""
    return figure.update_layout(paper_bgcolor="#ffffff")


def without_answers(name: str) -> Any:
    """Return a task that is scored by its held-out loss alone: written answers take the longest."""
    task = lora_lab.load_task(name)
    return dataclasses.replace(task, metrics=(), decoding=Decoding(max_new_tokens=1))


def by(
    runs: Iterable[RunRecord],
    line: Callable[[RunRecord], str],
    x: Callable[[RunRecord], float],
    metric: str = "loss_after",
) -> dict[str, dict[float, list[float]]]:
    """Return {line: {x: the metric of each seed}} of the runs that ended with a number."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        value = (run.summary or {}).get("metrics", {}).get(metric, math.nan)
        if math.isfinite(value):
            found.setdefault(line(run), {}).setdefault(x(run), []).append(value)
    return found


def _packed(records: Iterable[RunRecord]) -> dict[str, Any]:
    """Return records as plain JSON; what all configs, or all summaries, share stands once."""
    records = sorted(records, key=lambda record: record.id)
    configs = [{k: v for k, v in own.config.items() if k not in _UNUSED} for own in records]
    summaries = [dict(own.summary or {}) for own in records]
    shared, ended = _shared(configs), _shared(summaries)
    runs = [
        {"id": record.id, "config": _without(config, shared), "summary": _without(own, ended)}
        for record, config, own in zip(records, configs, summaries, strict=True)
    ]
    return {"shared": shared, "ended": ended, "runs": runs}


def _unpacked(found: Mapping[str, Any], folder: Path) -> list[RunRecord]:
    records = []
    for own in found["runs"]:
        config = _joined(found["shared"], own["config"])
        summary = _joined(found.get("ended", {}), own["summary"])
        records.append(RunRecord(own["id"], folder / own["id"], config, summary))
    return records


def _shared(dicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all of them have, at any depth."""
    found: dict[str, Any] = {}
    for key, value in dicts[0].items():
        others = [own[key] for own in dicts if key in own]
        if len(others) < len(dicts):
            continue
        if all(other == value for other in others):
            found[key] = value
        elif all(isinstance(other, dict) for other in others) and (inner := _shared(others)):
            found[key] = inner
    return found


def _without(own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    left: dict[str, Any] = {}
    for key, value in own.items():
        if key not in shared:
            left[key] = value
        elif value != shared[key]:
            left[key] = _without(value, shared[key])
    return left


def _joined(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the two as one, at any depth."""
    both = {**shared, **own}
    for key in shared.keys() & own.keys():
        if isinstance(shared[key], dict) and isinstance(own[key], dict):
            both[key] = _joined(shared[key], own[key])
    return both


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lora_lab": lora_lab.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _said(about: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, about["seeds"]))
    part = " (its last stretch: it was resumed)" if about.get("resumed") else ""
    return (
        f"Computed on {about['date']} on {about['cores']} core(s) of an {about['processor']} with "
        f"torch {about['torch']} in {about['seconds'] / 60:.1f} minutes of it{part}, "
        f"seeds {seeds}; REDO = True computes it anew."
    )
