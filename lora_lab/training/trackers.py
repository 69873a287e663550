"""Experiment trackers, where the user names one: transformers' callbacks, kept silent."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_lab._util.transformers_private import bare_arguments
from lora_lab.errors import ConfigError
from lora_lab.redaction import redacted_values
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.spectra import effective_rank
from lora_lab.training.snapshot import Spectra
from lora_lab.training.step import Step

# The packages of each, any of which will do.
_PACKAGES = {
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
}


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        ConfigError: the line names the command that brings it.
    """
    for name in names or ():
        packages = _PACKAGES[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"report_to={name!r} needs a package that is not there: pip install {packages[0]}, "
                "or leave report_to out"
            )


class Trackers:
    """Tells transformers' callbacks of a run what HF Trainer would tell them.

    Args:
        training: whose `report_to` names them; none of them is imported without.
        folder: of the run; they write below it.
        model: whose config they record.
        device: of the training.
    """

    def __init__(
        self, training: TrainingConfig, folder: Path, model: Any, device: torch.device
    ) -> None:
        self._callbacks = tracker_callbacks(training.report_to)
        self._model = _without_secrets(model) if self._callbacks else model
        if self._callbacks:
            from transformers import TrainerControl, TrainerState

            self._state = TrainerState(max_steps=training.max_steps, logging_steps=1)
            arguments = trainer_arguments(training, folder, device)
            self._context = arguments, self._state, TrainerControl()

    def begin(self, step: int) -> None:
        """Tell them that the training begins after so many steps."""
        self._tell("on_train_begin", step)

    def log(self, step: Step) -> None:
        """Tell them of a step."""
        logs = {"loss": step.loss, "learning_rate": step.learning_rate}
        self._tell("on_log", step.number, logs=logs)

    def log_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Tell them of held-out scores after a step.

        Args:
            step: optimizer steps done.
            scores: {"eval_loss": …, …}, as in HF Trainer.
        """
        self._tell("on_log", step, logs=dict(scores))

    def log_seen(self, step: int, spectra: Spectra | None, peak: int) -> None:
        """Tell them of ΔW and of the memory after a step.

        As "sigma_1" the largest singular value of all sites, as "effective_rank" the sites' mean,
        as "peak_memory" bytes.

        Args:
            step: optimizer steps done.
            spectra: as they were then; None: nobody looked, and they are told nothing.
            peak: bytes.
        """
        values = [s for s in spectra.singular_values.values() if len(s)] if spectra else []
        if not values or not self._callbacks:
            return
        ranks = [float(effective_rank(s)) for s in values]
        seen = {
            "sigma_1": max(float(s[0]) for s in values),
            "effective_rank": sum(ranks) / len(ranks),
        }
        self._tell("on_log", step, logs={**seen, "peak_memory": peak})

    def end(self) -> None:
        """Tell them that it is over, well or not."""
        self._tell("on_train_end")

    def _tell(self, event: str, step: int | None = None, **more: Any) -> None:
        """They print, and they know of no other place for it."""
        if not self._callbacks:
            return
        if step is not None:
            self._state.global_step = step
            self._state.epoch = step / self._state.max_steps
        for callback in self._callbacks:
            with silent_thread():
                getattr(callback, event)(*self._context, model=self._model, **more)


def _without_secrets(model: Any) -> Any:
    """Return a model whose config they may record: where it came from, a class, can be a secret."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or (clean := _clean(config)).to_dict() == config.to_dict():
        return model
    return _Recorded(model, clean)


def _clean(config: Any) -> Any:
    """Return a copy of a config, and of those in it, whose texts are redacted."""
    own = copy.copy(config)
    for name, value in vars(config).items():
        vars(own)[name] = _clean(value) if hasattr(value, "to_dict") else redacted_values(value)
    return own


class _Recorded:
    """A model with a config without secrets; itself it is as it was."""

    def __init__(self, model: Any, config: Any) -> None:
        self._model = model
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def tracker_callbacks(names: str | Sequence[str] | None) -> list[Any]:
    """Return transformers' callbacks for these trackers."""
    if not names:
        return []
    from transformers.integrations import get_reporting_integration_callbacks

    with silent_thread():
        return [kind() for kind in get_reporting_integration_callbacks(list(names))]


def trainer_arguments(training: TrainingConfig, folder: Path, device: torch.device) -> Any:
    """Return the settings as transformers' callbacks read them."""
    from transformers import TrainingArguments

    arguments = bare_arguments(TrainingArguments, device)
    given = {
        **vars(training),
        "output_dir": str(folder),
        "run_name": folder.name,
        "project": "lora-lab",
        "report_to": list(training.report_to or ()),
        "logging_steps": 1,
    }
    for name, value in given.items():
        setattr(arguments, name, value)
    return arguments


@contextlib.contextmanager
def silent_thread() -> Iterator[None]:
    """Drop what this thread prints in the block; what others print goes where it went before."""
    before = sys.stdout, sys.stderr
    mine = _AllBut(before[0]), _AllBut(before[1])
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        # Unless somebody else has put his own there meanwhile.
        if sys.stdout is mine[0]:
            sys.stdout = before[0]
        if sys.stderr is mine[1]:
            sys.stderr = before[1]


class _AllBut:
    """A stream that is deaf to one thread."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._deaf_to = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._deaf_to:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
