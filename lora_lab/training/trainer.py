"""One training of an adapter: a loop of our own, which sets and reads nothing of the process.

transformers' Trainer and accelerate keep device, precision and seeds once a process, where any cell
of a notebook may change them. Losses by step are HF Trainer's, bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from lora_lab._util.own_gradients import OwnGradients
from lora_lab._util.own_random import OwnRandom
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.budget.meter import Meter
from lora_lab.methods.base import Adapter
from lora_lab.methods.head.adapter import learned_head
from lora_lab.methods.masters import Masters
from lora_lab.methods.own_modes import are_training
from lora_lab.methods.steady_weights import steady_weights
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.families.base import Lengths
from lora_lab.training import processes
from lora_lab.training.adamw import AdamW
from lora_lab.training.held import Held
from lora_lab.training.loss_scale import LossScale, computes_in_float16, passes_float16
from lora_lab.training.lost_adapter import check_owned
from lora_lab.training.model_settings import training_settings
from lora_lab.training.optimizer_state import load_optimizer, load_scheduler
from lora_lab.training.padding import Padding
from lora_lab.training.pass_loss import PassLosses, label_count
from lora_lab.training.replicas import Replicas
from lora_lab.training.resume_state import fitting
from lora_lab.training.sampler import StepSampler
from lora_lab.training.schedule import scheduler_of
from lora_lab.training.step import Step
from lora_lab.training.step_checks import StepChecks
from lora_lab.training.trackers import Trackers

Batch = dict[str, Tensor]


@dataclass
class Fit:
    """What a training is given, and what it leaves behind for checkpoints.

    Attributes:
        model: adapted; only the adapter's parameters are trained.
        examples: maps with "input_ids" and "labels", encoded when they are asked for.
        collate: makes one padded batch of several of them.
        folder: of the run, for trackers.
        on_step: called after every optimizer step; True ends the training.
        loss: (output, labels, num_items_in_batch) → a pass's share of the step's mean loss; None:
            the model's own.
        lengths: of the examples, for batches of like length and for `padding`; None: not known.
        padding: counts that of the batches.
        all_or_nothing: within which parameters are moved.
        gradients: keeps other threads' backward passes out of those of this training.
        held: the model's parameters as the run has had them; None: as they are when it begins.
        completed_steps: optimizer steps that were taken before, by a run that this one resumes.
        resume_state: what `state` returned after them; the adapter has its own state already.
        optimizer, scheduler, random, masters: there while `run` runs.
        loss_scale: likewise, of a model that computes in float16.
        trackers: there while steps are taken.
    """

    model: nn.Module
    adapter: Adapter
    examples: Dataset | Sequence[Any]
    collate: Callable[[list[Any]], Batch]
    training: TrainingConfig
    folder: Path
    meter: Meter
    on_step: Callable[[Step], bool]
    loss: Callable[..., Tensor] | None = None
    lengths: Sequence[Lengths] | None = None
    padding: Padding = field(default_factory=Padding)
    all_or_nothing: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    gradients: OwnGradients = field(default_factory=OwnGradients)
    held: Held | None = None
    completed_steps: int = 0
    resume_state: Mapping[str, Any] | None = None
    optimizer: torch.optim.Optimizer | None = field(default=None, init=False)
    scheduler: LambdaLR | None = field(default=None, init=False)
    random: OwnRandom | None = field(default=None, init=False)
    masters: Masters | None = field(default=None, init=False)
    loss_scale: LossScale | None = field(default=None, init=False)
    trackers: Trackers | None = field(default=None, init=False)

    def run(self) -> None:
        """Train until the steps are done or `on_step` ends it; the model's settings are restored.

        Raises:
            NotFiniteError: NaN or infinity in the loss or a gradient.
            DeadAdapterError: a site that training does not reach.
        """
        self.random = OwnRandom(self.training.seed, self.meter.device)
        with training_settings(self.model, self.training), self.random.replayed(self.model):
            try:
                _Loop(self, self.random).run()
            finally:
                self.gradients.close()
                self.model.zero_grad(set_to_none=True)
                self.optimizer = self.scheduler = self.random = self.meter.optimizer = None
                self.masters = self.loss_scale = None

    @property
    def skipped_steps(self) -> int:
        """How many steps the loss scale has left out, those of the runs before included."""
        return 0 if self.loss_scale is None else self.loss_scale.skipped

    def follow(self) -> None:
        """Take over what somebody has written into the parameters between two steps."""
        if self.masters is not None:
            self.masters.follow()

    def state(self) -> dict[str, Any]:
        """Return what `resume_state` takes, between two steps: tensors, numbers, containers."""
        assert self.optimizer is not None
        assert self.scheduler is not None
        assert self.random is not None
        assert self.masters is not None
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state()}
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": self.random.state(),
            "masters": self.masters.state(),
            **scale,
        }


class _Loop:
    """The steps of one training."""

    def __init__(self, fit: Fit, random: OwnRandom) -> None:
        self._fit = fit
        self._training = fit.training
        self._adapter = fit.adapter
        self._model: Any = fit.model
        self._device = fit.meter.device
        self._random = random
        self._replicas = Replicas(self._model, self._adapter)
        learning = (p for p in fit.adapter.parameters() if p.requires_grad)
        self._masters = fit.masters = Masters(learning)
        scaled = computes_in_float16(fit.model) or "loss_scale" in (fit.resume_state or {})
        self._scale = fit.loss_scale = LossScale() if scaled else None
        self._first_pass = True
        self._optimizer, self._scheduler = self._make_optimizer()
        self._draw_as_a_loader()
        if fit.resume_state is not None:
            with fitting(fit.completed_steps):
                random.set_state(fit.resume_state["random"])
                # Checkpoints of earlier versions have neither.
                self._masters.load_state(fit.resume_state.get("masters", {}))
                if self._scale is not None and "loss_scale" in fit.resume_state:
                    self._scale.load_state(fit.resume_state["loss_scale"])
            fit.resume_state = None  # it held the moments a second time
        self._checks = StepChecks(
            self._model, self._adapter, self._masters, resumed=fit.completed_steps > 0
        )
        self._losses = PassLosses(self._model, fit.loss, self._training.label_smoothing_factor)
        self._beside = False  # whether passes are trained with more than their loss
        self._whole = ""  # why they compute all logits, not those of labels alone
        self._modules = {id(module): module for module in self._replicas.model.modules()}
        self._held = fit.held or Held(self._model)
        self._moved: list[nn.Parameter] = []  # by the optimizer: they, or their masters
        self._identities: list[int] = []
        self._follow_parameters()

    def run(self) -> None:
        """Take the steps that are left."""
        first = self._fit.completed_steps + 1
        trackers = Trackers(self._training, self._fit.folder, self._model, self._device)
        self._fit.trackers = trackers
        self._model.zero_grad(set_to_none=True)
        steps = self._steps()
        try:
            trackers.begin(first - 1)
            for number, passes in enumerate(steps, first):
                step = self._step(number, passes)
                trackers.log(step)
                if self._fit.on_step(step):
                    break
        finally:
            self._fit.trackers = None
            trackers.end()
            self._replicas.close()

    def _make_optimizer(self) -> tuple[AdamW, LambdaLR]:
        fit, training = self._fit, self._training
        optimizer = AdamW(
            fit.meter,
            parameter_groups(
                self._adapter, training, self._masters, learned_head(unwrapped(self._model))
            ),
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            weight_decay=training.weight_decay,
        )
        if fit.resume_state is not None:
            with fitting(fit.completed_steps):
                load_optimizer(optimizer, fit.resume_state["optimizer"])
        self._adapter.begin_training(optimizer, training.max_steps)
        scheduler = scheduler_of(optimizer, training)
        if fit.resume_state is not None:
            with fitting(fit.completed_steps):
                load_scheduler(scheduler, fit.resume_state["scheduler"])
        fit.optimizer = fit.meter.optimizer = optimizer
        fit.scheduler = scheduler
        return optimizer, scheduler

    def _draw_as_a_loader(self) -> None:
        """Draw what a DataLoader draws for its workers: an epoch's passes' numbers follow it."""
        cpu = self._random.generator(torch.device("cpu"))
        torch.empty((), dtype=torch.int64).random_(generator=cpu)

    def _steps(self) -> Iterator[list[Batch]]:
        """Yield this process's batches of every step to come."""
        fit, training = self._fit, self._training
        examples, lengths, size = fit.examples, fit.lengths, training.per_device_train_batch_size
        alike = training.train_sampling_strategy == "group_by_length"
        per_step = training.step_size * processes.count()
        sampler = StepSampler(
            len(examples),  # type: ignore[arg-type]
            per_step,
            training.max_steps,
            training.seed,
            fit.completed_steps,
            lengths if alike else None,
            by_epoch=training.num_train_epochs is not None,
            whole=size * processes.count() if processes.count() > 1 else 1,
        )
        each = training.steps_per_epoch(len(examples), processes.count())  # type: ignore[arg-type]
        for number, rows in enumerate(sampler.steps(), fit.completed_steps):
            if training.num_train_epochs is not None and number and number % each == 0:
                self._draw_as_a_loader()
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            if lengths is not None:
                for batch in batches:
                    fit.padding.add([lengths[row] for row in batch])
            own = batches[processes.rank() :: processes.count()]
            yield [fit.collate([examples[row] for row in batch]) for batch in own]

    def _step(self, number: int, passes: list[Batch]) -> Step:
        """Take one optimizer step."""
        tokens = sum(map(label_count, passes))
        items = processes.total(torch.full((), tokens, dtype=torch.float32, device=self._device))
        losses: Any = 0.0
        with steady_weights():
            for i, batch in enumerate(passes):
                last = i + 1 == len(passes)
                with self._replicas.one_pass(last):
                    losses = losses + self._pass(batch, items, len(passes), last)
        check_owned(self._model, self._adapter, self._held)
        norm = self._clip()
        seen = self._checks.before_update(number, losses, tokens, norm, self._scale)
        group = self._optimizer.param_groups[0]
        rate = group["lr"] / group["ratio"]
        if seen.finite:
            self._update(number, rate)
        else:
            self._adapter.skip_step(self._optimizer)
            self._follow_parameters()
        if self._scale is not None:
            self._scale.update(seen.finite)
        self._fit.gradients.step_done()
        for parameter in self._moved:
            parameter.grad = None
        beside = seen.beside if self._beside else None
        scaled = self._scale is not None
        step = Step(number, seen.loss, rate, seen.tokens, beside, not seen.finite, scaled)
        return replace(step, whole_logits=self._whole) if self._whole else step

    def _update(self, number: int, rate: float) -> None:
        """Let the optimizer and the schedule take a step: as in HF Trainer a skipped one counts
        among the steps, and not in the schedule.
        """
        whole = self._optimizer.moves_all_or_nothing
        with contextlib.nullcontext() if whole else self._fit.all_or_nothing():
            self._optimizer.step()
            self._masters.write()
        self._follow_parameters()
        if rate > 0:
            self._checks.after_update(number)
        self._scheduler.step()

    def _pass(self, batch: Batch, items: Tensor, passes: int, last: bool) -> Tensor:
        """Go forward and backward; return the pass's shares of the step's losses, (2,).

        They are those of what people read, the task's own loss, and of what is trained with beside
        it. The shares are of its tokens, so that they add up to the true mean.
        """
        fit = self._fit
        if not are_training(self._modules):
            self._replicas.model.train()
        with fit.meter.measure(batch["input_ids"].numel()):
            # A copy from ordinary memory that waits for the device waits for all before it, too.
            inputs = {k: tensor.to(self._device, non_blocking=True) for k, tensor in batch.items()}
            with self._random.forward():
                loss, said, self._whole = self._losses(
                    self._replicas.model,
                    inputs,
                    items,
                    passes,
                    labels=int((batch["labels"] != IGNORED).sum()),
                    scale=1.0 if self._scale is None else self._scale.value,
                )
            self._beside = said is not None
            if not loss.requires_grad:
                check_owned(self._model, self._adapter, self._held)
            self._checks.loss(loss)
            if self._first_pass and self._scale is None and passes_float16(loss):
                self._scale = fit.loss_scale = LossScale()
            self._first_pass = False
            share: Tensor | float = 0.0
            if (penalty := self._adapter.penalty()) is not None:
                share = penalty.detach() / passes
                loss = loss + penalty / passes
            fit.meter.sample()  # just before the backward pass, activations are at their most
            self._random.backward(loss if self._scale is None else loss.float() * self._scale.value)
            if last or processes.count() == 1:  # DDP adds up what lies in the parameters
                self._masters.gather()
            if not fit.gradients.are_whole(self._moved):
                check_owned(self._model, self._adapter, self._held)
                raise fit.gradients.dropped()
        own = loss.detach() - share
        return torch.stack((own, own - own) if said is None else (said, own - said))

    def _clip(self) -> Tensor:
        """Scale the gradients down to the largest norm that they may have; return what it was."""
        largest = self._training.max_grad_norm
        if self._scale is None and largest > 0:
            return clip_grad_norm_(self._moved, largest)
        gradients = [g for p in self._moved if (g := p.grad) is not None]
        if self._scale is not None:
            self._scale.unscale(gradients)
        if largest > 0:
            return clip_grad_norm_(self._moved, largest)
        return get_total_norm(gradients)

    def _follow_parameters(self) -> None:
        """Take note of parameters that have taken others' places: AdaLoRA's become smaller."""
        if self._identities and not self._held.are_replaced():
            return
        now = [id(p) for p in self._adapter.parameters() if p.requires_grad]
        if now != self._identities:
            if self._identities:
                self._replicas.follow_parameters()
            self._identities = now
            if {*map(id, self._held.learned)} != {*now}:
                self._held.follow(self._model)
            self._moved = [self._masters.of(p) for p in self._held.learned]
            self._fit.gradients.follow(self._held.learned)


def parameter_groups(
    adapter: Adapter,
    training: TrainingConfig,
    masters: Masters | None = None,
    head: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Return the optimizer's groups; "ratio" is a group's rate as a multiple of `learning_rate`.

    Args:
        adapter: whose parameters they are.
        training: with the rates.
        masters: that stand in the place of some of them.
        head: those of a classifier's head, which may have a rate of its own.
    """
    of_head = (training.head_learning_rate or training.learning_rate) / training.learning_rate
    ratios = {id(parameter): of_head for parameter in head}
    fast = {id(parameter) for parameter in adapter.fast_parameters()}
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            ratio = (training.loraplus_lr_ratio or 1.0) if id(parameter) in fast else 1.0
            ratio = ratios.get(id(parameter), ratio) if of_head != 1.0 else ratio
            moved = parameter if masters is None else masters.of(parameter)
            found.setdefault(ratio, []).append(moved)
    return [
        {"params": parameters, "lr": ratio * training.learning_rate, "ratio": ratio}
        for ratio, parameters in found.items()
    ]
