"""One pass through A for the layers that read one and the same x (q, k and v; gate and up)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import pre_hooks_of, saving_hooks
from lora_lab.methods.lora.operator import Terms, computing_dtype, leading_linear, lowrank_linear


class _Waiting(NamedTuple):
    """What a leader computed for one other layer, and for what it holds."""

    x: weakref.ref[Tensor]
    circumstances: tuple[object, ...]
    terms: Terms  # kept, so that no new factor can have an old one's id
    dropout: float
    hidden: Tensor  # H


class SharedInput:
    """Hands the thin H = Ax from the leader to the layers that read the same x.

    It does so within one call of the module that holds them all, in one thread, where no factor is
    written: a tensor's `_version` does not tell (see `steady_weights`). Whoever is called alone,
    comes with another x, or with this one after anything has changed, is a leader himself, so that
    a wrong guess about who shares costs a little time and nothing else. The outputs of those who
    shared are one graph, which may be gone through once from each.
    """

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, _Waiting]] = {}  # {thread in a call: {layer: its H}}
        self._users = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copy without what waits: it belongs to one model and one forward pass."""
        return self.__dict__ | {"_calls": {}}

    @classmethod
    def around(cls, holder: nn.Module) -> SharedInput:
        """Return the one that hears of a module's calls, for one adapter more; see `leave`."""
        heard = (getattr(hook, "__self__", None) for hook in pre_hooks_of(holder).values())
        shared = next((one for one in heard if isinstance(one, cls)), None) or cls()
        if not shared._users:
            shared._hooks = [
                holder.register_forward_pre_hook(shared.begin),
                holder.register_forward_hook(shared.end, always_call=True),
            ]
        shared._users += 1
        return shared

    def leave(self) -> None:
        """Hear of no calls any more, after the last adapter."""
        self._users -= 1
        if not self._users:
            for hook in self._hooks:
                hook.remove()

    def begin(self, *_: Any) -> None:
        """Begin a call of the module that holds the layers."""
        if not torch.compiler.is_compiling():
            self._calls[threading.get_ident()] = {}

    def end(self, *_: Any) -> None:
        """End it: nothing waits any longer, also where it broke off (out of memory)."""
        if not torch.compiler.is_compiling():
            self._calls.pop(threading.get_ident(), {}).clear()

    def take(self, x: Tensor, layer: str, terms: Terms, dropout: float) -> Tensor | None:
        """Return the layer's H if it was computed in this call from this very x and A's."""
        own = self._calls.get(threading.get_ident(), {}).pop(layer, None)
        if own is None or own.x() is not x or own.circumstances != _circumstances(x):
            return None
        same = len(terms) == len(own.terms) and all(
            t.A is kept.A for t, kept in zip(terms, own.terms, strict=True)
        )
        return own.hidden if same and dropout == own.dropout else None

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
        waiting = self._calls.get(threading.get_ident())
        if waiting is None:
            return lowrank_linear(x, weight, bias, terms, transposed, dropout)
        A = terms[0].A
        others = {layer: theirs for layer, theirs in others.items() if _joinable(theirs, A)}
        stacks = [t[0].A if len(t) == 1 else torch.cat([u.A for u in t]) for t in others.values()]

        # An H holds the graph below it. It must not outlive x, also where a call was interrupted.
        def forget(_: object = None) -> None:
            waiting.clear()

        seen, circumstances = weakref.ref(x, forget), _circumstances(x)
        y, *found = leading_linear(x, weight, bias, terms, stacks, transposed, dropout, forget)
        for (layer, theirs), H in zip(others.items(), found, strict=True):
            waiting[layer] = _Waiting(seen, circumstances, theirs, dropout, H)
        return y


def _circumstances(x: Tensor) -> tuple[object, ...]:
    """Return all but x and A that an H depends on, its graph included."""
    # Gradient checkpointing hooks into what is saved, and runs its part again as it ran before: no
    # H may come in from outside.
    hooks = saving_hooks()
    # What a model's code does to an activation in place does raise its version.
    return x._version, computing_dtype(x), torch.is_grad_enabled(), hooks and id(hooks[0])


def _joinable(terms: Terms, A: Tensor) -> bool:
    """Whether these A's can be stacked with the leader's: FSDP may hold them in pieces just now."""
    return all(
        _kind(t.A) is _kind(A) and t.A.device == A.device and t.A.shape[1:] == A.shape[1:]
        for t in terms
    )


def _kind(A: Tensor) -> type[Tensor]:
    # PiSSA's A₀ is no parameter, and goes with the A that is one all the same.
    return Tensor if issubclass(type(A), nn.Parameter) else type(A)
