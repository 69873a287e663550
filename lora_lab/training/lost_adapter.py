"""A run whose adapter was taken from it: noticed at each step, said as it is, and saved still.

The verbs refuse to take an adapter off, or to activate another, while a run is at work. It can come
to it nonetheless: in a pause, by a verb that began in one, and by whatever else writes to a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.saving import write_adapter
from lora_lab.errors import RunError
from lora_lab.methods.api import detach, put_on
from lora_lab.methods.attached import active, attached, attached_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.standing import missing
from lora_lab.training.base_weights import BaseWeights
from lora_lab.training.divergence import DivergingError
from lora_lab.training.held import Held
from lora_lab.training.step import NotFiniteError

_PUT_BACK = "of-a-run-that-lost-it"  # the name of an adapter that is on the model to be saved


class LostAdapterError(RunError):
    """What a run trains is not what the model answers with any more.

    Attributes:
        adapter_suspect: what it learns has other values too, and an older copy is the last good
            one.
    """

    def __init__(self, message: str, adapter_suspect: bool = False) -> None:
        super().__init__(message)
        self.adapter_suspect = adapter_suspect


class CastModelError(LostAdapterError):
    """The model's parameters have another dtype than the run had them in."""


def check_owned(
    model: nn.Module,
    adapter: Adapter,
    held: Held | None = None,
    when: str = "trained",
) -> None:
    """Raise if the adapter is not the one in force on the model.

    Args:
        model, adapter: a run's.
        held: its parameters, as the run had them.
        when: what the run did meanwhile, in words.

    Raises:
        LostAdapterError: the line says what has become of it.
    """
    known, name = attached_adapters(model), adapter.name
    what, is_suspect = "", False
    if known is None or known.adapters.get(name) is not adapter:
        what = f"the adapter {name!r} was detached or replaced"
    elif known.merged:
        what = f"the adapter {known.merged!r} was merged into the weights"
    elif active(model) != name:
        other = active(model)
        what = "all adapters were switched off" if other is None else f"{other!r} was activated"
    elif held and held.are_replaced():
        what = f"parameters of the adapter {name!r} were replaced (load_state_dict(assign=True))"
        is_suspect = True
    elif held and held.are_frozen():
        what = f"parameters of the adapter {name!r} were frozen (requires_grad_(False))"
    elif held and held.frozen_learn():
        what = "parameters of the base were set to learn (requires_grad_(True))"
    if what:
        line = f"{what} while the run {when}, so it cannot go on; start a new run"
        raise LostAdapterError(line, is_suspect)
    check_standing(model, adapter)
    check_dtypes(held, when)


def check_dtypes(held: Held | None, when: str = "trained") -> None:
    """Raise `CastModelError` if somebody has cast some of a run's parameters."""
    if held and (cast := held.cast()):
        raise CastModelError(
            f"parameters of the model were cast ({cast}) while the run {when}, so it cannot go on; "
            "start a new run",
            held.learned_are_cast(),
        )


def check_base(base: BaseWeights | None, when: str = "trained", *, learns: bool = True) -> None:
    """Raise `LostAdapterError` if somebody has replaced or overwritten weights of a run's base.

    Args:
        base: as it was; None: nothing is known of it.
        when: what the run did meanwhile, in words.
        learns: whether it took steps meanwhile, whose outcome nobody wants.
    """
    if base and (name := base.changed()):
        raise LostAdapterError(
            f"{name} of the base was replaced or overwritten while the run {when}, so it cannot go "
            "on; load the model again and start a new run, or ll.resume this one",
            learns,
        )


def check_standing(model: nn.Module, adapter: Adapter, *, parameters: bool = True) -> None:
    """Raise `LostAdapterError` if modules are replaced that the adapter acts at; see `missing`."""
    bare = unwrapped(model)
    if line := missing(bare, adapter, parameters=parameters, fix="start a new run"):
        raise LostAdapterError(line)


def reason(
    model: nn.Module,
    adapter: Adapter,
    error: Exception,
    held: Held | None = None,
    base: BaseWeights | None = None,
) -> Exception:
    """Return why a run failed: what went wrong in a pass, or that its adapter is gone, or cast, or
    that its base is another.
    """
    if isinstance(error, RunError) and not isinstance(error, (NotFiniteError, DivergingError)):
        return error
    try:
        if attached(model).get(adapter.name) is not adapter:
            check_owned(model, adapter)
        check_dtypes(held)
        check_base(base)
    except LostAdapterError as lost:
        lost.__cause__ = error
        return lost
    return error


def can_be_written(model: nn.Module, adapter: Adapter) -> bool:
    """Whether the model has a run's adapter, or can have it for a moment: none is merged."""
    known = attached_adapters(model)
    return known is None or known.adapters.get(adapter.name) is adapter or not known.merged


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """Write a run's adapter, whether or not the model has it still; see `write_adapter`."""
    with _on(model, adapter) as name:
        write_adapter(model, folder, name)


@contextlib.contextmanager
def _on(model: nn.Module, adapter: Adapter) -> Iterator[str]:
    if attached(model).get(adapter.name) is adapter:
        yield adapter.name
        return
    before, adapter.name = adapter.name, _PUT_BACK
    put_on(model, adapter, activate=False)
    try:
        yield adapter.name
    finally:
        detach(model, adapter.name)
        adapter.name = before
