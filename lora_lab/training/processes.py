"""The processes of one training: one in a notebook, several under torchrun or `accelerate launch`.

Each has the whole adapter and takes the same steps, on its own share of every step's examples. The
first one, rank 0, writes. What the launcher says is read from its environment variables, and in
the processes that it has launched alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed

from lora_lab._util.hardware import hardware
from lora_lab._util.launcher import launched_processes, local_rank
from lora_lab.errors import RunError, as_cause
from lora_lab.runs.training_config import TrainingConfig

_PATIENCE = timedelta(minutes=30)  # for one that does not come; a launcher ends them all sooner

_REASONS = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out"

T = TypeVar("T")
_sharding = False
_own_group = False  # whether it is ours to leave
_left: tuple[int, int] | None = None  # (count, rank) in a group that was left


def count() -> int:
    """Return how many processes train together."""
    if _left is not None:
        return _left[0]
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    if _left is not None:
        return _left[1]
    return distributed.get_rank() if _joined() else 0


def training_device(device: torch.device) -> torch.device:
    """Return where this process trains a model that is on `device`.

    Processes that were launched together have a GPU each. A base that is to be cut into shards
    waits on the CPU for it.
    """
    if sharded() and torch.cuda.is_available():
        device = torch.device("cuda")
    if _joined() and hardware(device).cuda:
        return torch.device(device.type, local_rank())
    return device


def main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def sharded() -> bool:
    """Whether the launcher's config says FSDP: each process keeps a part of the base model."""
    return _joined() and _sharding


def unheard() -> list[str]:
    """Return a line of what accelerate's environment asks for and a run does not do."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked.lower() in ("", "no"):
        return []
    return [
        f"ACCELERATE_MIXED_PRECISION={asked} changes nothing: a run computes in its model's dtype; "
        'load the model with dtype="bfloat16" for that'
    ]


def longest_silence() -> float | None:
    """Return after how many seconds one that rests has to be heard; None: nobody waits for it."""
    return _PATIENCE.total_seconds() / 4 if _joined() else None


class LostProcessError(RunError):
    """Another process of the training does not take part any more."""


@contextlib.contextmanager
def lost_in_words(folder: Path | None = None) -> Iterator[None]:
    """Within the block, say in one line of one's own that another process is gone.

    This one leaves the others then, who may wait for it alone, so that they hear of it too.

    Args:
        folder: of the run that all train; None where it has none yet.

    Raises:
        LostProcessError: in place of what gloo, NCCL or torch's store say.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not _is_of_lost(error):
            raise
        reasons = (words for words in _REASONS if words.lower() in str(error).lower())
        reason = next(reasons, type(error).__name__)
        _leave()
        raise LostProcessError(
            f"another of the {count()} processes is gone, or has not answered ({reason}); start "
            f"all of them again{_with_resume(folder)}"
        ) from as_cause(error)
    except LostProcessError as error:
        if folder is None:
            raise
        raise LostProcessError(f"{error}{_with_resume(folder)}") from as_cause(error)


def _is_of_lost(error: RuntimeError | ValueError) -> bool:
    """Whether an error says that another process is gone."""
    if _left is not None:
        return True  # torch says that there is no group
    # gloo's are plain RuntimeErrors, with the place in its source.
    of_group = isinstance(error, distributed.DistError) or "gloo/" in str(error)
    return _joined() and of_group


def _leave() -> None:
    global _left
    if _left is None and _own_group:
        _left = count(), rank()
        with contextlib.suppress(RuntimeError, ValueError):
            distributed.destroy_process_group()


def _with_resume(folder: Path | None) -> str:
    if folder is None:
        return ""
    return (
        f" with ll.resume({str(folder)!r}) or `lora-lab train {folder} --resume`: the run goes on "
        "from its last checkpoint"
    )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if a launcher has started some, and leave them at the end.

    Raises:
        RunError: the launcher's config asks for what a run cannot do, or one does not come.
    """
    global _sharding, _own_group, _left
    if launched_processes() < 2 or _joined():
        yield
        return
    for name in ("DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise RunError(f"accelerate's config says {name}; a run knows DDP and FSDP: take one")
    # Taken away, or transformers would load the weights in rank 0 alone: see `sharding`.
    _sharding = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank() >= (there := torch.cuda.device_count()):
            raise RunError(
                f"process {local_rank()} of this machine has no GPU of its own, there are {there}; "
                f"launch {there} processes here, or hide the GPUs (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"the processes have not met: {first}; start all of them, by torchrun or accelerate "
            "launch"
        ) from as_cause(error)
    _own_group = True
    try:
        yield
    finally:
        _own_group = False
        if _left is None:
            distributed.destroy_process_group()
        _left = None


# What all processes must call, in the same order --------------------------------------------------


def from_main(make: Callable[[], T]) -> T:
    """Have rank 0 make something, plain enough to be sent, and return it in every process.

    Raises:
        RunError: rank 0's, in every process; or one of them is gone.
    """
    if not _joined():
        return make()
    box: list[T | RunError | None] = [None]
    if main():
        try:
            box[0] = make()
        except RunError as error:
            box[0] = error
    with lost_in_words():
        distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], RunError):
        raise box[0]
    return box[0]  # type: ignore[return-value]


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Return of each flag whether any process has it set.

    Raises:
        RunError: one of them is gone.
    """
    if not _joined():
        return flags
    told = torch.tensor(flags, dtype=torch.int64)
    with lost_in_words():
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return tuple(map(bool, told.tolist()))


def alike(value: int) -> bool:
    """Return whether every process has the same one."""
    return not any_of(from_main(lambda: value) != value)[0]


def total(numbers: Tensor) -> Tensor:
    """Return the sum over all processes of a tensor on the training's device."""
    if _joined():
        distributed.all_reduce(numbers)
    return numbers


def equalise(tensors: Iterable[Tensor]) -> None:
    """Give every process rank 0's values."""
    if _joined():
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), src=0)


# --------------------------------------------------------------------------------------------------


def shared_out(training: TrainingConfig, begun_by: int) -> TrainingConfig:
    """Return a training for as many processes as there are now, with as many examples a step.

    Args:
        training: as it was begun.
        begun_by: how many processes there were.

    Raises:
        RunError: the examples of a step cannot be shared out evenly.
    """
    now = count()
    if now == begun_by:
        return training
    batch, passes = training.per_device_train_batch_size, training.gradient_accumulation_steps
    examples = batch * passes * begun_by
    if examples % now:
        fitting = ", ".join(str(n) for n in range(1, examples + 1) if examples % n == 0)
        raise RunError(
            f"the run takes {examples} examples a step, and {now} processes cannot share them "
            f"evenly; launch one of {fitting}"
        )
    each = examples // now
    batch = max(size for size in range(1, min(batch, each) + 1) if each % size == 0)
    return dataclasses.replace(
        training, per_device_train_batch_size=batch, gradient_accumulation_steps=each // batch
    )


def _joined() -> bool:
    if _left is not None:
        return True
    # A group of one is somebody else's, such as an Accelerator's in the notebook.
    there = distributed.is_available() and distributed.is_initialized()
    return there and distributed.get_world_size() > 1
