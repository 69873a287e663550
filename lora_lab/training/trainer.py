"""One training of an adapter by HF Trainer, silenced, and watched step by step.

transformers' classes come in when a training begins: importing them takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from lora_lab.budget.meter import Meter
from lora_lab.methods.base import Adapter
from lora_lab.methods.registry import method_of
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.encoding import IGNORED
from lora_lab.training import processes
from lora_lab.training.isolation import set_whole_random_state, whole_random_state
from lora_lab.training.model_settings import frozen_stays, training_settings
from lora_lab.training.sampler import StepSampler
from lora_lab.training.step import DeadAdapterError, Step
from lora_lab.training.step_callback import StepCallback, likely_reason
from lora_lab.training.trackers import tracker_callbacks

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


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
        completed_steps: optimizer steps that were taken before, by a run that this one resumes.
        resume_state: what `state` returned after them; the adapter has its own state already.
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
    completed_steps: int = 0
    resume_state: Mapping[str, Any] | None = None
    optimizer: torch.optim.Optimizer | None = field(default=None, init=False)
    scheduler: Any = field(default=None, init=False)

    def run(self) -> None:
        """Train until the steps are done or `on_step` ends it; the model's settings are restored.

        Raises:
            NotFiniteError: NaN or infinity in the loss or a gradient.
            DeadAdapterError: a site that training does not reach.
        """
        with training_settings(self.model, self.training), frozen_stays(self.model):
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
            if self.resume_state is not None:
                self.optimizer.load_state_dict(dict(self.resume_state["optimizer"]))
            self.adapter.begin_training(self.optimizer, self.training.max_steps)
            trainer = _trainer(self)
            trackers = tracker_callbacks(self.training.report_to) if processes.main() else []
            # A notebook gets other default callbacks than a script; all but one print or display.
            trainer.callback_handler.callbacks = _callbacks(self, trainer, trackers)
            try:
                trainer.train()
            finally:
                self.model.zero_grad(set_to_none=True)
                self.optimizer = self.scheduler = self.meter.optimizer = None
                trainer.accelerator.free_memory()

    def state(self) -> dict[str, Any]:
        """Return what `resume_state` takes, between two steps: tensors, numbers, containers."""
        assert self.optimizer is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": whole_random_state(self.meter.device),
        }

    def resume(self, scheduler: Any) -> None:
        """Put the rates back; making the scheduler has set them to those of the first step."""
        self.scheduler = scheduler
        if self.resume_state is not None:
            scheduler.load_state_dict(dict(self.resume_state["scheduler"]))
            for group, rate in zip(
                scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True
            ):
                group["lr"] = rate

    def before_first_step(self) -> None:
        """Put the random numbers back; making the trainer has seeded them."""
        if self.resume_state is not None:
            set_whole_random_state(self.resume_state["random"], self.meter.device)
            self.resume_state = None  # it held the moments a second time


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


class _TrainerMethods(Trainer):
    """What we do otherwise than transformers' Trainer; `_trainer` joins the two."""

    def __init__(self, fit: Fit) -> None:
        super().__init__(
            model=fit.model,
            args=_arguments(fit),
            train_dataset=fit.examples,
            data_collator=fit.collate,
            optimizers=(fit.optimizer, None),
            compute_loss_func=fit.loss,
        )
        self._meter = fit.meter
        self._adapter = fit.adapter
        self._completed_steps = fit.completed_steps
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
            self._completed_steps,
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
                + likely_reason(
                    cast(nn.Module, self.model), self._adapter.parameters_by_location(), True
                )
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


def _trainer(fit: Fit) -> Any:
    import transformers

    return type("_Trainer", (_TrainerMethods, transformers.Trainer), {})(fit)


def _callbacks(fit: Fit, trainer: Any, trackers: Sequence[Any]) -> list[Any]:
    """Return the one of HF Trainer's own that is needed, and ours."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import DefaultFlowCallback

    needed = [c for c in trainer.callback_handler.callbacks if type(c) is DefaultFlowCallback]
    ours = type("_StepCallback", (StepCallback, TrainerCallback), {})
    return [*needed, ours(fit, trainer, trackers)]


def _arguments(fit: Fit) -> Any:
    """Return the settings as transformers wants them; all that prints or saves is off."""
    from transformers import TrainingArguments

    training = fit.training
    arguments = TrainingArguments(
        output_dir=str(fit.folder),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup,
        lr_scheduler_type=training.lr_scheduler_type,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        use_cpu=fit.meter.device.type == "cpu",
        ddp_find_unused_parameters=_may_leave_out(fit.adapter),
        report_to="none",  # the trackers are called by `StepCallback`
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
    return arguments


def _may_leave_out(adapter: Adapter) -> bool:
    """Whether a pass may leave parameters unused, as Adapter^D does; DDP wants to know.

    Of all weights of a model, too, some may be for nothing: a pooler below another head.
    """
    parts = adapter.config.parts
    return adapter.modifies_base or any(method_of(part).sparse_gradients for part in parts)


def _identities(adapter: Adapter) -> list[int]:
    return [id(parameter) for parameter in adapter.parameters() if parameter.requires_grad]
