"""The runs on disk as the history shows them: rows, a comparison, one in detail. Reads files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.files import remove_dir
from lora_lab._util.format import format_bytes, format_count, format_number
from lora_lab.analysis.differing import differing_settings
from lora_lab.analysis.methods import compare_methods
from lora_lab.checkpoint.locate import holds_adapter, locate_adapter
from lora_lab.errors import RunError, as_cause
from lora_lab.runs.history import SpectraHistory
from lora_lab.runs.lock import RunLock
from lora_lab.runs.metrics import read_last_row
from lora_lab.runs.records import (
    OpenedRun,
    RecordState,
    RunRecord,
    is_sweep,
    read_record,
)
from lora_lab.runs.run_file import read_configs
from lora_lab.runs.shown_code import shown_code
from lora_lab.tasks.metrics import NATS, changes, in_words
from lora_lab.training import queue
from lora_lab_widgets.run_labels import data_marks, differences, label, short_label, unlike
from lora_lab_widgets.serialize import number, thin

MOST_ROWS = 100
MOST_PICKED = 6
_MOST_TEXT = 1_500  # characters of a prompt, an answer, a note
_MOST_CONFIG = 6_000
_MOST_SAMPLES = 6
_MOST_DIFFERING, _MOST_VALUE = 40, 160  # settings that two runs differ in; characters of a value
_NOTHING = "–"

COLUMNS = (
    *("steps", "loss", "metrics", "trainable", "ranks", "effective rank", "‖ΔW‖ / ‖W₀‖"),
    *("peak memory", "time"),
)
_RESUMED = (RecordState.CUT_OFF, RecordState.STOPPED)


@dataclass(frozen=True)
class Look:
    """What was read at one moment.

    Attributes:
        records: by id, newest first, as many as are shown.
        total: how many there are.
        rows: of the list.
        compared: {"columns", "rows", "curves", "note"}, {} where nothing is picked.
        details: of the run on show, {} where none is.
    """

    records: Mapping[str, RunRecord]
    total: int
    rows: list[dict[str, Any]]
    compared: dict[str, Any]
    details: dict[str, Any]


def look(records: Sequence[RunRecord], picked: Sequence[str], shown: str) -> Look:
    """Read what is shown of the runs: all in the list, those picked, and the one in detail."""
    known = {record.id: record for record in records[:MOST_ROWS]}
    chosen = [known[id_] for id_ in picked if id_ in known]
    return Look(
        known,
        len(records),
        _rows([*known.values()]),
        _compared(chosen) if chosen else {},
        _details(known[shown]) if shown in known else {},
    )


def delete(record: RunRecord, output_dir: Path, busy: Callable[[Path], bool]) -> None:
    """Delete a run's folder and nothing else; a sweep keeps what the run came to.

    Args:
        record: the run.
        output_dir: its folder must lie right in there, or in the folder of a sweep there.
        busy: whether a run in this process is at work on a folder, or about to be.

    Raises:
        RunError: the folder lies elsewhere, somebody is at work on it, or the disk refuses.
    """
    folder, top = record.folder, output_dir.expanduser().resolve()
    parent = folder.resolve().parent
    if folder.is_symlink() or not (parent == top or (parent.parent == top and is_sweep(parent))):
        raise RunError(f"{folder} is not in {output_dir}, or a link; delete it by hand")
    if busy(folder) or queue.is_queued(folder):
        raise RunError(f"run {record.id} is at work or waits in the queue; stop it first")
    if read_record(folder) is None:
        raise RunError(f"run {record.id} is not on disk any more; refresh the list")
    lock = RunLock(folder)
    try:
        lock.acquire()  # refused where it is at work in this process or another
        if os.name == "nt":
            lock.release()  # an open file keeps its folder there
        remove_dir(folder)
    except OSError as error:
        raise RunError(
            f"{folder} could not be deleted whole: {error.strerror or error}; delete it by hand"
        ) from as_cause(error)
    finally:
        lock.release()


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


# The list -------------------------------------------------------------------------------------


def _rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    own, marks = differences(records), data_marks(records)
    rows = [_row(record) for record in records]
    for row in rows:
        row["label"] += own.get(row["id"], "")
        row["what"] += marks.get(row["id"], "")
    words = {row["id"]: f"{row['label']} {row['what']}" for row in rows}
    more = unlike(records, words)
    for row in rows:
        row["what"] += more.get(row["id"], "")
    return rows


def _row(record: RunRecord) -> dict[str, Any]:
    summary, said = record.summary or {}, record.marks
    last = read_last_row(record.folder)
    state = record.state
    queued = queue.is_queued(record.folder)
    repeats = state is RecordState.FAILED and not summary.get("repeats")
    free = state not in (RecordState.RUNNING, RecordState.ELSEWHERE) and not queued
    return {
        "id": record.id,
        "label": short_label(record),
        "what": f"{_name(record, 'model')} · {_name(record, 'task')}" + _from(record),
        "state": "queued" if queued else str(state),
        "step": _whole(last.get("step", summary.get("steps"))),
        "steps": _whole(_of(record, "training").get("max_steps")),
        "loss": _number(last.get("loss")),
        "metrics": _metrics(summary.get("metrics")),
        "when": _when(record),
        "title": said.title,
        "starred": said.starred,
        "keepable": free and holds_adapter(locate_adapter(record.folder).path),
        "resumable": free and (state in _RESUMED or repeats),
        "deletable": free,
    }


def _named(record: RunRecord) -> str:
    """Return the name that somebody gave the run, in front of its label."""
    return " · ".join(filter(None, (record.marks.title, label(record))))


def _from(record: RunRecord) -> str:
    return f" · from {record.start_from[:200]}" if record.start_from else ""


def _when(record: RunRecord) -> str:
    """Return when it was started, from its name, else from its config's file."""
    try:
        moment = datetime.strptime(record.folder.name[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        try:
            moment = datetime.fromtimestamp((record.folder / "config.json").stat().st_mtime)
        except OSError:
            return ""
    return moment.strftime("%Y-%m-%d %H:%M")


# The comparison -------------------------------------------------------------------------------


def _compared(records: Sequence[RunRecord]) -> dict[str, Any]:
    opened = [record.open() for record in records]
    curves = [
        {"id": record.id, "points": _curve(record, run)}
        for record, run in zip(records, opened, strict=True)
    ]
    own = differences(records)
    rows = [
        {
            "id": record.id,
            "label": _named(record) + own.get(record.id, ""),
            "cells": _cells(record, run),
        }
        for record, run in zip(records, opened, strict=True)
    ]
    units = set(map(_loss_unit, records))
    return {
        "columns": COLUMNS,
        "rows": rows,
        "curves": curves,
        "unit": units.pop() if len(units) == 1 else "",
        "note": _note(records),
        "differs": _differs(records),
    }


def _differs(records: Sequence[RunRecord]) -> list[list[Any]]:
    """Return [setting, [its value in each run]] of all in which two runs differ."""
    if len(records) < 2:
        return []
    found = [
        [name[:100], [text[:_MOST_VALUE] for text in texts]]
        for name, texts in differing_settings(records).items()
    ]
    return found[:_MOST_DIFFERING]


def _loss_unit(record: RunRecord) -> str:
    return str(_of(record, "task").get("loss_unit", NATS))[:64]


def _curve(record: RunRecord, run: OpenedRun) -> list[Any]:
    finite = np.isfinite(run.curve.losses)
    losses = np.column_stack([run.curve.steps[finite], run.curve.losses[finite]])
    return thin(losses, _whole(_of(record, "training").get("max_steps")) or len(losses))


def _cells(record: RunRecord, run: OpenedRun) -> list[str]:
    summary = record.summary or {}
    losses = run.curve.losses[np.isfinite(run.curve.losses)]
    trainable, peak = _whole(summary.get("trainable")), _whole(summary.get("peak_memory"))
    seconds = _number(summary.get("seconds"))
    if seconds is None:
        seconds = _number(read_last_row(record.folder).get("seconds"))
    return [
        str(len(losses)),
        format_number(float(losses[-1])) if len(losses) else _NOTHING,
        _metrics(run.metrics) or _NOTHING,
        format_count(trainable) if trainable else _NOTHING,
        *_spectra(run.history),
        format_bytes(peak) if peak else _NOTHING,
        f"{seconds:.0f} s" if seconds is not None else _NOTHING,
    ]


def _spectra(history: SpectraHistory | None) -> tuple[str, str, str]:
    """Return ranks, and the medians over the sites of effective rank and relative size, now."""
    if history is None or not len(history.steps) or not history.sites:
        return _NOTHING, _NOTHING, _NOTHING
    ranks = sorted({site.r for site in history.sites})
    values = history.singular_values(-1)
    effective = [float(spectra.effective_rank(s)) for s in values.values()]
    sizes = [
        float(spectra.frobenius(values[site.name])) / site.weight_norm
        for site in history.sites
        if site.weight_norm
    ]
    return (
        str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}",
        f"{np.median(effective):.1f}",
        format_number(float(np.median(sizes))) if sizes else _NOTHING,
    )


def _note(records: Sequence[RunRecord]) -> str:
    """Say which run came out best, or why they cannot be held against each other."""
    if len(records) < 2:
        return ""
    try:
        found = compare_methods(records)
    except RunError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "one of these runs has a damaged config.json or summary.json"
    best = found.best
    if len(found.rows) == 1 and best.spread is not None:
        return (
            f"all of one setting: held-out loss {best.score}, "
            f"mean and standard deviation of {len(best.values)} runs"
        )
    setting = f" {best.setting}" if best.setting else ""
    parts = [
        f"lowest held-out loss: {best.method}{setting}, lr {best.learning_rate:g} "
        f"({format_number(best.mean)})",
        found.note,
    ]
    return "; ".join(filter(None, parts))


# One run --------------------------------------------------------------------------------------


def _details(record: RunRecord) -> dict[str, Any]:
    run, said = record.open(), record.marks
    summary = record.summary or {}
    report = record.folder / "report.html"
    model, task = _of(record, "model"), _of(record, "task")
    trainable, peak = _whole(summary.get("trainable")), _whole(summary.get("peak_memory"))
    facts = [
        ("folder", str(record.folder)),
        ("model", f"{model.get('name', '?')} · {model.get('dtype', '')}"),
        ("task", f"{task.get('name', '?')}{' · synthetic' if task.get('synthetic') else ''}"),
        ("starts from", record.start_from),
        ("metrics", _metrics(run.metrics)),
        ("trainable", format_count(trainable) if trainable else ""),
        ("peak memory", format_bytes(peak) if peak else ""),
        ("checkpoints", ", ".join(map(str, run.checkpoints))),
        ("size on disk", format_bytes(folder_bytes(record.folder))),
        ("problem", str(summary.get("problem") or record.problem)),
        ("report", str(report) if report.is_file() else ""),
    ]
    return {
        "id": record.id,
        "label": _named(record),
        "title": said.title,
        "note": said.note,
        "facts": [[name, text[:_MOST_TEXT]] for name, text in facts if text],
        "config": _config(record)[:_MOST_CONFIG],
        "points": _curve(record, run),
        "unit": _loss_unit(record),
        "samples": [
            {
                name: str(sample.get(name) or "")[:_MOST_TEXT]
                for name in ("prompt", "base", "adapted")
            }
            for sample in run.samples[:_MOST_SAMPLES]
        ],
        "reportable": run.adapter_folder is not None,
    }


def _config(record: RunRecord) -> str:
    """Return the configs as Python, or as they stand where this version has no such class."""
    try:
        methods, training = read_configs(record)
        return shown_code(methods, training)
    except RunError:
        return json.dumps(record.config.get("configs"), indent=2, ensure_ascii=False)


def _of(record: RunRecord, key: str) -> Mapping[str, Any]:
    found = record.config.get(key)
    return found if isinstance(found, dict) else {}


def _name(record: RunRecord, key: str) -> str:
    return str(_of(record, key).get("name", "?"))[:200]


def _metrics(found: Any) -> str:
    """Return "held-out loss 2.10 → 1.20 · BLEU 3.10 → 38.2" of {name_before, name_after}."""
    known = changes(found if isinstance(found, dict) else {})[:8]
    return " · ".join(in_words(known, lambda metric: metric.title[:64]))


def _number(value: Any) -> float | None:
    """Return a finite number as it goes to the browser; None of anything else in a file."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number(float(value)) if good else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
