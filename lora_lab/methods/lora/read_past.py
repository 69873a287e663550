"""Weights that a module reads past the layer that holds them: ``F.linear(x, self.o.weight)``.

torch's attention does so with `out_proj`, its encoder's fast path with all matrices of a layer, and
Mamba with `conv1d` and `dt_proj`. Such a layer's forward is not called, so an adapted one has to
give W₀ + ΔW to whoever reads its weight. The code of the modules' methods tells which ones.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# What is looked at, not computed with. Whoever takes `data` writes.
_LOOKS = frozenset(
    (
        *("data", "device", "dim", "dtype", "element_size", "is_cuda", "is_floating_point"),
        *("is_meta", "is_quantized", "is_sparse", "layout", "ndim", "new_empty", "new_full"),
        *("new_ones", "new_tensor", "new_zeros", "numel", "quant_state", "register_hook"),
        *("requires_grad", "requires_grad_", "shape", "size"),
    )
)
_LOOKING = ("hasattr", "id", "isinstance", "type")
# Methods that make, load or save weights.
_NOT_FORWARD = re.compile(r"__|_?(init|load|reset|resize|save|tie)|set_|post_init")


def read_past(modules: Mapping[str, nn.Module], only: bool = False) -> dict[nn.Module, str]:
    """Return {layer: the path of a module above it that reads its weight by itself}.

    Args:
        modules: {path: module} of a whole model.
        only: leave out what is called as well, in another branch (BLOOM's `dense`); not torch's
            own encoder, whose fast path takes over in eval mode.
    """
    found = {}
    for path, module in modules.items():
        parts = path.split(".")
        for depth in range(len(parts)):
            above = ".".join(parts[:depth])
            if above not in modules:
                continue
            kind: Any = type(modules[above])
            reads, calls = _uses(kind)
            below = tuple(parts[depth:])
            called = only and below in calls and not issubclass(kind, nn.TransformerEncoderLayer)
            called &= not isinstance(module, nn.Embedding)  # it is looked up, and is the head
            if below in reads and not called:
                found[module] = above or kind.__name__
    return found


_Paths = frozenset[tuple[str, ...]]


@functools.cache
def _uses(kind: Any) -> tuple[_Paths, _Paths]:
    """Return the paths below a module of this class whose weight its methods read, or call."""
    reads: set[tuple[str, ...]] = set()
    calls: set[tuple[str, ...]] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            break
        for name, member in vars(base).items():
            function = inspect.unwrap(getattr(member, "fget", None) or member)
            if not isinstance(function, FunctionType) or _NOT_FORWARD.match(name):
                continue
            code = function.__code__
            for path in _chains(code, code.co_varnames[0]) if code.co_argcount else ():
                found = [*path, ""]
                if "weight" not in path[1:]:
                    calls.add(path)
                elif found[(at := found.index("weight", 1)) + 1] not in _LOOKS:
                    reads.add(path[:at])
    return frozenset(reads), frozenset(calls)


def _chains(code: CodeType, me: str) -> Iterator[tuple[str, ...]]:
    """Yield (a, b) for every ``self.a.b`` that code uses, also within its inner functions."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    chain: list[str] = []
    for at, step in enumerate([*steps, None]):
        if step is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain.append(str(step.argval))
            continue
        start = at - len(chain) - 1  # where `self` is loaded
        looking = start > 0 and steps[start - 1].argval in _LOOKING
        if chain and start >= 0 and not looking and _loads(steps[start], me):
            yield tuple(chain)
        chain = []
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _chains(inner, me)


def _loads(step: dis.Instruction, me: str) -> bool:
    """Whether an instruction leaves `self` on top of the stack; from 3.13 on it may load two."""
    last = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
    return step.opname.startswith("LOAD_") and last == me
