"""A run's checkpoints: written whole or not at all, read without running anything.

checkpoints/step-N/   the adapter as `save_adapter` writes it; the newest two also hold state.pt
    state.pt          tensors, numbers and containers of them; `torch.load(…, weights_only=True)`
    run_config.json   a copy of the run's config.json
    passing           an empty file: the folder goes when two newer ones are there
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lora_lab._util.files import disk_errors, remove_dir, write_dir_atomic
from lora_lab._util.json_files import fitted
from lora_lab._util.quiet import first_line
from lora_lab._util.torch_files import damaged_part, load_plain
from lora_lab.errors import RunError, as_cause
from lora_lab.runs.schema import State

STATE_FILE = "state.pt"
CONFIG_COPY = "run_config.json"
_FORMAT = 1
_PASSING = "passing"
_KEPT = 2  # with state: the newest, and one before it should the disk have damaged that
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,11})")


@dataclass(frozen=True)
class Checkpoint:
    """A place to go on from.

    Attributes:
        step: optimizer steps done.
        folder: `load_adapter` reads it.
        state: what `Worker` wrote; see there.
    """

    step: int
    folder: Path
    state: Mapping[str, Any]


def save(
    run_folder: Path,
    step: int,
    write_adapter: Callable[[Path], object],
    state: Mapping[str, Any],
    config: str,
    *,
    passing: bool = False,
) -> Path:
    """Write checkpoints/step-N/ and take from older ones what is not needed any more.

    Args:
        run_folder: the run's.
        step: optimizer steps done.
        write_adapter: writes the adapter into the folder that it is given.
        state: what going on needs; the newest two checkpoints keep theirs: an optimizer is twice
            the adapter's size.
        config: the text of the run's config.json, should the disk damage that.
        passing: drop this one whole, and not only its state, when two newer ones are there.

    Raises:
        RunError: the disk does not take it; what was there before is there still.
    """
    parent = run_folder / "checkpoints"

    def write(folder: Path) -> None:
        write_adapter(folder)
        import torch

        checked = torch.serialization.get_crc32_options()  # the user's own to switch off
        head = {"format": _FORMAT, "step": step, "crc32": checked}
        torch.save({**head, **state}, folder / STATE_FILE)
        (folder / CONFIG_COPY).write_text(config, encoding="utf-8")
        if passing:
            (folder / _PASSING).touch()

    path = parent / f"step-{step}"
    with disk_errors(path):
        write_dir_atomic(path, write)
    with disk_errors(parent):
        for _, old in folders(run_folder)[_KEPT:]:
            if (old / _PASSING).exists():
                remove_dir(old)
            else:
                (old / STATE_FILE).unlink(missing_ok=True)
    return path


def folders(run_folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of a run's whole checkpoints, the newest first."""
    found = [
        (int(match[1]), path)
        for path in (run_folder / "checkpoints").glob("step-*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, reverse=True)


def newest(run_folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that can be gone on from; None where there never was one.

    A damaged one is passed over for the one before it.

    Raises:
        RunError: there are some, and none can be read.
    """
    problem: RunError | None = None
    for step, folder in folders(run_folder):
        if not (folder / STATE_FILE).is_file():
            continue
        try:
            return Checkpoint(step, folder, _read(folder / STATE_FILE, step))
        except RunError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def passed_over(run_folder: Path, taken: Checkpoint | None) -> list[str]:
    """Return a line where a run does not go on from its newest checkpoint.

    Args:
        run_folder: the run's.
        taken: what `newest` returned.
    """
    newer = [step for step, _ in folders(run_folder) if taken is None or step > taken.step]
    if not newer:
        return []
    goes = "begins again" if taken is None else f"goes on after step {taken.step}"
    return [f"the state of checkpoints/step-{newer[0]} is gone or damaged: the run {goes}"]


def _read(path: Path, step: int) -> Mapping[str, Any]:
    state: Any
    try:
        state = load_plain(path)
        checked = not isinstance(state, dict) or state.get("crc32", True)
        if checked and (part := damaged_part(path)) is not None:
            raise ValueError(f"{part} in it is not as it was written")
    except Exception as error:  # zipfile's, pickle's and torch's own
        raise RunError(
            f"{path} cannot be read: {first_line(error)}; train again, or load the adapter beside "
            "it"
        ) from as_cause(error)
    try:
        fitted(state, State)
        if (state["format"], state["step"]) != (_FORMAT, step):
            raise ValueError(f"it is of format {state['format']} and step {state['step']}")
    except ValueError as error:
        raise RunError(
            f"{path} is not a state that this version goes on from ({error}); train again, or "
            "load the adapter beside it"
        ) from as_cause(error)
    return cast(Mapping[str, Any], state)
