"""A run on disk: one folder, readable while it is written and after the process was killed.

Files are whole or absent; the two that grow, metrics.jsonl and spectra.npy, may lack their end.
Tokens are kept out of all that is written as text.

runs/<id>/
    config.json        what was asked for: adapter, training, model, task, data, versions
    metrics.jsonl      one line an optimizer step, flushed
    sites.json         the adapted matrices: place in the grid, shape, rank, ‖W₀‖_F, numbers trained
    spectra.npy        the singular values of ΔW at all of them, a row for every step kept
    samples.json       a few held-out prompts with the base model's and the adapter's answers
    checkpoints/step-N/   the adapter after so many steps; see `lora_lab.runs.checkpoints`
    adapter/           the adapter at the end, in PEFT's format
    summary.json       how it ended; absent while it runs, and where it was cut off
    marks.json         a title, a note, a star that somebody gave it; see `lora_lab.runs.marks`
    lock.json          held by the process that runs it
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_lab._util.files import (
    disk_errors,
    make_dirs,
    open_own,
    put_aside,
    recover_dir,
    sync,
    user_path,
    write_all,
    write_dir_atomic,
    write_text_atomic,
)
from lora_lab._util.unsharing import unshare
from lora_lab._util.warn import warn
from lora_lab.errors import RunError
from lora_lab.redaction import redacted, redacted_values
from lora_lab.runs import checkpoints
from lora_lab.runs.lock import LOCK_FILE, RunLock
from lora_lab.runs.metrics import METRICS_FILE, LossCurve, cut_lines, read_losses
from lora_lab.runs.records import (
    CONFIG_FILE,
    SAMPLES_FILE,
    SUMMARY_FILE,
    RunRecord,
    has_config,
    list_runs,
)
from lora_lab.runs.spectra_log import SITES_FILE, SPECTRA_FILE

__all__ = ["NullStore", "RunRecord", "RunStore", "list_runs"]

_FILES = (
    *(CONFIG_FILE, LOCK_FILE, METRICS_FILE, SITES_FILE, SPECTRA_FILE),
    *(SUMMARY_FILE, SAMPLES_FILE),
)
_FOLDERS = "adapter", "checkpoints"


class RunStore:
    """The folder of one run.

    Only the run's own thread writes here after `create`.

    Attributes:
        id: the folder's name, unique within `output_dir`.
        folder: absolute path.
        config: of config.json, which every checkpoint has a copy of; None before it is known.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.config = config
        self._config_text = ""
        self.id = folder.name
        self._metrics: Any = None
        self._lock = RunLock(folder)

    def begin(self) -> None:
        """Take the folder for this process until `close`.

        Raises:
            RunError: another process is at work on it, or the disk does not take it.
        """
        with disk_errors(self.folder):
            make_dirs(self.folder)
            self._lock.acquire()

    def reopen(self, log_bytes: int) -> LossCurve:
        """Make ready to go on with a run that ended: drop what came after its last checkpoint.

        Args:
            log_bytes: how much of metrics.jsonl stands.

        Returns:
            The losses in what is left of it.

        Raises:
            RunError: see `begin`.
        """
        self._make_way()
        self.begin()
        path = self.folder / METRICS_FILE
        if self.config and not has_config(self.folder, self.config):
            self.write_config(self.config)
        with disk_errors(self.folder):
            (self.folder / SUMMARY_FILE).unlink(missing_ok=True)
            unshare(path)
            if path.exists():
                with os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
                    cut_lines(file, log_bytes)
        for folder in (self.folder, self.folder / "checkpoints"):
            recover_dir(folder)
        return read_losses(self.folder)

    def _make_way(self) -> None:
        """Put aside what stands where this run's files belong and is none, and folders likewise.

        Raises:
            RunError: the disk does not let them go.
        """
        places = [(name, False) for name in _FILES] + [(name, True) for name in _FOLDERS]
        for path, is_folder in ((self.folder / name, kind) for name, kind in places):
            right = path.is_dir() if is_folder else path.is_file()
            if right or path.is_symlink() or not path.exists():
                continue
            with disk_errors(path):
                free = put_aside(path)
            warn(f"{path} is no {'folder' if is_folder else 'file'}; it is {free.name} now")

    @classmethod
    def create(cls, output_dir: str | os.PathLike[str], name: str | None = None) -> RunStore:
        """Make a new folder `<time>[-name]-<random>` under `output_dir`.

        Of the last four digits the first two are the 256th of the second, so that runs stand in
        their order by name.

        Raises:
            RunError: the folder cannot be made (read-only, full, a file in the way).
        """
        parent = user_path(output_dir, RunError).resolve()
        slug = re.sub(r"[^\w.-]+", "-", redacted(name or "")).strip("-.")
        with disk_errors(parent):
            make_dirs(parent)
            while True:
                now = datetime.now()
                moment = now.strftime("%Y%m%d-%H%M%S")
                digits = f"{now.microsecond * 256 // 1_000_000:02x}{secrets.token_hex(1)}"
                folder = parent / "-".join(filter(None, (moment, slug, digits)))
                try:
                    folder.mkdir()
                    sync(parent)
                except FileExistsError:
                    continue  # two runs in one second that drew the same four digits
                return cls(folder)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file, whole or not at all.

        Raises:
            RunError: the disk does not take it.
        """
        path = self.folder / name
        with disk_errors(path):
            write_text_atomic(path, _text(value))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json: from here on the run is listed, and can be gone on with.

        Raises:
            RunError: the disk does not take it.
        """
        self.config, self._config_text = config, ""
        self.write_json(CONFIG_FILE, config)

    def log(self, row: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            RunError: the disk does not take it.
        """
        path = self.folder / METRICS_FILE
        with disk_errors(path):
            if self._metrics is None:
                own = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._metrics = os.fdopen(own, "ab", buffering=0)
            write_all(self._metrics, f"{json.dumps(dict(row))}\n".encode())

    def flush_log(self) -> int:
        """Have what grows (metrics, spectra) on the disk; return metrics.jsonl's size in bytes.

        Raises:
            RunError: the disk does not take it.
        """
        growing = [self.folder / name for name in (METRICS_FILE, SPECTRA_FILE)]
        with disk_errors(growing[0]):
            for path in (*filter(Path.exists, growing), self.folder):
                sync(path)
            return growing[0].stat().st_size if growing[0].exists() else 0

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write how the run ended, behind all that it has recorded.

        Raises:
            RunError: the disk does not take it.
        """
        self.flush_log()
        self.write_json(SUMMARY_FILE, summary)

    def close(self) -> None:
        """Close metrics.jsonl, which a later `log` opens again, and let go of the folder."""
        if self._metrics is not None:
            file, self._metrics = self._metrics, None
            with contextlib.suppress(OSError):  # every line was flushed when it was written
                file.close()
        self._lock.release()

    def discard(self) -> None:
        """Let go of the folder of a run that never began, and remove it."""
        self.close()
        with contextlib.suppress(OSError):
            for name in (CONFIG_FILE, LOCK_FILE):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def save_adapter(self, save: Callable[[Path], object]) -> Path:
        """Fill `adapter/` with `save(folder)`, replacing what is there; return its path."""
        path = self.folder / "adapter"
        with disk_errors(path):
            write_dir_atomic(path, save)
        return path

    def save_checkpoint(
        self,
        step: int,
        save: Callable[[Path], object],
        state: Mapping[str, Any],
        *,
        passing: bool = False,
    ) -> Path:
        """Write checkpoints/step-N/; see `checkpoints.save`."""
        self._config_text = self._config_text or _text(self.config or {})
        text = self._config_text
        return checkpoints.save(self.folder, step, save, state, text, passing=passing)


def _text(value: Any) -> str:
    return json.dumps(redacted_values(value), indent=2, ensure_ascii=False) + "\n"


class NullStore(RunStore):
    """The same folder, of a process that is not to write: every write is a no-op."""

    def flush_log(self) -> int:
        """Flush nothing."""
        return 0

    def write_json(self, name: str, value: Any) -> None:
        """Write nothing."""

    def log(self, row: Mapping[str, float]) -> None:
        """Write nothing."""

    def save_adapter(self, save: Callable[[Path], object]) -> Path:  # noqa: ARG002
        """Write nothing; return where the adapter is."""
        return self.folder / "adapter"

    def save_checkpoint(
        self,
        step: int,
        save: Callable[[Path], object],  # noqa: ARG002
        state: Mapping[str, Any],  # noqa: ARG002
        *,
        passing: bool = False,  # noqa: ARG002
    ) -> Path:
        """Write nothing; return where the checkpoint is."""
        return self.folder / "checkpoints" / f"step-{step}"
