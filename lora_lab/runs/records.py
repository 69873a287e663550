"""Runs found on disk: what they were, how they stand, and what they left."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lora_lab._util.files import present, user_path
from lora_lab._util.json_files import (
    MOST_BYTES,
    fields_of,
    fitted,
    parse_json,
    read_bytes,
    read_json,
)
from lora_lab.errors import RunError
from lora_lab.redaction import shown_redacted
from lora_lab.runs import checkpoints, lock
from lora_lab.runs.history import SpectraHistory, read_history
from lora_lab.runs.marks import Marks, read_marks, write_marks
from lora_lab.runs.metrics import (
    METRICS_FILE,
    LossCurve,
    read_evaluations,
    read_losses,
    read_metrics,
)
from lora_lab.runs.schema import RunFacts, SampleRow, Summary
from lora_lab.runs.spectra_log import SITES_FILE

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.training.run import Run

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"  # how a run ended
SAMPLES_FILE = "samples.json"
SWEEP_FILE = "sweep.json"  # makes a folder a sweep's: its runs lie right in it


class RecordState(StrEnum):
    """How a run on disk stands."""

    RUNNING = "running"  # in this process
    ELSEWHERE = "running elsewhere"  # in another one
    CUT_OFF = "cut off"  # its process was killed, or is gone
    DONE = "done"
    STOPPED = "stopped"  # on request, before its last step
    FAILED = "failed"
    DAMAGED = "damaged"  # its config.json cannot be read, nor a copy of it


@shown_redacted
@dataclass(frozen=True)
class OpenedRun:
    """What a run's files hold.

    Attributes:
        folder: the run's.
        curve: the losses step by step, as arrays.
        metrics: its scores before and after, as far as they are known.
        samples: the held-out prompts with their answers, once it is over.
        history: ΔW's spectra step by step; None where none were kept.
        checkpoints: {step: folder}, ascending; `load_adapter` reads them.
        adapter_folder: the adapter at the end; None before.
    """

    folder: Path
    curve: LossCurve
    metrics: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    history: SpectraHistory | None
    checkpoints: Mapping[int, Path]
    adapter_folder: Path | None

    @cached_property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of every step."""
        return self.curve.pairs()

    @cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The lines of metrics.jsonl, read when they are first asked for.

        A step's has step, loss, learning_rate, tokens and seconds; that of held-out scores has
        step, eval_loss, the task's metrics likewise, and seconds.
        """
        return tuple(read_metrics(self.folder))

    @cached_property
    def evaluations(self) -> tuple[Mapping[str, float], ...]:
        """Held-out scores while it trained: {"step": …, "loss": …, and the task's metrics}."""
        return tuple(read_evaluations(self.folder))


Value = TypeVar("Value")


class _Later(Generic[Value]):
    """A field that may be given as text, and is made of it when somebody looks.

    The objects that 5,000 records consist of would hold up the kernel whenever the collector comes.
    """

    def __init__(self, make: Callable[[Any], Value]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, record: object, owner: type | None = None) -> Value:
        if record is None:
            raise AttributeError(self._name)  # by which a dataclass sees that it has no default
        value: Value | bytes | str = getattr(record, self._name)
        if isinstance(value, (bytes, str)):
            value = self._make(value)
            self.__set__(record, value)
        return value

    def __set__(self, record: object, value: Value | bytes | str) -> None:
        object.__setattr__(record, self._name, value)


@shown_redacted
@dataclass(frozen=True)
class RunRecord:
    """One run found on disk.

    Attributes:
        id: its folder's name; "<sweep>/<name>" of a sweep's run that was found from above.
        folder: where its files are.
        config: config.json; where that is damaged, a checkpoint's copy of it, or {}.
        summary: summary.json; None: still running, or cut off.
        sweep: the name of the sweep that it belongs to, as far as `id` tells it; "" of others.
        problem: what in its config.json no run has, such as text for a number; `config` is {} then.
    """

    id: str
    folder: _Later[Path] = _Later(Path)
    config: _Later[Mapping[str, Any]] = _Later(parse_json)
    summary: _Later[Mapping[str, Any] | None] = _Later(parse_json)
    sweep: str = ""
    problem: str = ""

    @property
    def state(self) -> RecordState:
        """How it stands now."""
        if (who := lock.holder(self.folder)) is not None:
            return RecordState.RUNNING if lock.is_here(who) else RecordState.ELSEWHERE
        try:
            return RecordState(str((self.summary or {}).get("state")))
        except ValueError:
            return RecordState.CUT_OFF if self.config else RecordState.DAMAGED

    @property
    def marks(self) -> Marks:
        """The title, note and star that it was given, as they stand on the disk now."""
        return read_marks(self.folder)

    def mark(
        self, *, title: str | None = None, note: str | None = None, starred: bool | None = None
    ) -> Marks:
        """Give it a title, a note or a star; what is left out stays. Returns all of them.

        >>> ll.list_runs()[0].mark(title="the long one", starred=True)

        Raises:
            RunError: a text that is too long, or the disk does not take it.
        """
        return write_marks(self.folder, title=title, note=note, starred=starred)

    @property
    def start_from(self) -> str:
        """The adapter that it started from, in words; "" where it began afresh."""
        known = self.config.get("start_from")
        if not known:
            return ""
        if (run := known.get("run")) is None:
            return str(known.get("adapter"))
        step = known.get("step")
        return f"run {run}" + (f", step {step}" if isinstance(step, int) else "")

    def open(self) -> OpenedRun:
        """Read what it left. What is missing or damaged is left out, never raised."""
        try:
            history = read_history(self.folder)
        except RunError:
            history = None
        adapter = present(self.folder / "adapter")
        return OpenedRun(
            folder=self.folder,
            curve=read_losses(self.folder),
            metrics=dict((self.summary or {}).get("metrics", {})),
            samples=tuple(_read_samples(self.folder)),
            history=history,
            checkpoints=dict(reversed(checkpoints.folders(self.folder))),
            adapter_folder=adapter if adapter.is_dir() else None,
        )

    def resume(self, lm: LoadedModel | None = None, task: Task | None = None) -> Run:
        """Go on from the last checkpoint; see `lora_lab.resume`.

        Raises:
            RunError: as that; or nothing that trains was imported, only the reading of runs.
        """
        if not _resume:
            raise RunError(f"run {self.id} is only read here; call lora_lab.resume(…) with it")
        return _resume[0](self, lm, task)


_resume: list[Callable[..., Run]] = []  # what trains stands above this package, and comes here


def resume_with(resume: Callable[..., Run]) -> None:
    """Have `RunRecord.resume` call this. For `lora_lab.training`."""
    _resume[:] = [resume]


def list_runs(output_dir: str | os.PathLike[str] = "runs") -> list[RunRecord]:
    """Return the runs under `output_dir`, newest first, damaged ones too.

    Those of the sweeps that lie right there are among them. Links are followed to a run, not to a
    sweep nor to a sweep's run.
    """
    parent = user_path(output_dir, RunError).resolve()
    # A sweep within a sweep's folder is none of its cells.
    sweeps = not is_sweep(parent)
    found = (each for folder in _folders(parent) for each in _in_folder(folder, sweeps))
    return sorted(found, key=lambda record: (record.id.rpartition("/")[2], record.id), reverse=True)


def is_sweep(folder: str | Path) -> bool:
    """Return whether a folder is a sweep's."""
    return os.path.isfile(os.path.join(folder, SWEEP_FILE))


def find_run(
    run: RunRecord | str | os.PathLike[str], output_dir: str | os.PathLike[str] = "runs"
) -> RunRecord:
    """Return a run by its id or its folder, as it stands now.

    Raises:
        RunError: there is none.
    """
    if isinstance(run, RunRecord):
        folder = run.folder
    else:
        parent = user_path(output_dir, RunError).resolve()
        named = user_path(run, RunError)  # looked at as a path, whether or not it is an id
        folder = parent / run if _is_id(run) else named.resolve()
        if not folder.is_dir() and Path(run).is_dir():
            folder = Path(run).resolve()
    record = read_record(folder)
    if record is None:
        raise RunError(f"there is no run in {folder}; ll.runs() lists those that can be opened")
    return record


def read_record(folder: str | Path, sweep: str = "") -> RunRecord | None:
    """Return the run in a folder, None where there is none."""
    config, problem = _read_config(os.path.join(folder, CONFIG_FILE))
    if config is None and not _was_run(Path(folder)):
        return None
    if config is None or (config == b"{}" and not problem):
        config = _copied_config(Path(folder))
    name = os.path.basename(folder)
    summary = _read_summary(os.path.join(folder, SUMMARY_FILE))
    return RunRecord(f"{sweep}/{name}" if sweep else name, folder, config, summary, sweep, problem)


def has_config(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a run's config.json is this one."""
    text, problem = _read_config(folder / CONFIG_FILE)
    return text is not None and not problem and bool(parse_json(text) == config)


def by_checkpoint(record: RunRecord) -> tuple[RunRecord, list[str]]:
    """Return a run by the copy of its config.json that its newest checkpoint has, and a note.

    So a whole checkpoint is gone on from whatever has become of the file beside: of a byte that
    turned in it nobody could say which of the two it is.
    """
    config = parse_json(_copied_config(record.folder))
    if not config or has_config(record.folder, config):
        return record, []
    why = f" ({record.problem})" if record.problem else ""
    note = f"{CONFIG_FILE} is not as the run was begun with{why}: its checkpoint's copy counts"
    return dataclasses.replace(record, config=config, problem=""), [note]


def _was_run(folder: Path) -> bool:
    """Whether a run was at work in a folder; a start that was cut off leaves its lock alone."""
    left = (folder / name for name in (METRICS_FILE, SITES_FILE))
    return any(map(os.path.lexists, left)) or bool(checkpoints.folders(folder))


def _folders(parent: str | Path, links: bool = True) -> list[str]:
    """Return the folders right in one; what has a dot is being deleted."""
    try:
        with os.scandir(parent) as entries:
            return [
                entry.path
                for entry in entries
                if entry.name[0] != "." and entry.is_dir() and (links or not entry.is_symlink())
            ]
    except OSError:
        return []


def _in_folder(folder: str, sweeps: bool) -> Iterator[RunRecord]:
    """Yield the run in a folder, or the runs of the sweep in it."""
    if (record := read_record(folder)) is not None:
        yield record
    elif sweeps and is_sweep(folder) and not os.path.islink(folder):
        cells = (read_record(cell, os.path.basename(folder)) for cell in _folders(folder, False))
        yield from filter(None, cells)


def _is_id(run: str | os.PathLike[str]) -> bool:
    """Return whether this is an id, which stays below the folder of the runs."""
    parts = Path(run).parts
    plain = len(parts) < 3 and not {"..", "/"} & {*parts}
    return plain and isinstance(run, str) and run == "/".join(parts)


def _read_config(path: str | Path) -> tuple[bytes | None, str]:
    """Return a config.json, or {} and what in it no run has; None where it is no JSON."""
    try:
        text = read_bytes(path, MOST_BYTES)
        config = fitted(parse_json(text), dict[str, Any])
    except (OSError, ValueError):
        return None, ""
    try:
        fitted(config, RunFacts)
    except ValueError as error:
        return b"{}", str(error)
    return text if config else b"{}", ""


def _copied_config(folder: Path) -> bytes:
    """Return the newest checkpoint's copy of a run's config.json, {} where there is none."""
    paths = (path / checkpoints.CONFIG_COPY for _, path in checkpoints.folders(folder))
    copies = (text for text, problem in map(_read_config, paths) if text and not problem)
    return next(copies, b"{}")


def _read_summary(path: str) -> Mapping[str, Any] | bytes | None:
    try:
        text = read_bytes(path, MOST_BYTES)
        found = fitted(parse_json(text), dict[str, Any])
    except (OSError, ValueError):
        return None
    known = fields_of(found, Summary)
    return text if known is found else known


def _read_samples(folder: Path) -> Iterator[Mapping[str, Any]]:
    try:
        rows = read_json(folder / SAMPLES_FILE, list[dict[str, Any]])
    except (OSError, ValueError):
        return
    for row in rows:
        yield fields_of(row, SampleRow)


runs = list_runs
"""The name under which `lora_lab` has had it from the start."""
