"""What looks at every optimizer step: is it finite, does it reach every site, shall it go on?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_lab.errors import RunError
from lora_lab.methods.attached import attached_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.masters import Masters
from lora_lab.methods.modules_to_save import trained_whole
from lora_lab.training import processes
from lora_lab.training.loss_scale import LossScale
from lora_lab.training.model_settings import is_checkpointing
from lora_lab.training.step import DeadAdapterError, NotFiniteError


class Seen(NamedTuple):
    """What is known of a step before its update.

    Attributes:
        loss, beside: of all processes.
        tokens: likewise.
        finite: whether the gradients are; else the loss scale was too large, and the step is
            skipped.
    """

    loss: float
    beside: float
    tokens: int
    finite: bool


class StepChecks:
    """Looks at one training's steps.

    Args:
        model, adapter: that learns.
        masters: that stand in the place of some of its parameters.
        resumed: it learned before, and every part has been seen to get a gradient.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, masters: Masters, resumed: bool) -> None:
        self._model = model
        self._adapter = adapter
        self._parts = {
            place: [masters.of(parameter) for parameter in learned]
            for place, learned in adapter.parameters_by_location().items()
        }
        self._whole = {
            path: [masters.of(parameter) for parameter in learned]
            for path, learned in trained_whole(adapter).items()
            if path not in self._parts  # as of a head alone
        }
        self._what = "matrices" if adapter.sites else "places"
        self._reached = resumed
        # What starts at zero and learns: B, or an embedding's A. Where there is none (PiSSA), a
        # gradient has to be proof enough.
        whole = {k: v for k, v in self._parts.items() if all(p.numel() for p in v) and not resumed}
        self._zero = {
            place: whole[place][flags.index(0)]
            for place, flags in _moved(whole).items()
            if 0 in flags
        }

    def loss(self, loss: Tensor) -> None:
        """Refuse a loss that the adapter has no part in."""
        if not loss.requires_grad:
            raise DeadAdapterError(
                "the loss does not depend on the adapter at all: "
                + likely_reason(self._model, self._parts, all_dead=True)
            )

    def before_update(
        self, step: int, losses: Tensor, tokens: int, norm: Tensor, scale: LossScale | None = None
    ) -> Seen:
        """Refuse a loss or gradient that is not finite, or that does not reach every site.

        Args:
            step: from 1.
            losses: (2,), the loss and what is trained with beside it, of this process, times the
                number of processes.
            tokens: of this process.
            norm: of the gradients, which are those of all processes already.
            scale: that they had; a smaller one may make them finite. None: they had none.
        """
        if not tokens and processes.count() == 1:
            raise RunError(
                f"nothing is learned in step {step}: all labels of its batch are -100; raise "
                "max_length, or leave out the rows without an answer"
            )
        # The only wait for the device in a step: all numbers in one transfer.
        losses = losses.to(norm.device, torch.float32) / processes.count()
        own = torch.cat((losses, torch.full_like(losses[:1], tokens)))
        parts = {} if self._reached else self._parts | self._whole
        grads = {place: _gradients(own) for place, own in parts.items()}
        numbers = [processes.total(own), norm.float()[None], *_any(grads, norm.device)]
        mean, beside, count, size, *flags = torch.cat(numbers).tolist()
        if not math.isfinite(mean):
            raise NotFiniteError(
                f"the loss is {mean} at step {step}{_float16(scale)}", adapter_suspect=True
            )
        finite = math.isfinite(size)
        if not finite and (scale is None or not scale.may_fall):
            raise NotFiniteError(
                f"a gradient is {size} at step {step}{_float16(scale)}", adapter_suspect=False
            )
        if finite and not self._reached:
            self._check_gradients(step, _by_place(grads, flags))
        return Seen(mean, beside, int(count), finite)

    def after_update(self, step: int) -> None:
        """Refuse an optimizer that does not move what started at zero, at a rate above 0."""
        if not self._zero:
            return
        # AdaLoRA may have cut all of a place in this very step.
        ranks = self._adapter.ranks
        moved = _moved({place: [start] for place, start in self._zero.items()})
        dead = [place for place, flags in moved.items() if not any(flags) and ranks.get(place, 1)]
        if dead:
            what = "BA is still zero" if self._adapter.sites else "nothing has moved"
            raise DeadAdapterError(
                f"{what} after optimizer step {step} at "
                f"{_some(dead, len(self._parts), self._what)}: the optimizer does not move these "
                "parameters"
            )
        self._zero = {}

    def _check_gradients(self, step: int, reached: Mapping[str, Sequence[float]]) -> None:
        dead = [place for place in self._parts if not any(reached[place])]
        if dead:
            raise DeadAdapterError(
                f"no gradient reached {_some(dead, len(self._parts), self._what)} in step {step}: "
                + likely_reason(self._model, dead, all_dead=len(dead) == len(self._parts))
            )
        self._reached = True
        known = attached_adapters(self._model)
        still = [path for path in self._whole if not any(reached[path])]
        if still and known is not None and known.watch is not None:
            known.watch.tell(
                f"no gradient reached {_some(still, len(self._whole), 'modules_to_save')} in step "
                f"{step}: the model does not call them, or the loss does not depend on what they "
                "give; while that is so they stay as they are"
            )


def _float16(scale: LossScale | None) -> str:
    """Return what to do where the model computes in float16."""
    if scale is None:
        return ""
    at = "" if scale.may_fall else f", with a loss scale of {scale.value:g}"
    return (
        f"{at}: the model computes in float16, which ends at 65,504; load it with "
        "dtype='float32', or 'bfloat16' where the GPU computes in it"
    )


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _any(tensors: Mapping[str, Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Return 1 for each tensor that has an entry other than zero, else 0: float32, (1,) each.

    It waits for no device, so that all of them are read in one transfer.
    """
    return [t.any().to(device, torch.float32)[None] for own in tensors.values() for t in own]


def _moved(tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, list[float]]:
    """Return {place: 1 for each of its tensors that has an entry other than zero, else 0}."""
    found = [tensor for own in tensors.values() for tensor in own]
    flags = torch.cat(_any(tensors, found[0].device)).tolist() if found else []
    return _by_place(tensors, flags)


def _by_place(
    tensors: Mapping[str, Sequence[Tensor]], flags: Iterable[float]
) -> dict[str, list[float]]:
    """Return {place: the flags of its tensors}."""
    left = iter(flags)
    return {place: list(islice(left, len(own))) for place, own in tensors.items()}


def _some(names: list[str], total: int, what: str) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} of {total} {what} ({shown})"


def likely_reason(model: nn.Module, dead: Iterable[str], all_dead: bool) -> str:
    """Return why training may not reach (all of) an adapter, and what to do.

    Args:
        model: with the adapter.
        dead: the places that it does not reach.
        all_dead: whether they are all that there are.
    """
    known = attached_adapters(model)
    passed_by = known.watch.passed_by if known is not None and known.watch is not None else {}
    if how := dict.fromkeys(passed_by[p] for d in dead if (p := d.partition("[")[0]) in passed_by):
        return (
            f"{next(iter(how))}, so that an adapter there can do nothing; adapt other layers, or "
            "train the module whole (modules_to_save)"
        )
    if is_checkpointing(model) and all_dead:
        return (
            "most likely gradient checkpointing, whose blocks see no input that needs a gradient; "
            "set gradient_checkpointing=False, or call model.enable_input_require_grads()"
        )
    return (
        "most likely the loss does not depend on them, or the model's forward detaches or turns "
        "gradients off there; leave them out of target_modules"
    )
