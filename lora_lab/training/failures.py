"""An exception of a run, as people should read it: what happened, and what to try."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace

from lora_lab._util.hardware import is_out_of_memory
from lora_lab.errors import LoraLabError, RunError
from lora_lab.redaction import redacted
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.divergence import DivergingError
from lora_lab.training.gpu_memory import OutOfMemoryForecastError, batch_fields, settings_in_words
from lora_lab.training.snapshot import Failure
from lora_lab.training.step import DeadAdapterError, NotFiniteError


def explain(error: BaseException, training: TrainingConfig) -> Failure:
    """Return the failure as people see it.

    Args:
        error: as caught, its traceback still with it.
        training: what the run was asked to do; remedies name its values.
    """
    details = redacted("".join(traceback.format_exception(error)))
    lines = redacted(str(error)).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    if is_out_of_memory(error):
        return with_proposal(Failure(f"out of memory: {first}", "", details), training, {})
    if isinstance(error, OutOfMemoryForecastError):
        return Failure(first, "", details, error.proposal)
    if isinstance(error, (NotFiniteError, DivergingError)):
        remedy = (
            f"try a lower learning_rate than {training.learning_rate:g}, or more warmup_steps; "
            "also look for examples with an empty completion"
        )
        return Failure(first, remedy, details)
    if isinstance(error, (DeadAdapterError, LoraLabError)):
        return Failure(first, "", details)  # the line itself names the fix
    return Failure(f"{type(error).__name__}: {first}", "the details show where it arose", details)


def forget_frames(error: BaseException) -> None:
    """Clear the locals that an exception, its causes and contexts hold on to: they pin tensors."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        chain += [link.__cause__, link.__context__]


def showable(error: Exception) -> Exception:
    """Return what may be kept of an error and shown in a notebook: no tensors and no tokens.

    That is `error` itself, its frames forgotten. Where its text, or that of a cause, holds a token,
    it is a `RunError` with the text redacted and without the causes.
    """
    forget_frames(error)
    whole = "".join(traceback.format_exception(error))
    if redacted(whole) == whole:
        return error
    return RunError(redacted("".join(traceback.format_exception_only(error))).strip())


def with_proposal(failure: Failure, training: TrainingConfig, fields: Mapping[str, int]) -> Failure:
    """Return an "out of memory" with what to try.

    Args:
        failure: as `explain` gives it.
        training: what the run was asked to do.
        fields: the batch that the dry run says fits; empty where it does not know: then half of
            the batch is proposed.
    """
    batch = training.per_device_train_batch_size
    others = f"a max_length below {training.max_length}"
    if not training.gradient_checkpointing:
        others += " or gradient_checkpointing=True"
    if batch == 1:
        remedy = f"the batch is one example already: try {others}"
        return replace(failure, remedy=remedy, proposal={})
    known = bool(fields)
    fields = dict(fields) or batch_fields(training, batch // 2)
    why = "the dry run says it fits" if known else "half the batch, a guess: nothing was measured"
    remedy = f"try {settings_in_words(fields)} ({why}), else {others}"
    return replace(failure, remedy=remedy, proposal=fields)
