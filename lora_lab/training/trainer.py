"""One training of an adapter by HF Trainer, silenced, and watched step by step.

Imports transformers; loaded by a run's own thread when it starts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from lora_lab._util.transformers_private import input_needs_grad
from lora_lab.budget.meter import Meter
from lora_lab.errors import RunError
from lora_lab.methods.base import Adapter
from lora_lab.methods.registry import method_of
from lora_lab.tasks.encoding import IGNORED
from lora_lab.training import processes
from lora_lab.training.config import TrainingConfig
from lora_lab.training.isolation import set_whole_random_state, whole_random_state
from lora_lab.training.recompute_mlp import recomputed_mlps
from lora_lab.training.sampler import StepSampler
from lora_lab.training.trackers import silent_thread, tracker_callbacks


class NotFiniteError(RunError):
    """A loss or gradient is NaN or infinite; the optimizer was not given it.

    Attributes:
        adapter_suspect: the adapter as it stands gave it, so an older one is the last good one;
            False: its loss was finite, only the way on is barred.
    """

    def __init__(self, message: str, adapter_suspect: bool) -> None:
        super().__init__(message)
        self.adapter_suspect = adapter_suspect


class DeadAdapterError(RunError):
    """Training does not reach some of the adapter's sites."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, done."""

    number: int  # from 1
    loss: float  # mean over the step's completion tokens, or its texts with classes; nats
    learning_rate: float  # that the step was taken with
    tokens: int  # completion tokens of the step (or texts), those that the loss is the mean of


@dataclass
class Fit:
    """What HF Trainer is given, and what it leaves behind for checkpoints.

    Attributes:
        model: adapted; only the adapter's parameters are trained.
        examples: maps with "input_ids" and "labels", encoded when they are asked for.
        collate: makes one padded batch of several of them.
        folder: HF Trainer wants one; nothing is written there.
        on_step: called after every optimizer step; True ends the training.
        loss: (output, labels, num_items_in_batch) → a pass's share of the step's mean loss; None:
            the model's own.
        done: optimizer steps that were taken before, by a run that this one goes on with.
        going_on: what `state` returned after them; the adapter has its own state already.
        optimizer, scheduler: there while `run` runs.
    """

    model: nn.Module
    adapter: Adapter
    examples: Dataset | Sequence[Any]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    training: TrainingConfig
    folder: Path
    meter: Meter
    on_step: Callable[[Step], bool]
    loss: Callable[..., Tensor] | None = None
    done: int = 0
    going_on: Mapping[str, Any] | None = None
    optimizer: torch.optim.Optimizer | None = field(default=None, init=False)
    scheduler: Any = field(default=None, init=False)

    def run(self) -> None:
        """Train until the steps are done or `on_step` ends it; the model's settings are restored.

        Raises:
            NotFiniteError: NaN or infinity in the loss or a gradient.
            DeadAdapterError: a site that training does not reach.
        """
        with _training_settings(self.model, self.training), _frozen_stays(self.model):
            groups = parameter_groups(self.adapter, self.training)
            self.optimizer = _AdamW(
                self.meter,
                groups,
                lr=self.training.learning_rate,
                weight_decay=self.training.weight_decay,
                # One kernel without temporaries of all parameters' size.
                fused=True if self.meter.device.type == "cuda" else None,
            )
            self.meter.optimizer = self.optimizer
            if self.going_on is not None:
                self.optimizer.load_state_dict(dict(self.going_on["optimizer"]))
            self.adapter.begin_training(self.optimizer, self.training.max_steps)
            trainer = _Trainer(self)
            # A notebook gets other default callbacks than a script; all but one print or display.
            kept = [c for c in trainer.callback_handler.callbacks if type(c) is DefaultFlowCallback]
            trackers = tracker_callbacks(self.training.report_to) if processes.main() else []
            trainer.callback_handler.callbacks = [*kept, _Steps(self, trainer, trackers)]
            try:
                trainer.train()
            finally:
                self.model.zero_grad(set_to_none=True)
                self.optimizer = self.scheduler = self.meter.optimizer = None
                trainer.accelerator.free_memory()

    def state(self) -> dict[str, Any]:
        """Return what `going_on` takes, between two steps: tensors, numbers, containers."""
        assert self.optimizer is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": whole_random_state(self.meter.device),
        }

    def go_on(self, scheduler: Any) -> None:
        """Put the rates back; making the scheduler has set them to those of the first step."""
        self.scheduler = scheduler
        if self.going_on is not None:
            scheduler.load_state_dict(dict(self.going_on["scheduler"]))
            for group, rate in zip(
                scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True
            ):
                group["lr"] = rate

    def before_first_step(self) -> None:
        """Put the random numbers back; making the trainer has seeded them."""
        if self.going_on is not None:
            set_whole_random_state(self.going_on["random"], self.meter.device)
            self.going_on = None  # it held the moments a second time


