"""What a thread has to itself."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import torch

from lora_lab._util.thread_own import ThreadOwn


def elsewhere(ask: Any) -> Any:
    """Return what another thread is answered."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


def test_every_thread_has_its_own_value():
    own: ThreadOwn[list[int]] = ThreadOwn(list)
    own.here().append(1)
    assert own.here() == [1]
    assert elsewhere(own.here) == []
    assert elsewhere(own.here) == []
    assert own.here() == [1]


def test_copies_have_none_yet():
    own: ThreadOwn[list[int]] = ThreadOwn(list)
    own.here().append(1)
    for copied in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert copied.here() == []


class Kept:
    pass


def test_values_go_with_their_owner():
    own = ThreadOwn(Kept)
    value = weakref.ref(own.here())
    del own
    gc.collect()
    assert value() is None


class Nested(torch.autograd.Function):
    """Goes backward within its own backward pass, so many times more; then calls somebody."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, left: int, last: Any) -> torch.Tensor:
        ctx.left, ctx.last = left, last
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        if ctx.left == 0:
            ctx.last()
        else:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                Nested.apply(x, ctx.left - 1, ctx.last).backward()
        return gradient, None, None


def test_autograds_threads_have_that_of_the_thread_they_work_for():
    # Passes nested 60 deep go on on threads of autograd's pool (MAX_DEPTH, engine.h), with the
    # state that a GPU's thread is given too.
    own: ThreadOwn[list[int]] = ThreadOwn(list)
    own.here().append(7)
    seen: list[Any] = []
    x = torch.ones(1, requires_grad=True)
    y = Nested.apply(x, 70, lambda: seen.append((threading.get_ident(), list(own.here()))))
    y.backward()
    ((thread, value),) = seen
    assert thread != threading.get_ident()
    assert value == [7]
