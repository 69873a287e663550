"""Gradients of one's own: no other thread sees them, adds to them, or takes them away.

Gradients lie in the parameters, which a model has once. What a cell's `loss.backward()` adds there
while a run computes would move the run; so it ends in an error before it has added anything. And
for other threads than the run's these parameters have none: a cell's `zero_grad`, clipping, or step
of an optimizer finds nothing there to do.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab.errors import AdapterError, RunError

_GRAD: Any = torch.Tensor.grad


class OwnGradients:
    """Looks after the gradients of some parameters.

    Args:
        mine: whether the thread that asks may add to them; autograd's threads ask too. None: there
            is nobody to keep them from.
        whose: for errors, in words.
        hidden: whether others do not see them; not where a graph was compiled for the parameters'
            own class.
    """

    def __init__(
        self, mine: Callable[[], bool] | None = None, whose: str = "", hidden: bool = True
    ) -> None:
        self.mine, self.whose = mine, whose
        self.reached: set[int] = set()  # places of parameters that got a gradient in this step
        self._kind = _hiding(mine, self.refusal) if mine and hidden else None
        self._hidden: list[nn.Parameter] = []
        self._handles: list[RemovableHandle] = []
        self._first: Tensor | None = None  # one of the gradients of the step's earlier passes

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look after these, in place of those before."""
        self.close()
        if self.mine:
            _followed.add(self)
        for place, parameter in enumerate(parameters if self.mine else ()):
            self._handles.append(parameter.register_hook(OwnHook(self, place)))
            if self._kind is not None and type(parameter) is nn.Parameter:
                parameter.__class__ = self._kind
                self._hidden.append(parameter)

    def are_whole(self, holders: Sequence[nn.Parameter]) -> bool:
        """Whether nobody has dropped one of this step's gradients.

        Args:
            holders: what has the parameters' gradients by now, in their order: they, or masters.
        """
        found = [holders[place].grad for place in self.reached]
        kept = self._first is None or any(gradient is self._first for gradient in found)
        self._first = next((g for g in found if g is not None and not g.is_sparse), None)
        return kept and all(gradient is not None for gradient in found)

    def dropped(self) -> RunError:
        """Return the error of a step whose gradients are not whole."""
        return RunError(
            f"gradients of {self.whose} were dropped in the midst of a step, by zero_grad() in a "
            "cell, say; call it within `with run.paused() as model:`, and go on with this run by "
            "ll.resume, or start a new one"
        )

    def refusal(self, what: str) -> AdapterError:
        """Return the error of another thread that would change them, by `what`."""
        return AdapterError(
            f"{what} here would add to the gradients of {self.whose}, which trains now; do it "
            "within `with run.paused() as model:`, or on a copy (copy.deepcopy)"
        )

    def step_done(self) -> None:
        """Expect none of the gradients any more."""
        self.reached.clear()
        self._first = None

    def let_go(self) -> None:
        """Look after nothing, and leave nothing of a step under way."""
        followed = [*self._hidden]
        self.close()
        for parameter in followed:
            parameter.grad = None

    def close(self) -> None:
        """Look after nothing."""
        _followed.discard(self)
        while self._handles:
            self._handles.pop().remove()
        while self._hidden:
            self._hidden.pop().__class__ = nn.Parameter
        self.step_done()


class OwnHook:
    """What hears of one parameter's gradient before it is added to that of earlier passes."""

    __slots__ = ("owner", "place")

    def __init__(self, owner: OwnGradients, place: int) -> None:
        self.owner, self.place = owner, place

    def __call__(self, gradient: Tensor | None) -> None:
        """Raise in another thread's backward pass.

        Args:
            gradient: None: the parameter has none of what a layer gives back, and nothing is added.

        Raises:
            AdapterError: it is one.
        """
        if gradient is None:
            return
        owner = self.owner
        if owner.mine and not owner.mine():
            raise owner.refusal("a backward pass")
        owner.reached.add(self.place)


def _hiding(mine: Callable[[], bool], refusal: Callable[[str], AdapterError]) -> Any:
    """Return a class of parameters whose gradients are seen where `mine` says so.

    To whoever looks, copies or pickles it is torch's own. Autograd does not ask it.
    """

    def read(parameter: Any) -> Tensor | None:
        gradient: Tensor | None = _GRAD.__get__(parameter) if mine() else None
        return gradient

    def write(parameter: Any, gradient: Tensor | None) -> None:
        if mine():
            _GRAD.__set__(parameter, gradient)
        elif gradient is not None:
            raise refusal("setting a gradient")

    def copied(parameter: Any, memo: dict[int, Any]) -> nn.Parameter:
        if id(parameter) not in memo:
            values = parameter.data.clone(memory_format=torch.preserve_format)
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
        copy: nn.Parameter = memo[id(parameter)]
        return copy

    def shown(parameter: Any) -> str:
        return repr(nn.Parameter(parameter.data, parameter.requires_grad))

    looks = {name: getattr(nn.Parameter, name) for name in ("__module__", "__qualname__")}
    acts = {"grad": property(read, write), "__deepcopy__": copied, "__repr__": shown}
    make: Any = type(nn.Parameter)
    return make("Parameter", (nn.Parameter,), {**looks, **acts})


def _forked() -> None:
    """Keep nobody from the gradients in a forked child: those who have them are not there."""
    for own in [*_followed]:
        own.let_go()


_followed: weakref.WeakSet[OwnGradients] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
