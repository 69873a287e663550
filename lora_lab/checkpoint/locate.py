"""Where an adapter's files are: in a folder of their own, in a run's, or a single file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_lab._util.files import aside, user_path
from lora_lab.checkpoint.files import CONFIG_FILE, NATIVE_CONFIG_FILE
from lora_lab.errors import AdapterError

BEFORE = ".adapter-before"  # within a folder whose adapter is replaced file by file: the older one


@dataclass(frozen=True)
class AdapterLocation:
    """Where an adapter lies.

    Attributes:
        path: the folder or file that holds it.
        name: what to call it: the run's id, or the name of the folder or file.
        run: the run's folder, where it is a run's.
        note: one line, where it is not the run's last state.
    """

    path: Path
    name: str
    run: Path | None = None
    note: str = ""


def locate_adapter(path: str | Path) -> AdapterLocation:
    """Return where the adapter is that a path means; nothing is read.

    A run's folder means the adapter at its end, or at its last checkpoint if it was cut off. Any
    other path means itself, whether anything is there or not.
    """
    path = user_path(path, AdapterError)
    name = path.resolve().name
    if holds_adapter(path) or not _is_run(path):
        return AdapterLocation(path, name)
    over = (path / "summary.json").is_file() or not (path / "checkpoints").is_dir()
    if over and holds_adapter(path / "adapter"):
        return AdapterLocation(path / "adapter", name, path)
    steps = {
        int(folder.name.removeprefix("step-")): folder
        for folder in path.glob("checkpoints/step-*")
        if holds_adapter(folder) and folder.name.removeprefix("step-").isdecimal()
    }
    if not steps:
        own = path / "adapter"  # of its end before it was gone on with
        return (
            AdapterLocation(own, name, path) if holds_adapter(own) else AdapterLocation(path, name)
        )
    step = max(steps)
    note = f"the run has no end yet: this is step {step:,}"
    return AdapterLocation(steps[step], name, path, note)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, also one whose config.json is gone."""
    files = any((folder / name).is_file() for name in ("config.json", "metrics.jsonl"))
    return files or any(folder.glob("checkpoints/step-*"))


def holds_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter's config, PEFT's or our own."""
    return _has_config(whole_folder(folder))


def whole_folder(folder: Path) -> Path:
    """Return the folder to read an adapter from: the given one, as a rule.

    Where whoever replaced its adapter was killed midway, that is where the older adapter lies.
    """
    if not _has_config(folder):
        for other in (folder / BEFORE, aside(folder)):
            if _has_config(other):
                return other
    return folder


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_FILE, NATIVE_CONFIG_FILE))
