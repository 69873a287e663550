"""A run on disk: one folder, readable while it is written and after the process was killed.

Files are whole or absent; the two that grow, metrics.jsonl and spectra.npy, may lack their end.

runs/<id>/
    config.json        what was asked for: adapter, training, model, task, versions
    metrics.jsonl      one line an optimizer step, flushed
    sites.json         the adapted matrices: place in the grid, shape, rank, ‖W₀‖_F, numbers trained
    spectra.npy        the singular values of ΔW at all of them, a row for every step kept
    samples.json       a few held-out prompts with the base model's and the adapter's answers
    checkpoints/step-N/   the adapter in PEFT's format; the newest also holds state.pt
    adapter/           the adapter at the end, in PEFT's format
    summary.json       how it ended; its absence means that the run was cut off
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lora_lab.runs.disk import disk, sync


class RunStore:
    """The folder of one run.

    Only the run's own thread writes here after `create`.

    Attributes:
        id: the folder's name, unique within `output_dir`.
        folder: absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self._metrics: Any = None

    @classmethod
    def create(cls, output_dir: str | os.PathLike[str], name: str | None = None) -> RunStore:
        """Make a new folder `<time>[-name]-<random>` under `output_dir`.

        Raises:
            RunError: the folder cannot be made (read-only, full, a file in the way).
        """
        parent = Path(output_dir).expanduser().resolve()
        slug = re.sub(r"[^\w.-]+", "-", name or "").strip("-.")
        with disk(parent):
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                moment = datetime.now().strftime("%Y%m%d-%H%M%S")
                folder = parent / "-".join(filter(None, (moment, slug, secrets.token_hex(2))))
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue  # two runs in one second that drew the same four digits
                return cls(folder)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, whole or not at all.

        Raises:
            RunError: the disk does not take it.
        """
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        path = self.folder / name
        with disk(path):
            temporary = path.with_name(f".{name}.tmp")
            try:
                with temporary.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def log(self, row: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            RunError: the disk does not take it.
        """
        path = self.folder / "metrics.jsonl"
        with disk(path):
            if self._metrics is None:
                self._metrics = path.open("a", encoding="utf-8")
            self._metrics.write(json.dumps(dict(row)) + "\n")
            self._metrics.flush()

    def close(self) -> None:
        """Close metrics.jsonl; a later `log` opens it again."""
        if self._metrics is not None:
            file, self._metrics = self._metrics, None
            with contextlib.suppress(OSError):  # every line was flushed when it was written
                file.close()

    def save_adapter(self, save: Callable[[Path], object]) -> Path:
        """Fill `adapter/` with `save(folder)`, replacing what is there; return its path."""
        return self._fill(self.folder / "adapter", save)

    def save_checkpoint(
        self, step: int, save: Callable[[Path], object], state: Mapping[str, Any]
    ) -> Path:
        """Write checkpoints/step-N/: the adapter, and what going on from there needs.

        Args:
            step: optimizer steps done.
            save: writes the adapter into the folder that it is given.
            state: tensors, numbers and containers of them, so that
                ``torch.load(…, weights_only=True)`` reads it. Older checkpoints lose theirs: only
                the newest is gone on from, and an optimizer is twice the adapter's size.
        """
        checkpoints = self.folder / "checkpoints"

        def write(folder: Path) -> None:
            save(folder)
            torch.save(dict(state), folder / "state.pt")

        path = self._fill(checkpoints / f"step-{step}", write)
        with disk(checkpoints):
            for old in checkpoints.glob("step-*/state.pt"):
                if old.parent != path:
                    old.unlink()
        return path

    def _fill(self, path: Path, write: Callable[[Path], object]) -> Path:
        """Make the folder `path` under another name, and rename it when all is on disk."""
        temporary = path.with_name(f".{path.name}.tmp")
        with disk(path):
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                write(temporary)
                for file in temporary.rglob("*"):
                    sync(file)
                if path.exists():
                    shutil.rmtree(path)
                temporary.replace(path)
                sync(path.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return path


@dataclass(frozen=True)
class RunRecord:
    """One run found on disk."""

    id: str
    folder: Path
    config: Mapping[str, Any]  # config.json
    summary: Mapping[str, Any] | None  # summary.json; None: still running, or cut off


def list_runs(output_dir: str | os.PathLike[str] = "runs") -> list[RunRecord]:
    """Return the runs under `output_dir` that have a readable config.json, newest first."""
    records = []
    for folder in Path(output_dir).expanduser().resolve().glob("*/"):
        config = _read_json(folder / "config.json")
        if config is not None:
            summary = _read_json(folder / "summary.json")
            records.append(RunRecord(folder.name, folder, config, summary))
    return sorted(records, key=lambda record: record.id, reverse=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
