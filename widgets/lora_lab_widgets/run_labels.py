"""What runs on disk are called, so that no two that differ look the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lora_lab.analysis.differing import NO_MATTER, differing_settings, told_apart
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord
from lora_lab_widgets.lab_views.base import run_label

_MOST_SWEEP = 64  # characters of a sweep's name
_TOLD_BESIDE = "seed", "learning_rate", "start_from", *NO_MATTER  # or of no matter
_DAMAGED = AttributeError, TypeError, KeyError, ValueError, RunError


def label(record: RunRecord) -> str:
    """Return a run's label; of a config.json that is none, its id."""
    try:
        return run_label(record)[:300]
    except _DAMAGED:
        return record.id


def short_label(record: RunRecord) -> str:
    """Return the label without the id: "r=8 · lr 0.001", "grid-1 / r=8 · lr 0.001" of a sweep's."""
    whole = label(record).removesuffix(f" · {record.id}")
    if not record.sweep:
        return whole
    own = whole.removeprefix(f"{record.sweep}/")  # a config.json that is none has its id there
    return f"{record.sweep[:_MOST_SWEEP]} / {own}"


def differences(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return {id: " · α = 16"}: the settings that tell a run from others of the same label.

    The others are those of its model and task, whose names stand beside the label, as does the run
    that it starts from.
    """
    alike: defaultdict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for record in records:
        alike[_without_seed(record), *_names(record)].append(record)
    found: dict[str, str] = {}
    for group in alike.values():
        try:
            words = told_apart(group, _TOLD_BESIDE, "size")
        except _DAMAGED:
            continue
        found |= {r.id: f" · {own}"[:300] for r, own in zip(group, words, strict=True) if own}
    return found


def data_marks(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return {id: " (rows 3fa2c1)"} of runs on several data sets of one name."""
    known: dict[str, tuple[str, str]] = {}
    for record in records:
        task, hashes = record.config.get("task"), record.config.get("fingerprints")
        if isinstance(task, dict) and isinstance(hashes, dict) and "data" in hashes:
            own = f"{hashes['data'][:6]} {str(hashes.get('held_out', ''))[:6]}".strip()
            known[record.id] = str(task.get("name")), own
    several: defaultdict[str, set[str]] = defaultdict(set)
    for name, own in known.values():
        several[name].add(own)
    return {id_: f" (rows {own})" for id_, (name, own) in known.items() if len(several[name]) > 1}


def unlike(records: Sequence[RunRecord], words: Mapping[str, str]) -> dict[str, str]:
    """Return {id: " · dtype = bfloat16"}: in what runs differ that would be shown alike.

    Args:
        records: those that are shown.
        words: {id: what is shown of it}. Runs that still have the same ones are the same.
    """
    alike: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        alike[words[record.id]].append(record)
    found: dict[str, str] = {}
    for group in alike.values():
        if len(group) < 2:
            continue
        told = differing_settings(group)
        for place, record in enumerate(group):
            own = ", ".join(f"{name} = {texts[place]}" for name, texts in told.items())
            found |= {record.id: f" · {own}"[:300]} if own else {}
    return found


def _names(record: RunRecord) -> tuple[str, ...]:
    """Return the names of a run's model and task; "" where its config.json has none."""
    found = (record.config.get(key) for key in ("model", "task"))
    return tuple(str(each.get("name")) if isinstance(each, dict) else "" for each in found)


def _without_seed(record: RunRecord) -> str:
    """Return method and size alone: runs that share these are told apart."""
    return " · ".join(
        part for part in short_label(record).split(" · ") if not part.startswith(("lr ", "seed "))
    )
