"""The loss of one pass: what is trained with, and what is said of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import ModelError
from lora_lab.tasks import own_loss
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.label_logits import label_logits
from lora_lab.training import processes

Share = Callable[..., Tensor]  # (output, labels, num_items_in_batch)


class PassLoss(NamedTuple):
    """One pass of a step, times the number of processes: DDP takes their mean.

    Attributes:
        trained: what the gradients are of, a share of the step's; the shares add up.
        said: the pass's share of the step's mean cross-entropy, where `trained` has more in it, or
            other things; None: it is `trained`.
        whole: why the logits of all tokens were computed, not of labels alone; "": they were not.
    """

    trained: Tensor
    said: Tensor | None = None
    whole: str = ""


class PassLosses:
    """Makes the losses of one training's passes.

    Args:
        model: that learns.
        share: (output, labels, num_items_in_batch) → a pass's share of the step's mean loss; None:
            the model's own loss.
        smoothing: of labels; `share` takes it as `label_smoothing` where it is not 0.
    """

    def __init__(self, model: Any, share: Share | None, smoothing: float = 0.0) -> None:
        self._model = unwrapped(model)
        self._family_share = share
        self._share: Share = share or own_loss.causal_share
        self._smoothed: Share | None = None
        if smoothing:
            self._smoothed = functools.partial(self._share, label_smoothing=smoothing)
        self._takes_items = _takes_items(self._model)
        self._plain = share is None and own_loss.is_cross_entropy(self._model)
        self._asks = own_loss.asks_for_more(self._model)
        self._own_function = share is None and own_loss.has_loss_function(self._model)

    def __call__(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        items: Tensor,
        passes: int,
        *,
        labels: int,
        scale: float = 1.0,
    ) -> PassLoss:
        """Go forward.

        Args:
            model: the model, or what wraps it for several processes.
            inputs: a batch with its labels.
            items: labels of all passes of the step, on all processes.
            passes: how many they are, on this process.
            labels: of the batch, or more.
            scale: of the loss, in float16.

        Raises:
            ModelError: the model returns no loss.
        """
        if inputs["labels"].ndim != 2:
            return self._of(model, inputs, items, passes)
        expected = scale * processes.count() / items
        with label_logits(model, labels, expected, self._why_whole(model)) as logits:
            loss = self._of(model, inputs, items, passes)
        return loss._replace(whole=logits.whole)

    def _why_whole(self, model: Any) -> str:
        if getattr(model, "find_unused_parameters", False):
            return "DDP looks through the output for parameters that a pass leaves out"
        if processes.sharded() and not self._plain:
            return "FSDP gathers the output layer's weight for the model's own loss alone"
        asked = self._smoothed is None and self._family_share is None
        return own_loss.why_whole(self._model) if asked else ""

    def _of(self, model: Any, inputs: dict[str, Tensor], items: Tensor, passes: int) -> PassLoss:
        labels, count = inputs["labels"], processes.count()
        alone = self._smoothed or self._family_share  # the model's own loss has no part in it
        if alone is not None and not (self._asks and labels.ndim == 2):
            del inputs["labels"]
            return PassLoss(alone(model(**inputs), labels, items) * count)
        if self._takes_items and self._family_share is None:
            inputs["num_items_in_batch"] = items
        output = model(**inputs)
        logits = getattr(output, "logits", None)
        readable = logits is not None and logits.shape[:-1] == labels.shape
        single = passes == count == 1 and self._smoothed is None
        plain = self._plain and self._smoothed is None
        if not readable or (plain and (self._takes_items or single)):
            own = _own(output, self._model)
            return PassLoss(own * count if self._takes_items else own / passes)
        if not own_loss.added(self._model, output):
            share = (self._smoothed or self._share)(output, labels, items) * count
            if self._smoothed or self._plain or not self._own_function:
                return PassLoss(share)
            own = _own(output, self._model)  # of a `loss_function` that somebody has set
            return PassLoss(own * count if self._takes_items else own / passes, share.detach())
        own = _own(output, self._model)
        with torch.set_grad_enabled(not single):
            share = (self._smoothed or self._share)(output, labels, items) * count
            if not single:  # what is added is a mean of the pass, not a share of the step's
                learned = labels[:, 1:] if self._family_share is None else labels
                divided = items if "num_items_in_batch" in inputs else (learned != IGNORED).sum()
                own = share + (own - self._share(output, labels, divided)) / passes
        return PassLoss(own, share.detach())


def _own(output: Any, model: Any) -> Tensor:
    found: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output[0]
    if found is None:
        raise ModelError(
            f"{type(model).__name__} returns no loss; load the class of its architecture that has "
            "a head for the task"
        )
    return found


def _takes_items(model: Any) -> bool:
    """Whether a model's own loss is divided by `num_items_in_batch`, as HF Trainer finds it out."""
    if (told := getattr(model, "accepts_loss_kwargs", None)) is not None:
        return bool(told)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def label_count(batch: Mapping[str, Tensor]) -> int:
    """Return of how many labels the loss of a batch is the mean."""
    labels = batch["labels"]
    if labels.ndim > 1 and "decoder_input_ids" not in batch:
        labels = labels[:, 1:]  # the first token of an example is never predicted
    return int((labels != IGNORED).sum())
