"""Logits for labels alone: what a model's output layer makes of prompt and padding is not computed.

In a block of `label_logits` the output layer is given no rows, and what it returns is replaced by
`LabelLogits`: to the model's own code the logits of the whole batch, of which nothing is there.
What is done with them entry by entry (a softcap, a scale, a change of type) is remembered, and done
to the rows that `cross_entropy` turns out to need. Whatever else is done with them gets them whole.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lab._util.graph_nodes import nodes_behind
from lora_lab._util.own_gradients import OwnHook
from lora_lab._util.torch_private import hollow_tensor, hooks_of, is_compiled, tree_map
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.tasks.chunked_loss import summed_cross_entropy

Step = Callable[[Tensor], Tensor]


@dataclass
class Pass:
    """One forward pass in a block of `label_logits`.

    Attributes:
        most: labels of the batch that are not ignored, or more.
        expected: see `summed_cross_entropy`.
        whole: why all logits are computed; "": they are not.
        losses: the latest cross-entropy's by labels, 0 where they are ignored, in float32 or more;
            None: there was none, or its gradients were wanted.
    """

    most: int
    expected: Tensor | float = 1.0
    whole: str = "the model does not call its output layer"
    head: nn.Module | None = None
    read: Tensor | None = None  # what the output layer is about to be given
    losses: Tensor | None = None


class _Here(threading.local):
    now: Pass | None = None  # this thread's


_here = _Here()


@contextlib.contextmanager
def label_logits(
    model: Any, most: int, expected: Tensor | float = 1.0, why_whole: str = ""
) -> Iterator[Pass]:
    """Compute logits for labels alone in the forward pass, and the loss, within the block.

    Args:
        model: a transformers model, adapted or not; another thread's calls are as ever.
        most: labels of the batch that are not ignored; more are right too.
        expected: the gradient that the summed loss will be given; see `summed_cross_entropy`.
        why_whole: the logits are to be computed whole, for this reason.
    """
    head, why = output_layer(model)
    if why_whole or head is None:
        yield Pass(most, whole=why_whole or why)
        return
    own = Pass(most, expected, head=head)
    handles = [head.register_forward_pre_hook(_enter), head.register_forward_hook(_leave)]
    before, _here.now = _here.now, own
    try:
        yield own
    finally:
        _here.now = before
        for handle in handles:
            handle.remove()


def output_layer(model: Any) -> tuple[nn.Module | None, str]:
    """Return the layer whose output are a model's logits, or None and why it cannot be used."""
    inner = unwrapped(model)
    find = getattr(inner, "get_output_embeddings", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Module) or not (
        isinstance(head, nn.Linear) or packing(head) is not None
    ):
        return None, "no output layer of the model is known"
    if isinstance(model, nn.DataParallel) or any(map(is_compiled, (model, inner, head))):
        return None, "the model is compiled, or runs on several devices at once"
    ours = _enter, _leave  # of another thread's pass
    if any(hook not in ours for hook in hooks_of(head)) or hasattr(head, "unshard"):
        return None, "its output layer has hooks"
    return head, ""


