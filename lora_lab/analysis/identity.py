"""Which runs are of the same model and the same data, whatever these are called.

A run notes what its model and its examples are by hashes (`training.fingerprints`). Runs of earlier
versions lack some; of those that are not noted, names have to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lora_lab._util.format import plural
from lora_lab.runs.records import RunRecord

HASHES = {  # what a comparison calls it: fingerprint in config.json
    "rows": "data",
    "held-out rows": "held_out",
    "kind of task": "task",
    "model weights": "body",
}
_OF_TASK = tuple(HASHES)[:3]
_OF_MODEL = tuple(HASHES)[3:]
_NAMES = {"task": _OF_TASK, "model hub_id": _OF_MODEL, "model name": _OF_MODEL}
OLDER = "{} of an earlier version, which did not note all that tells its data: taken as the same"

Own = TypeVar("Own")


def fingerprints(record: RunRecord) -> dict[str, str | None]:
    """Return {what: hash} of a run's model and data; None of what it does not tell."""
    known = record.config.get("fingerprints") or {}
    return {what: known.get(key) for what, key in HASHES.items()}


def difference(settings: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first key in which settings differ, as far as is known; None: in no one.

    Hashes that are not known differ from none. Where all are known and the same, names are free.

    Args:
        settings: of each run, `fingerprints` and what else has to be the same.
    """
    for key in dict.fromkeys(key for one in settings for key in one):
        values = {json.dumps(one.get(key)) for one in settings}
        if key in HASHES:
            values.discard("null")
        elif key in _NAMES and _told(settings, _NAMES[key]):
            continue
        if len(values) > 1:
            return key
    return None


def grouped(
    items: Sequence[Own], settings_of: Callable[[Own], Mapping[str, Any]]
) -> list[list[Own]]:
    """Sort into groups in which no two differ, in the order in which they first come.

    What lacks a hash goes with the only group that it may be of, else with others that lack it.
    """
    alike: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for number, item in enumerate(items):
        settings = settings_of(item)
        key = json.dumps(settings, sort_keys=True)
        alike.setdefault(key, (settings, []))[1].append(number)
    groups: list[tuple[list[Mapping[str, Any]], list[int]]] = []
    for settings, numbers in sorted(alike.values(), key=lambda own: _unknown(own[0])):
        fits = [group for group in groups if difference([*group[0], settings]) is None]
        told = [group for group in fits if not _unknown(group[0][0])]
        fits = told if len(told) == 1 else [group for group in fits if group not in told]
        if len(fits) == 1:
            fits[0][0].append(settings)
            fits[0][1].extend(numbers)
        else:
            groups.append(([settings], numbers))
    found = sorted(sorted(numbers) for _, numbers in groups)
    return [[items[number] for number in numbers] for numbers in found]


def told_apart(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return of each group of runs the settings in which two groups differ; of a hash its start."""
    keys = dict.fromkeys(key for one in settings for key in one)
    varied = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    return [", ".join(f"{key} {_short(key, one.get(key))}" for key in varied) for one in settings]


def named_groups(
    groups: Sequence[Sequence[RunRecord]], told: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return "model · task · 4 runs" of groups of runs, with what tells two of one name apart.

    Args:
        groups: none of them empty.
        told: of each the settings that its runs share.
    """
    plain = [f"{_name(group, 'model')} · {_name(group, 'task')}" for group in groups]
    names = []
    for number, group in enumerate(groups):
        alike = [i for i, name in enumerate(plain) if name == plain[number]]
        apart = told_apart([told[i] for i in alike])[alike.index(number)]
        names.append(" · ".join(filter(None, (plain[number], apart, plural(len(group), "run")))))
    return names


def _name(group: Sequence[RunRecord], of: str) -> str:
    return str(group[0].config.get(of, {}).get("name", f"a {of}"))


def _short(key: str, value: Any) -> str:
    if key in HASHES:
        return "not noted" if value is None else value[:6]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def untold(settings: Sequence[Mapping[str, Any]]) -> int:
    """Return how many runs lack a hash that others have."""
    noted = {key for key in HASHES for one in settings if one.get(key) is not None}
    return sum(any(one.get(key) is None for key in noted) for one in settings)


def _told(settings: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    """Whether all runs tell these hashes, and the same ones."""
    return all(
        len(values := {one.get(key) for one in settings}) == 1 and None not in values
        for key in keys
    )


def _unknown(settings: Mapping[str, Any]) -> int:
    return sum(settings.get(key) is None for key in HASHES)
