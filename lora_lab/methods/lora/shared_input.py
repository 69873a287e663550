"""One pass through A for the layers that read one and the same x (q, k and v; gate and up)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import saving_hooks
from lora_lab.methods.lora.operator import Terms, computing_dtype, leading_linear


@dataclass(eq=False)
class _Waiting:
    """What one leader computed for others, and for which x it holds."""

    x: weakref.ref[Tensor]
    circumstances: tuple[object, ...]
    others: Mapping[str, Terms]  # kept, so that no new factor can have an old one's id
    # {layer: (H, what it was computed from)}
    hidden: dict[str, tuple[Tensor, tuple[object, ...]]] = field(default_factory=dict)


class SharedInput:
    """Hands the thin H = Ax from the leader to the layers that read the same x.

    Holds what was not taken yet, for one x. Whoever comes with another x, or with this one after
    anything has changed, is a leader himself, so that a wrong guess about who shares costs a little
    time and nothing else. The outputs of those who shared are one graph, which may be gone through
    once from each.
    """

    def __init__(self) -> None:
        self._waiting: _Waiting | None = None

    def __reduce__(self) -> tuple[type[SharedInput], tuple[()]]:
        """Copy as an empty one: what waits belongs to one model and one forward pass."""
        return SharedInput, ()

    def take(self, x: Tensor, layer: str, terms: Terms, dropout: float) -> Tensor | None:
        """Return the layer's H if it was computed from this very x and these factors, unchanged."""
        waiting = self._waiting  # read once: another thread may be at work on the same model
        if waiting is None or waiting.x() is not x or waiting.circumstances != _circumstances(x):
            return None
        hidden, source = waiting.hidden.pop(layer, (None, ()))
        if not waiting.hidden:
            self._waiting = None
        return hidden if source == _source(terms, dropout) else None

    def lead(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        terms: Terms,
        others: Mapping[str, Terms],
        transposed: bool,
        dropout: float,
    ) -> Tensor:
        """Return `lowrank_linear`, and keep H for the other layers until they come with the same x.

        Args:
            x, weight, bias, terms, transposed, dropout: as in `lowrank_linear`.
            others: {layer: its terms} of those that may come.
        """
        A = terms[0].A
        others = {layer: theirs for layer, theirs in others.items() if _joinable(theirs, A)}
        stacks = [t[0].A if len(t) == 1 else torch.cat([u.A for u in t]) for t in others.values()]
        weakly: weakref.ref[_Waiting] | None = None

        def forget(_: object = None) -> None:
            if weakly and (left := weakly()) is not None:
                left.hidden.clear()

        # An H holds the graph below it. It must not outlive x, also where a forward pass broke off
        # half way (out of memory).
        waiting = _Waiting(weakref.ref(x, forget), _circumstances(x), others)
        weakly = weakref.ref(waiting)
        y, *found = leading_linear(x, weight, bias, terms, stacks, transposed, dropout, forget)
        for (layer, theirs), H in zip(others.items(), found, strict=True):
            waiting.hidden[layer] = H, _source(theirs, dropout)
        self._waiting = waiting
        return y


def _circumstances(x: Tensor) -> tuple[object, ...]:
    """Return all but x and A that an H depends on, its graph included."""
    # Gradient checkpointing hooks into what is saved, and runs its part again as it ran before: no
    # H may come in from outside.
    hooks = saving_hooks()
    saving = hooks and id(hooks[0])
    return x._version, computing_dtype(x), torch.is_grad_enabled(), threading.get_ident(), saving


def _source(terms: Terms, dropout: float) -> tuple[object, ...]:
    """Return what tells the factors that an H was computed from, and their state."""
    return dropout, *((id(t.A), None if t.A.is_inference() else t.A._version) for t in terms)


def _joinable(terms: Terms, A: Tensor) -> bool:
    """Whether these A's can be stacked with the leader's: FSDP may hold them in pieces just now."""
    return all(
        _kind(t.A) is _kind(A) and t.A.device == A.device and t.A.shape[1:] == A.shape[1:]
        for t in terms
    )


def _kind(A: Tensor) -> type[Tensor]:
    # PiSSA's A₀ is no parameter, and goes with the A that is one all the same.
    return Tensor if type(A) is nn.Parameter else type(A)
