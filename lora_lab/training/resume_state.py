"""A checkpoint's state held to what goes on from it, before anything is moved by it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lora_lab._util.hardware import is_out_of_memory
from lora_lab._util.quiet import first_line
from lora_lab.errors import LoraLabError, RunError, as_cause


@contextlib.contextmanager
def fitting(step: int) -> Iterator[None]:
    """Say which checkpoint it is where a state turns out to be none.

    Args:
        step: that it was made after.

    Raises:
        RunError: in place of whatever putting a state back has run into.
    """
    try:
        yield
    except LoraLabError:
        raise
    except Exception as error:  # torch's own checks raise whatever they run into
        if is_out_of_memory(error):
            raise
        why = first_line(error) if isinstance(error, ValueError) else f"{error!r}"
        why = (why if why.isprintable() else ascii(why))[:300]
        raise RunError(
            f"the checkpoint of step {step} is no state that this version goes on from ({why}); "
            f"remove the folder step-{step} to go on from the one before it, or train again"
        ) from as_cause(error)


def check_alike(saved: Any, own: Any, where: str) -> None:
    """Compare plain values with those that a new object has in their place.

    Keys that one of two mappings lacks are another version's; they are numbers or None.

    Raises:
        ValueError: one is of another type, or a list of another length.
    """
    if isinstance(own, Mapping):
        for key, value in _typed(saved, Mapping, where).items():
            check_alike(value, own.get(key, value), f"{where}.{key}")
    elif isinstance(own, (list, tuple)):
        if len(_typed(saved, (list, tuple), where)) != len(own):
            raise ValueError(f"{where} has {len(saved)} entries, and {len(own)} are needed")
        for number, (value, mine) in enumerate(zip(saved, own, strict=True)):
            check_alike(value, mine, f"{where}[{number}]")
    elif own is None or isinstance(own, bool):
        _typed(saved, type(own), where)
    else:
        _typed(saved, (int, float), where)
        if isinstance(saved, bool) or not abs(saved) <= 1e300:
            raise ValueError(f"{where} is {str(saved)[:40]}")


def check_tensor(saved: Any, shape: torch.Size, where: str) -> None:
    """Raise `ValueError` unless this is a tensor of numbers of a shape."""
    _typed(saved, torch.Tensor, where)
    if saved.shape != shape or not (saved.is_floating_point() or saved.dtype == torch.int64):
        raise ValueError(
            f"{where} is {saved.dtype} {tuple(saved.shape)}, and {tuple(shape)} is needed"
        )


def _typed(saved: Any, kind: Any, where: str) -> Any:
    if not isinstance(saved, kind):
        raise ValueError(f"{where} is of type {type(saved).__name__}")
    return saved
