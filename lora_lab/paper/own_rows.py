"""Rows of one's own beside a published table's."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from lora_lab.analysis.choices import Choices
from lora_lab.analysis.differing import NO_MATTER, full_settings, of_kept, same_but
from lora_lab.analysis.identity import fingerprints
from lora_lab.analysis.methods import MethodComparison, named, settings_of_rows, trained
from lora_lab.analysis.records import end_state, metrics
from lora_lab.analysis.seeds import mean_and_spread
from lora_lab.errors import RunError
from lora_lab.paper.printed import PublishedTable
from lora_lab.paper.rows import PublishedRow
from lora_lab.paper.things import Comparable, Thing, compared_cells, published_cells, things_of
from lora_lab.runs.records import RunRecord
from lora_lab.tasks.metrics import KEPT, KEPT_DATA, LOSS, Metric, changes, metric_of

# Table 3's BLEU is that of the E2E challenge's script, which knows no case, and METEOR and ROUGE-L
# are coco-caption's there, as in all tables that have CIDEr.
_NAMED = {"bleu": "BLEU (cased)", "bleu_lowercase": "BLEU"}
_COCO = {
    "meteor_coco": "METEOR",
    "rouge_l_coco": "ROUGE-L",
    "meteor": "METEOR (not coco)",
    "rouge_l": "ROUGE-L (not coco)",
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Losses on other texts, or on other data, are no mean of one thing.
_SEED = ("seed", *(name for name in NO_MATTER if name not in of_kept(KEPT.name)))


def own_rows(
    table: PublishedTable, runs: Comparable
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return a table's header, longer by the scores that it has no column for, and one's own rows.

    A row is a setting, over its seeds, a row of a comparison, or one of another published table,
    which then says so. A score stands in the column of its metric, in that of its
    data set, or (of tables over ranks) in that of its rank, from 0 to 1 where the table's are.

    Raises:
        ConfigError: for what cannot be set beside it.
        RunError: no run has ended with a score.
    """
    header = table.header
    things = list(things_of(runs))
    found = [thing for thing in things if isinstance(thing, RunRecord)]
    ended: list[RunRecord] = []
    for run in found:
        if end_state(run) == "done" and _after(run) and run not in ended:  # by id and in a sweep
            ended.append(run)
    rest = [rows for thing in things for rows in _others(table, thing)]
    if not ended and not rest:
        raise RunError(
            f"none of {len(found)} runs has ended with a score; wait for one, or train with "
            "eval_examples"
        )
    groups: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for run in ended:
        told = json.dumps(fingerprints(run), sort_keys=True, default=str)
        groups[told + same_but(full_settings(run), _SEED)].append(run)
    settings = settings_of_rows([group[0] for group in groups.values()], _SEED)
    rows: list[dict[str, str]] = []
    for group, setting in zip(groups.values(), settings, strict=True):
        for labels, scores in _rows(table, group, setting):
            _add(rows, labels, scores)
    rows += rest
    names = (*header, *dict.fromkeys(name for row in rows for name in row if name not in header))
    return names, tuple(tuple(row.get(name, "") for name in names) for row in rows)