def parameter_groups(adapter: Adapter, training: TrainingConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups; "ratio" is a group's rate as a multiple of `learning_rate`."""
    fast = {id(parameter) for parameter in adapter.fast_parameters()}
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            ratio = (training.loraplus_lr_ratio or 1.0) if id(parameter) in fast else 1.0
            found.setdefault(ratio, []).append(parameter)
    return [
        {"params": parameters, "lr": ratio * training.learning_rate, "ratio": ratio}
        for ratio, parameters in found.items()
    ]


class _AdamW(torch.optim.AdamW):
    """AdamW whose steps the meter looks at."""

    def __init__(self, meter: Meter, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._meter = meter

    def step(self, closure: Any = None) -> Any:
        with self._meter.measure_update():
            return super().step(closure)


class _Trainer(Trainer):
    def __init__(self, fit: Fit) -> None:
        training = fit.training
        arguments = TrainingArguments(
            output_dir=str(fit.folder),
            max_steps=training.max_steps,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            lr_scheduler_type=training.lr_scheduler_type,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            seed=training.seed,
            use_cpu=fit.meter.device.type == "cpu",
            ddp_find_unused_parameters=_may_leave_out(fit.adapter),
            report_to="none",  # the trackers are called by `_Steps`
            run_name=fit.folder.name,
            project="lora-lab",
            disable_tqdm=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,  # looks at every loss, and that waits for the device
            save_strategy="no",
            eval_strategy="no",
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_num_workers=0,
            dataloader_pin_memory=False,  # pinning starts a thread that outlives a failed step
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # no nn.DataParallel behind the user's back
        super().__init__(
            model=fit.model,
            args=arguments,
            train_dataset=fit.examples,
            data_collator=fit.collate,
            optimizers=(fit.optimizer, None),
            compute_loss_func=fit.loss,
        )
        self._meter = fit.meter
        self._adapter = fit.adapter
        self._done = fit.done
        self._wrapped_for = _identities(fit.adapter)
        self._penalty: Tensor | float = 0.0
        self.step_loss: Tensor | float = 0.0
        self.step_tokens: Tensor | int = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        """Return the order of all steps to come; to HF Trainer they are one epoch."""
        training = self.args
        return StepSampler(
            len(cast(Any, train_dataset if train_dataset is not None else self.train_dataset)),
            training.per_device_train_batch_size
            * training.gradient_accumulation_steps
            * training.world_size,
            training.max_steps,
            training.seed,
            self._done,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> Tensor:
        with self._meter.measure(inputs["input_ids"].numel()):
            loss = super().training_step(model, inputs, *rest)
        loss = loss - self._penalty  # what people read is the task's own loss
        # Each pass gives its tokens' share of the step's mean: they add up to the true mean.
        self.step_loss = self.step_loss + loss
        labels = inputs["labels"]
        if labels.ndim > 1 and "decoder_input_ids" not in inputs:
            labels = labels[:, 1:]  # the first token of an example is never predicted
        self.step_tokens = self.step_tokens + (labels != IGNORED).sum()
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(*args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not loss.requires_grad:
            raise DeadAdapterError(
                "the loss does not depend on the adapter at all: "
                + _likely_reason(cast(nn.Module, self.model), all_dead=True)
            )
        if (penalty := self._adapter.penalty()) is not None:
            # HF Trainer divides by the number of passes what it takes for a plain mean.
            divided = self.compute_loss_func is None and (
                kwargs.get("num_items_in_batch") is None or not self.model_accepts_loss_kwargs
            )
            share = penalty / self.current_gradient_accumulation_steps
            self._penalty = share.detach()
            loss = loss + (penalty if divided else share)
        self._meter.sample()  # just before the backward pass, activations are at their most
        return (loss, *result[1:]) if isinstance(result, tuple) else loss

    def follow_parameters(self) -> None:
        """Have DDP reduce the gradients of parameters that took others' places (AdaLoRA's)."""
        wrapped = self.model_wrapped
        if not isinstance(wrapped, DistributedDataParallel):
            return
        if (now := _identities(self._adapter)) != self._wrapped_for:
            # In place: HF Trainer's loop and accelerate hold on to the wrapper.
            DistributedDataParallel.__init__(
                wrapped,
                wrapped.module,
                device_ids=wrapped.device_ids,
                find_unused_parameters=_may_leave_out(self._adapter),
                init_sync=False,
            )
            self._wrapped_for = now

    def floating_point_ops(self, *_: Any) -> int:
        return 0  # nobody reads it, and counting walks over all parameters at every step


class _Steps(TrainerCallback):
    """Looks at every optimizer step: is it finite, does it reach every site, shall it go on?"""

    def __init__(self, fit: Fit, trainer: _Trainer, trackers: Sequence[TrainerCallback]) -> None:
        self._fit = fit
        self._trackers = trackers
        self._trainer = trainer
        self._parts = fit.adapter.parameters_by_location()
        self._what = "sites" if fit.adapter.sites else "places"
        # Every part has been seen to get a gradient; of a run that is gone on with, before.
        self._reached = fit.done > 0
        # What starts at zero and learns: B, or an embedding's A. Where there is none (PiSSA), a
        # gradient has to be proof enough.
        self._zero = {
            place: zero[0]
            for place, learnt in self._parts.items()
            if not self._reached
            and all(p.numel() for p in learnt)
            and (zero := [p for p in learnt if not p.any()])
        }
        self._begun = False
        self._loss = 0.0
        self._tokens = 0
        self._learning_rate = 0.0

    def on_train_begin(self, *context: Any, **_: Any) -> None:
        context[1].global_step = self._fit.done
        self._fit.go_on(self._trainer.lr_scheduler)
        self._report("on_train_begin", context, model=self._fit.model)

    def on_train_end(self, *context: Any, **_: Any) -> None:
        self._report("on_train_end", context, model=self._fit.model)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self._begun:
            self._begun = True
            self._fit.before_first_step()

    # HF Trainer calls these with (arguments, state, control) and more by name.

    def on_pre_optimizer_step(self, *context: Any, **_: Any) -> None:
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
            for place, learnt in self._parts.items()
            if not any(p.grad is not None and p.grad.any() for p in learnt)
        ]
        if dead:
            raise DeadAdapterError(
                f"no gradient reached {_some(dead, len(self._parts), self._what)} in step {step}: "
                + _likely_reason(self._fit.model, all_dead=len(dead) == len(self._parts))
            )
        self._reached = True


def _may_leave_out(adapter: Adapter) -> bool:
    """Whether a pass may leave parameters unused, as Adapter^D does; DDP wants to know.

    Of all weights of a model, too, some may be for nothing: a pooler below another head.
    """
    return any(method_of(config).sparse_gradients for config in adapter.config.parts)


@contextlib.contextmanager
def _frozen_stays(model: Any) -> Iterator[None]:
    """Have DDP send no frozen weights around: every process has loaded them, or its shard."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    model._ddp_params_and_buffers_to_ignore = [*names, *(name for name, _ in model.named_buffers())]
    try:
        yield
    finally:
        del model._ddp_params_and_buffers_to_ignore


def _identities(adapter: Adapter) -> list[int]:
    return [id(parameter) for parameter in adapter.parameters() if parameter.requires_grad]


def _some(names: list[str], total: int, what: str) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} of {total} {what} ({shown})"


def _likely_reason(model: nn.Module, all_dead: bool) -> str:
    if _checkpointing(model) and all_dead:
        return (
            "most likely gradient checkpointing, whose blocks see no input that needs a gradient; "
            "set gradient_checkpointing=False, or call model.enable_input_require_grads()"
        )
    return (
        "most likely the loss does not depend on them, or the model's forward detaches or turns "
        "gradients off there; leave them out of target_modules"
    )


@contextlib.contextmanager
def _training_settings(model: Any, training: TrainingConfig) -> Iterator[None]:
    """Set the model up for training, and put every setting back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    caches = _caches(model)
    checkpointing = training.gradient_checkpointing and not _checkpointing(model)
    try:
        for config, _ in caches:
            config.use_cache = False
        with (
            _checkpointed(model) if checkpointing else contextlib.nullcontext(),
            recomputed_mlps(model) if training.recompute_mlp else contextlib.nullcontext(),
        ):
            yield
    finally:
        for config, use_cache in caches:
            config.use_cache = use_cache
        if all(config is not model.config for config, _ in caches):
            vars(model.config).pop("use_cache", None)  # HF Trainer sets it on any config
        for module, mode in modes:
            module.training = mode


def _caches(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return (config, its `use_cache`) of all configs that have one; T5's stacks have their own."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    distinct = {id(c): c for c in configs if hasattr(c, "use_cache")}
    return [(config, config.use_cache) for config in distinct.values()]


@contextlib.contextmanager
def _checkpointed(model: Any) -> Iterator[None]:
    """Switch gradient checkpointing on; the frozen embeddings' output then needs a gradient."""
    needed_before = input_needs_grad(model)
    if needed_before:
        model.disable_input_require_grads()  # switched on twice, the first hooks would be lost
    # transformers 5.2x calls it `activation_…`, and switches the input's gradients on by itself.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not input_needs_grad(model):
        model.enable_input_require_grads()
    try:
        yield
    finally:
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
        if not needed_before:
            model.disable_input_require_grads()


def _checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
