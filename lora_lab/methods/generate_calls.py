"""When a model's `generate` begins and ends, for adapters that have to know.

Without a cache `generate` gives the model prompt and answer anew for every token, and no forward
pass could tell where the one ends and the other begins.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any, Protocol

_listening = threading.Lock()  # held while somebody begins to listen, or ceases


class Listener(Protocol):
    """What wants to know, on the thread that calls `generate`."""

    def begin_generating(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hear that `generate` begins, and what it is called with."""

    def end_generating(self) -> None:
        """Hear that it has ended."""


class _Generate:
    """Stands in for a model's `generate`, and tells the listeners."""

    def __init__(self, model: Any) -> None:
        self.listeners: list[Listener] = []
        self._model = model
        self._generate = model.generate
        functools.update_wrapper(self, self._generate)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled without what the wrapped function lent: its annotations cannot be."""
        own = self._generate
        of_class = getattr(own, "__func__", None) is getattr(type(self._model), "generate", None)
        state = {"listeners": self.listeners} | ({} if of_class else {"_generate": own})
        return _Generate, (self._model,), state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listeners = list(self.listeners)
        try:
            for listener in listeners:
                listener.begin_generating(args, kwargs)
            return self._generate(*args, **kwargs)
        finally:
            for listener in listeners:
                listener.end_generating()


def watch(model: Any, listener: Listener) -> None:
    """Tell a listener of the model's `generate` from now on."""
    with _listening:
        if not isinstance(vars(model).get("generate"), _Generate):
            model.generate = _Generate(model)
        model.generate.listeners.append(listener)


def unwatch(model: Any, listener: Listener) -> None:
    """Do so no longer; with the last one gone, the model's `generate` is its own again."""
    with _listening:
        own = vars(model).get("generate")
        if isinstance(own, _Generate):
            own.listeners = [other for other in own.listeners if other is not listener]
            if not own.listeners:
                del model.generate