def _rows(
    table: PublishedTable, group: Sequence[RunRecord], setting: str
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Yield a group's rows as (what stands in front, scores)."""
    header, config = table.header, group[0].config
    first = config["configs"][0]
    task, method = str(config["task"]["name"]), named(group[0])
    labels = {
        "model": str(config["model"].get("name") or ""),
        "method": method if "setting" in header else ", ".join(filter(None, (method, setting))),
        "setting": setting,
        "parameters": f"{max(map(trained, group)) / 1e6:.3g}M",
        "weights": _targets(first) if "r" in header or _of_rank(first) in header else setting,
        "r": str(first.get("r", "")),
        "task": task,
        "data": task,
    }
    labels = {name: text for name, text in labels.items() if name in header}
    scores = {
        metric: [dict(_after(run)).get(metric) for run in group] for metric, _ in _after(group[0])
    }
    known = {metric: [v for v in values if v is not None] for metric, values in scores.items()}
    if (rank := _of_rank(first)) in header:
        for metric, values in known.items():
            yield {**labels, "task": f"{task}, {metric.title}"}, {rank: mean_and_spread(values)}
        return
    cells: dict[str, str] = {}
    for metric, values in known.items():
        column = _column(header, metric, task, tuple(known))
        cells.setdefault(column, _scaled(table, column, values))
    yield labels, cells


def _scaled(table: PublishedTable, column: str, values: Sequence[float]) -> str:
    """Return scores from 0 to 100 as a table's column has them."""
    times = 0.01 if column in table.shares else 1.0
    return mean_and_spread([times * value for value in values])


def _others(table: PublishedTable, thing: Thing) -> Iterator[dict[str, str]]:
    """Yield the rows of what is no run: of a comparison, or of another table."""
    header = table.header
    if isinstance(thing, MethodComparison | Choices):
        metric = metric_of(thing.metric)
        for row in thing.rows:
            cells = compared_cells(thing, row)
            cells |= {"parameters": f"{row.trainable / 1e6:.3g}M", "data": thing.task}
            column = _column(header, metric, thing.task, [metric])
            yield _fitted(header, cells) | {column: _scaled(table, column, row.values)}
    elif isinstance(thing, PublishedRow):
        yield _from(thing.table, header, published_cells(thing))
    elif isinstance(thing, PublishedTable):
        for printed in thing.rows:
            cells = dict(zip(thing.header, printed, strict=True))
            for name in (thing.shares ^ table.shares) & cells.keys() & {*header}:
                cells[name] = _times(100 if name in thing.shares else "0.01", cells[name])
            yield _from(thing.source, header, cells)


def _times(factor: int | str, cell: str) -> str:
    """Return a printed cell with its number and its spread so many times as large, digit by digit.

    >>> _times("0.01", "46.0 ± 0.2")
    '0.460 ± 0.002'
    """
    return _NUMBER.sub(lambda found: f"{Decimal(found[0]) * Decimal(factor):f}", cell)


def _from(source: str, header: Sequence[str], cells: Mapping[str, str]) -> dict[str, str]:
    """Return a published row in a table's columns, with where it is from in the first one."""
    found = _fitted(header, cells)
    return found | {header[0]: f"{found.get(header[0], '')} ({source})".strip()}


def _fitted(header: Sequence[str], cells: Mapping[str, str]) -> dict[str, str]:
    """Return the cells that a table has columns for; what has none for the setting tells it."""
    own = dict(cells)
    if "setting" not in header and "method" in header and own.get("setting"):
        own["method"] = f"{own['method']}, {own['setting']}"
    return {name: text for name, text in own.items() if name in header}


def _add(rows: list[dict[str, str]], labels: dict[str, str], scores: dict[str, str]) -> None:
    """Add a row, or a rank's score to the row of the other ranks."""
    for row in rows:
        alike = all(row.get(name) == text for name, text in labels.items())
        if alike and not scores.keys() & row.keys():
            row |= scores
            return
    rows.append({**labels, **scores})


def _after(run: RunRecord) -> list[tuple[Metric, float]]:
    return [(m, after) for m, _, after in changes(metrics(run)) if after is not None]


def _column(header: Sequence[str], metric: Metric, task: str, all_of: Sequence[Metric]) -> str:
    own = (_NAMED | _COCO if "CIDEr" in header else _NAMED).get(metric.name)
    names = {own.casefold()} if own else {metric.name.casefold(), metric.label.casefold()}
    if metric == next((one for one in all_of if one not in (LOSS, KEPT, KEPT_DATA)), None):
        names.add(task.casefold())
    return next((name for name in header if name.casefold() in names), own or metric.title)


def _targets(config: dict[str, Any]) -> str:
    targets = config.get("target_modules") or ""
    return targets if isinstance(targets, str) else ", ".join(map(str, targets))


def _of_rank(config: dict[str, Any]) -> str:
    return f"r = {config.get('r', '')}"
