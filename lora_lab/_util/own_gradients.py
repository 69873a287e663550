"""Gradients of one's own: no other thread's backward pass adds to them, or takes them away unseen.

Gradients lie in the parameters, which a model has once. What a cell's `loss.backward()` adds there
while a run computes would move the run; so it ends in an error before it has added anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab.errors import AdapterError, RunError


class OwnGradients:
    """Looks after the gradients of some parameters.

    Args:
        mine: whether the thread that asks may add to them; autograd's threads ask too. None: there
            is nobody to keep them from.
        whose: for errors, in words.
    """

    def __init__(self, mine: Callable[[], bool] | None = None, whose: str = "") -> None:
        self.mine, self.whose = mine, whose
        self.reached: set[int] = set()  # places of parameters that got a gradient in this step
        self._handles: list[RemovableHandle] = []
        self._first: Tensor | None = None  # one of the gradients of the step's earlier passes

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look after these, in place of those before."""
        self.close()
        for place, parameter in enumerate(parameters if self.mine else ()):
            self._handles.append(parameter.register_hook(OwnHook(self, place)))

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

    def step_done(self) -> None:
        """Expect none of the gradients any more."""
        self.reached.clear()
        self._first = None

    def close(self) -> None:
        """Look after nothing."""
        while self._handles:
            self._handles.pop().remove()
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
            raise AdapterError(
                f"a backward pass here would add to the gradients of {owner.whose}, which trains "
                "now; do it within `with run.paused() as model:`, or on a copy (copy.deepcopy)"
            )
        owner.reached.add(self.place)
