"""The adapter that is to be kept: the latest run's, that of a run on disk, or the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.anatomy.heads import head_modules
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.locate import locate_adapter
from lora_lab.errors import RunError
from lora_lab.methods.api import detach
from lora_lab.redaction import redacted
from lora_lab.runs.records import RecordState, find_run
from lora_lab.training import own_adapter
from lora_lab.training.fingerprints import body_fingerprint
from lora_lab.training.snapshot import RunState
from lora_lab_widgets.live_adapter import ADAPTER, LiveAdapter, resting
from lora_lab_widgets.run_labels import label

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.runs.records import RunRecord
    from lora_lab.training.run import Run

_KEPT = "an adapter is being kept"
_NAME = "lora-lab-kept"  # of an adapter that is on the model for that long
_AT_WORK = RecordState.RUNNING, RecordState.ELSEWHERE


@dataclass(frozen=True)
class Kept:
    """An adapter that somebody may want to keep.

    Attributes:
        id: of the run that made it; "" of the model's own.
        words: what people call it.
        run: the run, where it is the workbench's latest.
        record: the run on disk, where it is another.
        place: the folder or file, where it is no run's.
    """

    id: str
    words: str
    run: Run | None = None
    record: RunRecord | None = None
    place: Path | None = None

    @property
    def source(self) -> Path | None:
        """Where it lies: a run's folder, or its own; None of what is on the model alone."""
        return self.folder or self.place

    def on_disk(self) -> Kept:
        """Return the same as what lies on the disk, whether or not its run is the latest."""
        return self if self.run is None else kept_folder(self.run.folder)

    @property
    def folder(self) -> Path | None:
        """The run's folder; None of the model's own adapter."""
        owner = self.run or self.record
        return None if owner is None else owner.folder

    @property
    def waits(self) -> str:
        """Why it cannot be kept now; "" where it can."""
        if self.run is not None:
            seen = self.run.snapshot
            if not resting(seen.state):
                return (
                    f"run {self.id} is {seen.state}: pause or stop it to keep what it has learned"
                )
            if seen.state in (RunState.IDLE, RunState.QUEUED) or not seen.step:
                return f"run {self.id} has learned nothing yet"
            return ""
        if self.record is not None and (state := self.record.state) in _AT_WORK:
            return f"run {self.id} is {state}: what it learns is kept when it is over"
        return ""

    @contextlib.contextmanager
    def on_model(self, live: LiveAdapter) -> Iterator[str]:
        """Have the model alone with the adapter on it, and yield its name there.

        It is not put in force. One that is on disk alone is read for as long as the block takes.

        Raises:
            RunError: it is of another base than the bench's model, or has left no adapter.
            AdapterError: its files cannot be read.
        """
        with live.alone(_KEPT) as model:  # what is read back is put in force, as "Try it" does
            if self.run is not None:
                with own_adapter.on_model(self.run) as name:
                    yield name
            elif self.record is None:
                yield ADAPTER  # what was loaded from a place is on the model
            else:
                refuse_other_base(self.record, live.lm)
                load_adapter(model, locate_adapter(self.record.folder).path, _NAME, activate=False)
                try:
                    yield _NAME
                finally:
                    detach(model, _NAME)


def kept_of(run: Run) -> Kept:
    """Return the adapter of the workbench's latest run."""
    return Kept(run.id, redacted(f"run {run.id}"), run=run)


def kept_record(record: RunRecord) -> Kept:
    """Return the adapter of a run on disk."""
    return Kept(record.id, redacted(f"run {label(record)}"), record=record)


def kept_folder(folder: Path) -> Kept:
    """Return the adapter of the run in a folder.

    Raises:
        RunError: there is none.
    """
    return kept_record(find_run(folder))


def refuse_other_base(record: RunRecord, lm: LoadedModel) -> None:
    """Raise where a run was not made on the model of the bench.

    Raises:
        RunError: see above.
    """
    known = record.config.get("fingerprints")
    known = known if isinstance(known, dict) else {}
    before = known.get("body", None if head_modules(lm.model) else known.get("base"))
    if before is not None and before != body_fingerprint(lm.model):
        about = record.config.get("model")
        named = about if isinstance(about, dict) else {}
        theirs = f"{named.get('name', '?')} ({named.get('dtype', '?')})"
        raise RunError(
            f"run {record.id} adapts {theirs[:200]}, and {lm.card.name} ({lm.card.dtype}) is on "
            "the bench, with other weights; open that model first"
        )
