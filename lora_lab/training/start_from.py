"""A new run that starts from the adapter of an older one: with more steps, or other data.

A resumed run keeps its settings to the letter. Whoever wants others starts a new run, whose ΔW is
the old one's before its first step; the optimizer and all else begin anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_lab._util.files import user_path
from lora_lab.anatomy.heads import head_modules
from lora_lab.checkpoint.head_classes import check_classes, head_prefixes, other_head
from lora_lab.checkpoint.loading import read_content
from lora_lab.checkpoint.locate import holds_adapter, locate_adapter, whole_folder
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.api import build, put_on
from lora_lab.methods.attached import require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.head.adapter import head_note, with_head
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.redaction import shown_redacted
from lora_lab.runs.records import RecordState, RunRecord, find_run, read_record
from lora_lab.runs.run_file import read_configs

if TYPE_CHECKING:
    from lora_lab.training.run import Run

_AT_WORK = RecordState.RUNNING, RecordState.ELSEWHERE
_FREE = "target_modules", "exclude_modules", "modules_to_save"  # the tensors' names tell


@shown_redacted
@dataclass(frozen=True)
class Start:
    """The adapter that a run starts from.

    Attributes:
        folder: the adapter's own.
        run: the id of the run that left it; None: no run is known.
        step: how many steps that had taken.
        config: what that trained; None: not known.
    """

    folder: Path
    run: str | None = None
    step: int | None = None
    config: MethodConfig | None = None

    def __str__(self) -> str:
        after = "" if self.step is None else f" after step {self.step}"
        return f"the adapter of run {self.run}{after}" if self.run else f"{self.folder}"

    def to_dict(self) -> dict[str, Any]:
        """Return what a run's config.json says of it: no path."""
        return {"run": self.run, "step": self.step} if self.run else {"adapter": self.folder.name}

    def head_note(self, model: nn.Module) -> str:
        """Say that the head of a model begins at random, where the one here is another task's."""
        if (other := other_head(model, whole_folder(self.folder))) is None:
            return ""
        names = ", ".join(head_modules(model))
        return f"; its head is for {other}, so that the head here ({names}) begins at random"

    def _new_heads(self, model: nn.Module) -> tuple[str, ...]:
        """Return how the names of a head begin that is not taken from here; () where it is."""
        other = other_head(model, whole_folder(self.folder))
        return () if other is None else head_prefixes(model)

    def config_for(self, model: nn.Module, given: MethodConfig | None) -> MethodConfig:
        """Return the config of a run on a model that starts from here.

        Args:
            model: the base model.
            given: what was asked for; None: what the old run trained, or else what its file says.
                Initializations are taken out of it.

        Raises:
            AdapterError: the adapter cannot be read, or is for another base.
            ConfigError: what was asked for is another adapter.
        """
        heads = self._new_heads(model)
        stored = as_config(read_content(model, self.folder, heads).config)
        if heads:
            stored = as_config(with_head(model, stored.parts))
        else:
            check_classes(model, whole_folder(self.folder))
        if (wanted := given or self.config) is None:
            return stored
        wanted = as_config([_plain(part) for part in wanted.parts])
        if heads:
            wanted = as_config(with_head(model, wanted.parts))
        problem = _difference(model, wanted, stored)
        if problem and given is not None:
            raise ConfigError(
                f"the config does not fit {self}, which the run starts from: {problem}; leave the "
                "config out to take that adapter's own"
            )
        return stored if problem else wanted  # PiSSA's file has twice the rank

    def attach(self, model: nn.Module, config: MethodConfig, name: str) -> Adapter:
        """Put an adapter of a config on a model, with the values that are stored here.

        Raises:
            AdapterError, ConfigError: see `config_for`.
        """
        heads = self._new_heads(model)
        content = read_content(model, self.folder, heads)
        made, stored = build(model, config, name), build(model, content.config, name)
        content.fill(stored)
        values = stored.state()
        with torch.no_grad():
            for key, tensor in made.state().items():
                if not _is_of(heads, key):
                    tensor.copy_(values[key])
        put_on(model, made, activate=True)
        require_adapters(model).statistics.replace(name, content.statistics)
        return made


