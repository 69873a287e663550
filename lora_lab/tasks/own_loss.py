"""What a causal model calls its loss, and the mean cross-entropy of the learned tokens in it.

Most models' own loss is just that, from transformers' ForCausalLMLoss. Some add to it what trains a
router; some do not shift the labels (BartForCausalLM); a user may have set `model.loss_function`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.label_logits import label_logits

_ADDED = ("aux_loss", "encoder_aux_loss", "decoder_aux_loss")  # of outputs


def has_loss_function(model: Any) -> bool:
    """Whether a model's forward asks its `loss_function`, which shifts the labels."""
    forward = inspect.unwrap(type(unwrapped(model)).forward)
    return "loss_function" in forward.__code__.co_names


def is_cross_entropy(model: Any) -> bool:
    """Whether a model's own loss is the mean cross-entropy of the learned tokens, nothing else."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    own = unwrapped(model)
    plain = has_loss_function(own) and own.loss_function is ForCausalLMLoss
    return plain and not asks_for_more(own)


def asks_for_more(model: Any) -> bool:
    """Whether a model's config has it add another loss to its own: its routers', its logits'."""
    config = getattr(unwrapped(model), "config", None)
    configs = [config, getattr(config, "text_config", None)]
    return any(
        getattr(own, "output_router_logits", False) or getattr(own, "z_loss_coefficient", 0)
        for own in configs
    )


def added(model: Any, output: Any) -> bool:
    """Whether a pass's own loss has something added."""
    known = any(getattr(output, name, None) is not None for name in _ADDED)
    return known or bool(getattr(unwrapped(model).config, "z_loss_coefficient", 0))


def token_losses(output: Any, labels: Tensor) -> Tensor:
    """Return −log p of each token that follows another, flat; 0 where it is not to be learned.

    Args:
        output: the model's, with logits of shape (batch, length, vocabulary).
        labels: int64, (batch, length); -100 is left out, and so is each row's first.
    """
    logits = output.logits.float()
    return cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        _following(labels).to(logits.device),
        ignore_index=IGNORED,
        reduction="none",
    )


def causal_share(
    output: Any, labels: Tensor, num_items_in_batch: Any, label_smoothing: float = 0.0
) -> Tensor:
    """Return one pass's share of a step's mean cross-entropy, as ForCausalLMLoss computes it.

    Args:
        output: the model's, with logits of shape (batch, length, vocabulary).
        labels: int64, (batch, length); -100 is left out, and so is each row's first.
        num_items_in_batch: labels of all passes of the step; 1: the share is the sum.
        label_smoothing: ε, as torch's cross_entropy and transformers' LabelSmoother take it.
    """
    logits = output.logits.float()
    following = _following(labels).to(logits.device)
    total = cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        following,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / num_items_in_batch


def _following(labels: Tensor) -> Tensor:
    return pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1)


def why_whole(model: Any) -> str:
    """Return why a model's own loss needs all logits; "": it does not, as far as is known.

    A `loss_function` that somebody has set may hand them to kernels that ask for every row.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    own = unwrapped(model)
    theirs = has_loss_function(own) and own.loss_function is not ForCausalLMLoss
    return "the model has a loss_function of its own" if theirs else ""


def summed_loss(model: Any, batch: Mapping[str, Tensor]) -> tuple[float, int]:
    """Return the summed cross-entropy of a batch's learned tokens, nats, and how many they are."""
    total, count, _ = losses_by_row(model, batch)
    return total, count


def losses_by_row(
    model: Any, batch: Mapping[str, Tensor]
) -> tuple[float, int, list[tuple[float, int]]]:
    """Return what `summed_loss` does, and each row's part of both. No gradients are recorded."""
    counts = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
    most = int((batch["labels"] != IGNORED).sum())
    with torch.no_grad(), label_logits(model, most, why_whole=why_whole(model)) as own:
        output = model(**batch)
        if is_cross_entropy(model):  # the mean over this batch's labels
            total = output.loss.item() * sum(counts)
        else:
            total = causal_share(output, batch["labels"], 1).item()
        losses = token_losses(output, batch["labels"]) if own.losses is None else own.losses
    by_row = losses.view(len(counts), -1).cpu().double().sum(1).tolist()
    return total, sum(counts), list(zip(by_row, counts, strict=True))
