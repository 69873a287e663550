"""The same training by HF Trainer: the oracle of our loop's losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Sampler

from lora_lab.configs import TrainingConfig
from lora_lab.methods.base import Adapter
from lora_lab.training.sampler import StepSampler
from lora_lab.training.trainer import parameter_groups


class EpochSampler(Sampler[int]):
    """Our order of each epoch in turn: HF Trainer asks again for every one."""

    def __init__(self, rows: int, batch: int, seed: int, lengths: Sequence[Any] | None) -> None:
        self._given, self._epoch = (rows, batch, seed, lengths), 0

    def __len__(self) -> int:
        return self._given[0]

    def __iter__(self) -> Iterator[int]:
        rows, batch, seed, lengths = self._given
        each = math.ceil(rows / batch)
        done, self._epoch = self._epoch * each, self._epoch + 1
        ours = StepSampler(rows, batch, done + each, seed, done, lengths, by_epoch=True)
        yield from chain.from_iterable(ours.steps())


class PeerTrainer(transformers.Trainer):
    """HF Trainer in the order of our sampler, with an adapter's penalty, that keeps its losses."""

    adapter: Adapter
    task_losses: list[Tensor]
    lengths: Sequence[Any] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        rows = len(self.train_dataset)  # type: ignore[arg-type]
        steps, seed = self.args.max_steps, self.args.seed
        if steps < 0:
            return EpochSampler(rows, batch, seed, self.lengths)
        return StepSampler(rows, batch, steps, seed, lengths=self.lengths)

    def compute_loss(self, *args: Any, **more: Any) -> Any:
        loss = super().compute_loss(*args, **more)
        if isinstance(loss, tuple):  # an evaluation's
            return loss
        self.task_losses.append(loss.detach())
        if (penalty := self.adapter.penalty()) is not None:
            loss = loss + penalty / self.args.gradient_accumulation_steps
        return loss

    def losses(self) -> list[float]:
        """Each step's: its passes' shares of the mean, added up."""
        passes, size = self.args.gradient_accumulation_steps, self.args.per_device_train_batch_size
        each = len(self.task_losses)
        if self.args.max_steps < 0:  # the last step of an epoch may have fewer
            each = math.ceil(len(self.train_dataset) / size)  # type: ignore[arg-type]
        found = []
        for epoch in range(0, len(self.task_losses), each):
            of_epoch = self.task_losses[epoch : epoch + each]
            for start in range(0, len(of_epoch), passes):
                total: Any = 0.0
                for share in of_epoch[start : start + passes]:
                    total = total + share
                found.append(float(total))
        return found


def peer_arguments(
    training: TrainingConfig, folder: Path, **more: Any
) -> transformers.TrainingArguments:
    """Return a run's settings as HF Trainer's; nothing is saved or logged."""
    return transformers.TrainingArguments(
        output_dir=str(folder),
        # Epochs are HF Trainer's to count.
        max_steps=-1 if training.num_train_epochs else training.max_steps,
        num_train_epochs=training.num_train_epochs or 3,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup,
        lr_scheduler_type=training.lr_scheduler_type,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        label_smoothing_factor=training.label_smoothing_factor,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **more,
    )


def peer_losses(
    model: nn.Module,
    adapter: Adapter,
    examples: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    training: TrainingConfig,
    loss: Callable[..., Tensor] | None,
    folder: Path,
    lengths: Sequence[Any],
) -> list[float]:
    """Train an adapter by HF Trainer in our order by lengths; return the losses by step."""
    groups = parameter_groups(adapter, training)
    optimizer = torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )
    adapter.begin_training(optimizer, training.max_steps)
    arguments = peer_arguments(
        training, folder, remove_unused_columns=False, label_names=["labels"]
    )
    trainer = PeerTrainer(
        model=model,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=examples,  # type: ignore[arg-type]
        data_collator=collate,  # type: ignore[arg-type]
        optimizers=(optimizer, None),
        # Labels are smoothed by HF Trainer's own LabelSmoother.
        compute_loss_func=None if training.label_smoothing_factor else loss,
    )
    trainer.adapter = adapter
    trainer.task_losses = []
    trainer.lengths = lengths
    trainer.callback_handler.callbacks = [
        callback
        for callback in trainer.callback_handler.callbacks
        if not isinstance(callback, transformers.PrinterCallback)
    ]
    trainer.train()
    return trainer.losses()