def _enter(head: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
    """Keep what the output layer shall read, and give it no rows."""
    own = _here.now
    if own is None or own.head is not head or own.read is not None:  # another thread's hook
        return None
    if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        own.whole = "its output layer is called in a way of its own"
        return None
    own.read = args[0]
    learns = torch.is_grad_enabled() and own.read.requires_grad
    return (own.read.detach()[..., :0, :].requires_grad_(learns),)


def _leave(head: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
    own = _here.now
    if own is None or own.head is not head or own.read is None:
        return None
    read, own.read = own.read, None
    source = _Source(cast(Any, head), read, own, torch.is_grad_enabled())
    leaves = source.find_leaves(output, args[0])
    if any(not isinstance(hook, OwnHook) for leaf in leaves for hook in hooks_of(leaf)):
        own.whole = "parameters of its output layer have hooks"
        return source.all()
    own.whole = ""
    return LabelLogits(source, (*read.shape[:-1], output.shape[-1]), output.detach())


class _Source:
    """What logits are made of: an output layer and all that it shall read.

    Args:
        head: the layer.
        read: (…, width).
        own: the pass.
        learning: whether gradients were recorded when it was called.
    """

    def __init__(self, head: Any, read: Tensor, own: Pass, learning: bool) -> None:
        self.head, self.read, self.own = head, read, own
        self.leaves: list[Tensor] = []
        self.made: Tensor | None = None  # all of them
        self._learning = learning

    def find_leaves(self, output: Tensor, given: Tensor) -> list[Tensor]:
        """Find the parameters that learn and have a part in the layer's output."""
        for node in nodes_behind(output):
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf is not given:
                self.leaves.append(leaf)
        return self.leaves

    def all(self) -> Tensor:
        """Return the logits of everything, (…, vocabulary)."""
        if self.made is None:
            with torch.set_grad_enabled(self._learning):
                self.made = self.head.forward(self.read)
        return cast(Tensor, self.made)

    def summed(
        self,
        steps: tuple[Step, ...],
        labels: Tensor,
        ignored: int,
        size: int,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Return the summed cross-entropy of those rows that have labels."""
        rows = self.read.flatten(0, -2)
        leading = (1,) * (self.read.ndim - 2)

        def logits_of(part: Tensor) -> Tensor:
            logits = self.head.forward(part.view(*leading, *part.shape))
            for step in steps:
                logits = step(logits)
            return cast(Tensor, logits.view(-1, size))

        # Those with labels first, without waiting for the device to say how many they are.
        order = (labels == ignored).to(torch.uint8).argsort(stable=True)[: self.own.most]
        each: list[Tensor] = []
        total = summed_cross_entropy(
            logits_of,
            rows.index_select(0, order.to(rows.device)),
            labels.index_select(0, order).to(rows.device),
            vocabulary=size,
            ignored=ignored,
            leaves=self.leaves,
            expected=self.own.expected,
            smoothing=smoothing,
            each=each,
        )
        if each:
            losses = torch.cat(each)
            self.own.losses = losses.new_zeros(len(labels)).index_copy(
                0, order.to(losses.device), losses
            )
        return total


class LabelLogits(Tensor):
    """Logits of which nothing has been computed yet. What reads them otherwise gets them whole."""

    source: _Source
    empty: Tensor  # (…, 0, vocabulary), after the same steps: tells their type
    steps: tuple[Step, ...]

    @staticmethod
    def __new__(
        cls: Any,
        source: _Source,
        shape: tuple[int, ...],
        empty: Tensor,
        steps: tuple[Step, ...] = (),
    ) -> LabelLogits:
        """Make a tensor of that shape without memory."""
        made = hollow_tensor(cls, shape, empty)
        made.source, made.empty, made.steps = source, empty, steps
        return cast(LabelLogits, made)

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKING:
            return super().__torch_function__(func, types, args, kwargs)
        logits, *others = args or (None,)
        if isinstance(logits, LabelLogits):
            found = None
            alike = func in _ENTRYWISE and all(map(logits._is_same_everywhere, others))
            if alike or (func is Tensor.__getitem__ and _is_of_vocabulary(*others)):
                found = logits._then(lambda part: func(part, *others, **kwargs))
            elif func in _SHAPING:
                found = logits._shaped(func, others, kwargs)
            elif func is functional.cross_entropy:
                found = logits._cross_entropy(*others, **kwargs)
            if found is not None:
                return found
        name = getattr(func, "__name__", str(func))
        return func(*tree_map(_wholly(name), args), **tree_map(_wholly(name), kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise TypeError(
            f"{func} was given logits of which only the labels' are computed; read output.logits "
            "by torch's functions, or set model.loss_function, with which they are computed whole"
        )

    def whole(self, reader: str) -> Tensor:
        """Compute all of them, for the function that asks for them."""
        own = self.source.own
        own.whole = own.whole or f"{reader} reads them"
        logits = self.source.all()
        for step in self.steps:
            logits = step(logits)
        return logits.view(tuple(self.shape))

    def _then(self, step: Step) -> Tensor:
        empty = step(self.empty)
        shape = (*self.shape[:-1], empty.shape[-1])
        return LabelLogits(self.source, shape, empty, (*self.steps, step))

    def _is_same_everywhere(self, other: Any) -> bool:
        """Whether a function's other argument is the same for each row."""
        if not isinstance(other, Tensor):
            return True
        one_row = other.ndim == 0 or other.numel() == other.shape[-1]
        return one_row and not other.requires_grad and not isinstance(other, LabelLogits)

    def _shaped(self, func: Any, others: Any, kwargs: Any) -> Tensor | None:
        """Return them in another shape of as many rows."""
        shape = func(self.empty.new_empty(()).expand(self.shape), *others, **kwargs).shape
        if shape[-1:] != self.shape[-1:]:
            return None
        return LabelLogits(self.source, tuple(shape), self.empty, self.steps)

    def _cross_entropy(
        self, labels: Tensor, weight: Any = None, *, reduction: str = "mean", **options: Any
    ) -> Tensor | None:
        """Return what `cross_entropy` does; None: of another kind than the usual one."""
        ignored = options.pop("ignore_index", -100)
        smoothing = options.pop("label_smoothing", 0.0)
        odd = (
            self.source.made is not None
            or weight is not None
            or any(options.values())
            or self.ndim != 2
            or labels.ndim != 1
        )
        if odd or reduction not in ("sum", "mean") or labels.is_floating_point():
            return None
        total = self.source.summed(self.steps, labels, ignored, self.shape[-1], smoothing)
        return total if reduction == "sum" else total / (labels != ignored).sum()


def _is_of_vocabulary(key: Any) -> bool:
    """Whether `logits[key]` leaves out words, of each row the same: `logits[..., :n]`."""
    return isinstance(key, tuple) and key[:-1] == (...,) and isinstance(key[-1], slice)


def _wholly(reader: str) -> Callable[[Any], Any]:
    return lambda value: value.whole(reader) if isinstance(value, LabelLogits) else value


_ASKING = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}
_ENTRYWISE = {
    *(torch.tanh, torch.mul, torch.div, torch.add, Tensor.tanh, Tensor.float, Tensor.to),
    *(Tensor.contiguous, Tensor.mul, Tensor.div, Tensor.add, Tensor.sub, Tensor.true_divide),
    *(Tensor.__mul__, Tensor.__rmul__, Tensor.__truediv__, Tensor.__add__, Tensor.__sub__),
}
_SHAPING = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten}
