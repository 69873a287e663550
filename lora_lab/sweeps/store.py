"""A sweep on disk: its plan, one line for every cell that ended, and the cells' runs beside them.

<output_dir>/<name>/
    sweep.json       model, data and all cells; a later call must ask for the same model and data
    cells.jsonl      one line a cell that ended, appended whole; the last line of a cell counts
    rungs.jsonl      one line a cell that has come to a rung of ASHA's, while it still trains
    <time>-<cell>-<random>/   the cell's run, a run's folder like any other
    .<cell>.lock     held by the process that trains the cell
    .sweep.lock      held by one that writes the plan
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from lora_lab._util.files import (
    disk_errors,
    make_dirs,
    open_own,
    put_aside,
    sync,
    write_all,
)
from lora_lab._util.json_files import MOST_BYTES, fitted, parse_json, read_bytes, read_json
from lora_lab._util.unsharing import unshare
from lora_lab._util.warn import warn
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.plain import method_to_dict
from lora_lab.redaction import redacted
from lora_lab.runs.lock import RunLock
from lora_lab.runs.records import (
    SWEEP_FILE,
    RecordState,
    RunRecord,
    by_checkpoint,
    read_record,
)
from lora_lab.runs.store import RunStore
from lora_lab.runs.training_config import UNTOLD, TrainingConfig
from lora_lab.sweeps.cells import Cell, cell_of

CellState = Literal["done", "stopped early", "failed"]
_ENDED = "cells.jsonl"
_RUNGS = "rungs.jsonl"
_AT_WORK = RecordState.RUNNING, RecordState.ELSEWHERE
_PATIENCE = 30.0  # seconds for another process to write the plan


@dataclass(frozen=True)
class CellResult:
    """How a cell ended.

    Attributes:
        cell: its id.
        state: "failed" cells are tried again by the next call, the others are not.
        run: the name of its run's folder; "" where none was made.
        step: optimizer steps that it took.
        metrics: the run's, such as "loss_after".
        rungs: {step: loss} that ASHA saw.
        problem: one line, of a failed one.
    """

    cell: str
    state: CellState
    run: str
    step: int
    metrics: Mapping[str, float]
    rungs: Mapping[int, float]
    problem: str = ""


class SweepStore:
    """The folder of one sweep. Several processes may train its cells, each one once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, told: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        """Write the plan, or compare it with the one that is there; new cells are added.

        Args:
            told: what must be the same on every call: {"model": …, "task": …} with "name"s, sizes
                and fingerprints. A name is none where the fingerprints tell.
            cells: those of this call.

        Raises:
            RunError: the folder belongs to another sweep, or cannot be written.
        """
        path, lock = self.folder / SWEEP_FILE, RunLock(self.folder, ".sweep.lock")
        try:
            with disk_errors(path):
                make_dirs(self.folder)
                lock.take(_PATIENCE)
            self._begin(path, told, cells)
        finally:
            lock.release()

    def _begin(self, path: Path, told: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        known: list[dict[str, Any]] = []
        try:
            plan = _read_plan(path)
        except FileNotFoundError:
            self._refuse(self._other_runs(told))
        except OSError as error:  # a link, a pipe: not ours to move
            raise RunError(f"{path} cannot be read ({error}); use another name") from None
        except ValueError as error:  # a record; what was trained lies beside it
            self._refuse(self._other_runs(told))
            with disk_errors(path):
                free = put_aside(path)
            warn(f"{path} cannot be read ({error}): it is {free.name} now, and written anew")
        else:
            known = plan["cells"]
            self._refuse_others(plan["told"], told)
        ids = {entry["id"] for entry in known}
        known += [
            {
                "id": cell.id,
                "changes": dict(cell.changes),
                "configs": list(map(method_to_dict, cell.configs)),
                "training": cell.training.to_dict(),
            }
            for cell in cells
            if cell.id not in ids
        ]
        RunStore(self.folder).write_json(SWEEP_FILE, {"told": told, "cells": known})

    def check(self, told: Mapping[str, Any]) -> None:
        """Raise `RunError` unless the plan on disk is of this model and data; see `begin`."""
        self._refuse_others(_read_plan(self.folder / SWEEP_FILE)["told"], told)

    def _refuse_others(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(now))
        other = next((kind for kind in now if _differ(before.get(kind, {}), now[kind])), None)
        data = now.get("task", {}).get("data")
        if other is None and "data" not in before.get("task", {}) and data is not None:
            other = self._other_runs(now)  # an earlier version did not note its data; its runs did
        self._refuse(other)

    def _other_runs(self, now: Mapping[str, Any]) -> str | None:
        """Return which of "task" and "model" is another's in runs here, by their hashes."""
        runs = filter(None, (read_record(folder) for folder in self.folder.glob("[!.]*/")))
        known = [run.config.get("fingerprints") or {} for run in runs]
        for kind, key in (("task", "data"), ("model", "body")):
            own = now.get(kind, {}).get(key)
            if own is not None and {each.get(key) for each in known} - {None, own}:
                return kind
        return None

    def _refuse(self, other: str | None) -> None:
        if other is not None:
            raise RunError(
                f"{self.folder} holds a sweep of another model or task; use another name (it is "
                f"the {other} that differs)"
            )

    def add(self, result: CellResult) -> None:
        """Append one line; a cell that ended is never lost and never torn.

        Raises:
            RunError: the disk does not take it.
        """
        _append(self.folder / _ENDED, asdict(result))

    def add_rung(self, cell: str, rung: int, loss: float) -> None:
        """Append one line: a cell has come to a rung, with this loss.

        Raises:
            RunError: the disk does not take it.
        """
        value = loss if math.isfinite(loss) else None
        _append(self.folder / _RUNGS, {"cell": cell, "rung": rung, "loss": value})

    def losses_at(self, rung: int, but: str) -> list[float]:
        """Return the losses of all cells that have come to a rung, in whatever process.

        Args:
            rung: optimizer step.
            but: the cell that is left out.

        Raises:
            RunError: a file cannot be read.
        """
        ended = self.ended().values()
        found = {cell.cell: cell.rungs[rung] for cell in ended if rung in cell.rungs}
        for seen in self._lines(_RUNGS, _Rung):
            if seen["rung"] == rung:
                found[seen["cell"]] = math.nan if seen["loss"] is None else seen["loss"]
        found.pop(but, None)
        return [*found.values()]

    @contextlib.contextmanager
    def claim(self, cell: str) -> Iterator[bool]:
        """Hold a cell for this process within the block; yield whether that may be.

        Another process has it otherwise, or somebody trains its run beside the sweep.

        Raises:
            RunError: the disk does not take the file.
        """
        lock = RunLock(self.folder, f".{cell}.lock")
        try:
            with disk_errors(self.folder):
                mine = lock.take()
            run = self.run_of(cell) if mine else None
            yield mine and (run is None or run.state not in _AT_WORK)
        finally:
            lock.release()

    def written(self) -> int:
        """Return how many bytes of results there are, for `ended`."""
        with contextlib.suppress(OSError):
            return (self.folder / _ENDED).stat().st_size
        return 0

    def ended(self, since: int = 0) -> dict[str, CellResult]:
        """Return {cell: how it ended}; a torn line is passed over.

        Args:
            since: what `written` was; those alone that have ended after it.

        Raises:
            RunError: the file cannot be read.
        """
        return {result.cell: result for result in self._lines(_ENDED, CellResult, since)}

    def _lines(self, name: str, kind: Any, since: int = 0) -> Iterator[Any]:
        path = self.folder / name
        try:
            lines = read_bytes(path, MOST_BYTES)[since:].splitlines()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); use another name") from None
        for line in lines:
            with contextlib.suppress(ValueError):
                yield fitted(parse_json(line), kind)

    def run_of(self, cell: str) -> RunRecord | None:
        """Return a cell's newest run, ended or cut off; None where it has none."""
        near = self.folder.glob(f"[!.]*-{cell}-*/")
        # What is gone on with lies in the sweep's own folder: a link there is a stranger's.
        folders = sorted((path for path in near if not path.is_symlink()), reverse=True)
        found = next(filter(None, map(read_record, folders)), None)
        return found and by_checkpoint(found)[0]


