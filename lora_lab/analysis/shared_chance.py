"""What two runs have in common by their seeds, before either has learned anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_lab.analysis.identity import fingerprints
from lora_lab.analysis.records import training_settings
from lora_lab.runs.records import RunRecord

_OF_START = "r", "init_r", "rank_pattern", "init_lora_weights"  # on which a factor's start hangs


def shared_chance(first: RunRecord | None, second: RunRecord | None) -> str:
    """Say why two runs' updates may be alike beyond what both learned from the data; "" if not.

    A run's seed gives the order of its examples, its dropout, and the start of every factor at its
    site and rank. Runs of earlier versions drew all starts from one stream: of two with one seed
    the first site's A began with the same rows at any rank.

    Args:
        first, second: None: it is not known which run left the adapter, and nothing is said.
    """
    if first is None or second is None or not (first.config and second.config):
        return ""
    if first.folder == second.folder:
        return "both are of one run"
    for one, other in ((first, second), (second, first)):
        if (one.config.get("start_from") or {}).get("run") == other.folder.name:
            return f"run {one.id} started from the other one's adapter: it has its directions too"
    seeds = [_seed(record) for record in (first, second)]
    if None in seeds or seeds[0] != seeds[1]:
        return ""
    shared = []
    rows = [fingerprints(record)["rows"] for record in (first, second)]
    if rows[0] == rows[1] or None in rows:
        shared.append("the order of the examples")
    settings = [_start(record.config) for record in (first, second)]
    if settings[0] == settings[1]:
        shared.append("the start of A at each matrix")
    elif None in (fingerprints(record)["model weights"] for record in (first, second)):
        shared.append("the first rows of A at the first matrix, as earlier versions drew them")
    if not shared:
        return ""
    return (
        f"both runs have seed {seeds[0]}, and with it {' and '.join(shared)}: directions that they "
        "share may come of that; compare runs of two seeds"
    )


def _seed(record: RunRecord) -> Any:
    return training_settings(record)["seed"] if "training" in record.config else None


def _start(config: Mapping[str, Any]) -> list[Any]:
    parts = config.get("configs") or [config.get("lora") or {}]
    return [config.get("method"), *([own.get(n) for n in _OF_START] for own in parts)]
