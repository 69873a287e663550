"""What looks at every optimizer step: is it finite, does it reach every site, shall it go on?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from lora_lab.methods.attached import attached_adapters
from lora_lab.training import processes
from lora_lab.training.model_settings import is_checkpointing
from lora_lab.training.step import DeadAdapterError, NotFiniteError, Step
from lora_lab.training.trackers import silent_thread

if TYPE_CHECKING:
    from lora_lab.training.trainer import Fit


class StepCallback:
    """The methods of a `TrainerCallback` of transformers; `Fit` joins the two."""

    def __init__(self, fit: Fit, trainer: Any, trackers: Sequence[Any]) -> None:
        self._fit = fit
        self._trackers = trackers
        self._trainer = trainer
        self._parts = fit.adapter.parameters_by_location()
        self._what = "sites" if fit.adapter.sites else "places"
        # Every part has been seen to get a gradient; of a resumed run, before.
        self._reached = fit.completed_steps > 0
        # What starts at zero and learns: B, or an embedding's A. Where there is none (PiSSA), a
        # gradient has to be proof enough.
        self._zero = {
            place: zero[0]
            for place, learned in self._parts.items()
            if not self._reached
            and all(p.numel() for p in learned)
            and (zero := [p for p in learned if not p.any()])
        }
        self._begun = False
        self._loss = 0.0
        self._tokens = 0
        self._learning_rate = 0.0

    def on_train_begin(self, *context: Any, **_: Any) -> None:
        """Put steps, rates and trackers to where the training begins."""
        context[1].global_step = self._fit.completed_steps
        self._fit.resume(self._trainer.lr_scheduler)
        self._report("on_train_begin", context, model=self._fit.model)

    def on_train_end(self, *context: Any, **_: Any) -> None:
        """Tell the trackers."""
        self._report("on_train_end", context, model=self._fit.model)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Of the first step, put the random numbers back."""
        if not self._begun:
            self._begun = True
            self._fit.before_first_step()

    # HF Trainer calls these with (arguments, state, control) and more by name.

    def on_pre_optimizer_step(self, *context: Any, **_: Any) -> None:
        """Refuse a loss or gradient that is not finite, or that does not reach every site."""
        step = context[1].global_step + 1
        if not self._reached:
            self._check_gradients(step)
        gradients = [p.grad for p in self._fit.adapter.parameters() if p.grad is not None]
        largest = get_total_norm(gradients, norm_type=math.inf)
        loss = torch.as_tensor(self._trainer.step_loss, device=largest.device)
        tokens = torch.as_tensor(self._trainer.step_tokens, device=largest.device)
        # The only wait for the device in a step: all numbers in one transfer. The gradients are
        # those of all processes already; of the losses, each is its own times their number.
        sums = processes.total(torch.stack((loss.float() / processes.count(), tokens.float())))
        self._loss, count, size = torch.cat((sums, largest.float()[None])).tolist()
        self._tokens = int(count)
        self._trainer.step_loss, self._trainer.step_tokens = 0.0, 0
        if not math.isfinite(self._loss):
            raise NotFiniteError(f"the loss is {self._loss} at step {step}", adapter_suspect=True)
        if not math.isfinite(size):
            raise NotFiniteError(f"a gradient is {size} at step {step}", adapter_suspect=False)
        group = cast(Any, self._trainer.optimizer).param_groups[0]
        self._learning_rate = group["lr"] / group["ratio"]

    def on_optimizer_step(self, *context: Any, **_: Any) -> None:
        """Refuse an optimizer that does not move what started at zero."""
        self._trainer.follow_parameters()
        if self._zero and self._learning_rate > 0:
            # AdaLoRA may have cut all of a place in this very step.
            ranks = self._fit.adapter.ranks
            dead = [p for p, start in self._zero.items() if not start.any() and ranks.get(p, 1)]
            if dead:
                what = "BA is still zero" if self._fit.adapter.sites else "nothing has moved"
                raise DeadAdapterError(
                    f"{what} after optimizer step {context[1].global_step + 1} at "
                    f"{_some(dead, len(self._parts), self._what)}: the optimizer does not "
                    "move these parameters"
                )
            self._zero = {}

    def on_step_end(self, *context: Any, **_: Any) -> None:
        """Tell the run and the trackers of the step."""
        _, state, control = context
        step = Step(state.global_step, self._loss, self._learning_rate, self._tokens)
        logs = {"loss": step.loss, "learning_rate": step.learning_rate}
        self._report("on_log", context, logs=logs, model=self._fit.model)
        if self._fit.on_step(step):
            control.should_training_stop = True

    def _report(self, event: str, context: tuple[Any, ...], **more: Any) -> None:
        """Tell the trackers; they print, and they know of no other place for it."""
        for tracker in self._trackers:
            with silent_thread():
                getattr(tracker, event)(*context, **more)

    def _check_gradients(self, step: int) -> None:
        dead = [
            place
            for place, learned in self._parts.items()
            if not any(p.grad is not None and p.grad.any() for p in learned)
        ]
        if dead:
            raise DeadAdapterError(
                f"no gradient reached {_some(dead, len(self._parts), self._what)} in step {step}: "
                + likely_reason(self._fit.model, dead, all_dead=len(dead) == len(self._parts))
            )
        self._reached = True


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