def _differ(before: Any, now: Mapping[str, Any]) -> bool:
    """Whether two models or tasks are not the same: by their hashes, or by name without one."""
    if not isinstance(before, Mapping):  # a file that somebody else has written
        return True
    hashes = {"body", "data", "held_out", "task"} & now.keys()
    free = {"name"} if hashes and hashes <= before.keys() else hashes - before.keys()
    return any(before.get(key) != now.get(key) for key in {*before, *now} - free)


def _append(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line; it is on the disk when this returns."""
    line = (json.dumps(values) + "\n").encode()
    with disk_errors(path):
        unshare(path)
        # One write to a file opened for appending: lines of several processes do not mix.
        made = not path.exists()
        own = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(own, "a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                line = b"\n" + line  # behind one that a full disk has torn
            write_all(file, line)
            os.fsync(file.fileno())
            if made:
                sync(path.parent)


class _Rung(TypedDict):
    cell: str
    rung: int
    loss: float | None


class _KnownCell(TypedDict):
    id: str


class _Plan(TypedDict):
    told: dict[str, Any]
    cells: list[_KnownCell]


def _read_plan(path: Path) -> dict[str, Any]:
    """Return what a sweep.json holds.

    Raises:
        OSError, ValueError: see `read_json`.
    """
    plan: dict[str, Any] = read_json(path)
    fitted(plan, _Plan)
    return plan


def as_begun(cells: Sequence[Cell], folder: Path) -> tuple[Cell, ...]:
    """Return cells as the sweep in a folder has them.

    One that was begun when all starts came from one stream by default, or the order was random too,
    or the warm-up of 5 steps, goes on with these.
    """
    try:
        ids = {entry["id"] for entry in _read_plan(folder / SWEEP_FILE)["cells"]}
    except (OSError, ValueError):
        return tuple(cells)  # none, or `begin` says what is wrong with it
    draws = {"init_draws": UNTOLD["init_draws"]}
    for defaults in (draws, UNTOLD, {**UNTOLD, "warmup_steps": 5}):
        older = tuple(_by_default(cell, defaults) for cell in cells)
        if any(now is not then and then.id in ids for now, then in zip(cells, older, strict=True)):
            return older
    return tuple(cells)


def _by_default(cell: Cell, defaults: Mapping[str, Any]) -> Cell:
    """Return a cell with other defaults, where it has those of today."""
    training = cell.training
    own = {n: v for n, v in defaults.items() if getattr(training, n) == getattr(TrainingConfig, n)}
    return cell_of(cell.configs, training.replace(**own), cell.changes) if own else cell


def checked_name(name: object) -> str:
    """Return a sweep's name if it can be a folder's, and of one right below the runs' folder.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,63}", name):
        shown = repr(name)[:80]
        raise ConfigError(f"name is {shown}; use letters, digits, '-', '_' and '.', 64 at most")
    if redacted(name) != name:  # it is a folder's, and lists and figures say it
        raise ConfigError("name looks like a secret of this machine; use another")
    return name