def find_start(
    given: Run | RunRecord | str | os.PathLike[str], output_dir: str | os.PathLike[str] = "runs"
) -> Start:
    """Return the adapter that a run, its id or folder, or an adapter's folder means.

    Of a run that was cut off it is the newest checkpoint's.

    Raises:
        RunError: there is no such run or folder, it has left no adapter, or is not over.
    """
    if isinstance(given, (str, os.PathLike)):
        folder = user_path(given, RunError).resolve()
        if holds_adapter(folder):
            owner = _owner(folder)
            return Start(folder) if owner is None else _of_run(owner, folder)
        record = find_run(given, output_dir)
    else:
        record = find_run(given.folder)
    state = record.state
    if state in _AT_WORK:
        raise RunError(f"run {record.id} is {state}; a new run can start from it when it is over")
    return _of_run(record, locate_adapter(record.folder).path)


def _owner(folder: Path) -> RunRecord | None:
    """Return the run whose adapter, or whose checkpoint, a folder is."""
    above = folder.parents[1] if folder.parent.name == "checkpoints" else folder.parent
    own = folder.name == "adapter" or above != folder.parent
    record = read_record(above) if own else None
    return record if record is not None and "training" in record.config else None


def _of_run(record: RunRecord, folder: Path) -> Start:
    if not holds_adapter(folder):
        raise RunError(f"run {record.id} has left no adapter to start from; train it first")
    number = folder.name.removeprefix("step-")
    summary: Mapping[str, Any] = record.summary or {}
    step = int(number) if number.isdecimal() else summary.get("steps")
    try:
        config: MethodConfig | None = as_config(read_configs(record)[0])
    except RunError:
        config = None
    return Start(folder, record.id, step if isinstance(step, int) else None, config)


def _plain(config: MethodConfig) -> MethodConfig:
    """Return a config without an initialization of its own: what is stored takes its place."""
    if not isinstance(config, LoraConfig):
        return config
    return config.replace(init_lora_weights=True, eva_config=None, corda_config=None)


def _difference(model: nn.Module, wanted: MethodConfig, stored: MethodConfig) -> str:
    """Say in what two configs are different adapters on a model; "" if they are not."""
    for one, other in zip(wanted.parts, stored.parts, strict=False):
        if type(one) is not type(other):
            return f"that is {stored.method}, and this {wanted.method}"
        here, there = one.to_dict(), other.to_dict()
        for name in () if isinstance(one, LoraConfig) else {**here, **there}:
            old, new = there.get(name), here.get(name)
            if name not in _FREE and "dropout" not in name and old != new:
                return f"{name} is {old!r} there, and {new!r} here"
    ours, theirs = build(model, wanted, "ours"), build(model, stored, "theirs")
    shapes, their_shapes = _shapes(ours), _shapes(theirs)
    for key in [*shapes, *their_shapes]:
        shape, now = their_shapes.get(key, "nothing"), shapes.get(key, "nothing")
        if shape != now:
            return f"{key} is {shape} there, and {now} here"
    for name, site in ours.sites.items():
        if not math.isclose(site.scale, theirs.sites[name].scale, rel_tol=1e-12):
            return f"{name} is scaled by {theirs.sites[name].scale:g} there, {site.scale:g} here"
    return ""


def _is_of(heads: tuple[str, ...], key: str) -> bool:
    """Whether a tensor of an adapter's state is one of a head's; a combination's are numbered."""
    number, _, rest = key.partition(".")
    return bool(heads) and (rest if number.isdecimal() else key).startswith(heads)


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in adapter.state().items()}


def start_notes(run: Run) -> list[str]:
    """Return what a run is to note of where it starts: from an adapter, with a head at random."""
    start = run.start_from
    if start is not None:
        return [
            f"starts from {start}; the optimizer, the schedule of the learning rate and the order "
            f"of the data begin anew{start.head_note(run.model)}"
        ]
    return [head_note(run.model)] if run.task.head else []
