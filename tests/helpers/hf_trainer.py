"""The same training by HF Trainer: the oracle of our loop's losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lora_lab.configs import TrainingConfig
from lora_lab.methods.base import Adapter
from lora_lab.training.sampler import StepSampler
from lora_lab.training.trainer import parameter_groups


class PeerTrainer(transformers.Trainer):
    """HF Trainer in the order of our sampler, with an adapter's penalty, that keeps its losses."""

    adapter: Adapter
    task_losses: list[Tensor]
    lengths: Sequence[Any] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        rows = len(self.train_dataset)  # type: ignore[arg-type]
        steps, seed = self.args.max_steps, self.args.seed
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
        passes = self.args.gradient_accumulation_steps
        found = []
        for start in range(0, len(self.task_losses), passes):
            total: Any = 0.0
            for share in self.task_losses[start : start + passes]:
                total = total + share
            found.append(float(total))
        return found


def peer_arguments(
    training: TrainingConfig, folder: Path, **more: Any
) -> transformers.TrainingArguments:
    """Return a run's settings as HF Trainer's; nothing is saved or logged."""
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps,
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
