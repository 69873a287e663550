"""Training in half precision by hand: torch.amp.GradScaler, AdamW on float32 copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_lab.configs import TrainingConfig
from lora_lab.methods.base import Adapter
from lora_lab.tasks.encoding import IGNORED
from lora_lab.training.schedule import scheduler_of


class ByHand(NamedTuple):
    """What a training by hand left."""

    losses: list[float]
    skipped: list[int]  # steps, from 1
    rates: list[float]
    masters: list[nn.Parameter]  # of all that is trained, float32


class CopiedUp:
    """float32 copies of parameters in half precision, for an optimizer; the others as they are."""

    def __init__(self, learned: list[nn.Parameter]) -> None:
        self.learned = learned
        self.masters = [nn.Parameter(p.float()) if p.itemsize < 4 else p for p in learned]

    def gather(self) -> None:
        """After a backward pass."""
        for parameter, master in zip(self.learned, self.masters, strict=True):
            if master is not parameter and parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad + grad
                parameter.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """After a step."""
        for parameter, master in zip(self.learned, self.masters, strict=True):
            parameter.copy_(master)


def by_hand(
    model: Any,
    adapter: Adapter,
    batches: list[dict[str, Tensor]],
    training: TrainingConfig,
    scaler: torch.amp.GradScaler | None = None,
) -> ByHand:
    """Train a causal model by the recipe of torch's docs ("Automatic Mixed Precision examples").

    As in HF Trainer the schedule takes no step where the optimizer took none.
    """
    model.train()
    copied = CopiedUp(list(adapter.parameters()))
    of = dict(zip(copied.learned, copied.masters, strict=True))
    clipped = [of[p] for p in model.parameters() if p in of]  # the order of the sum of squares
    rate = training.learning_rate
    optimizer = torch.optim.AdamW(
        copied.masters, lr=rate, weight_decay=training.weight_decay, fused=True
    )
    scheduler = scheduler_of(optimizer, training)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    passes = training.gradient_accumulation_steps
    losses: list[float] = []
    skipped: list[int] = []
    rates: list[float] = []
    for step in range(training.max_steps):
        chosen = batches[step * passes : (step + 1) * passes]
        items = sum((b["labels"][:, 1:] != IGNORED).sum() for b in chosen)
        loss: Any = 0.0
        for batch in chosen:
            share = model(**batch, num_items_in_batch=items).loss
            scaler.scale(share).backward()
            loss = loss + share.detach()
            copied.gather()
        losses.append(float(loss))
        rates.append(float(scheduler.get_last_lr()[0]))
        before = scaler.get_scale()
        scaler.unscale_(optimizer)
        if training.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(clipped, training.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            skipped.append(step + 1)
        else:
            scheduler.step()
        optimizer.zero_grad()
        copied.write()
    return ByHand(losses, skipped, rates, copied.masters)
