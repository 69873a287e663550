"""Random numbers of one's own: torch's global generators belong to whoever sits at the kernel.

A seed set in another cell must not change a run's dropout, nor may the run move on what the cell
draws from. torch's dropout takes no generator, so two modes hand one in. Both hold for the thread
that enters them, and for autograd's threads that work for it. Our own layers ask for one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lora_lab._util.put_back import put_back_by
from lora_lab._util.torch_private import (
    TorchDispatchMode,
    argument_defaults,
    argument_names,
    takes_generator,
)
from lora_lab._util.transformers_private import checkpoint_functions, set_checkpoint_function
from lora_lab.errors import RunError

_swapping = threading.Lock()


class OwnRandom:
    """One stream of random numbers a device, the one that `torch.manual_seed(seed)` begins there.

    Args:
        seed: of all of them.
        device: the main one; a state calls it by its type alone.
    """

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._seed = seed
        self._device = device or torch.device("cpu")
        self._generators: dict[str, torch.Generator] = {}
        self._later: dict[str, Tensor] = {}  # states of devices that nothing has drawn on yet
        self._first = True
        self._draws = False  # the first passes did
        self._unknown = False  # they did, in functions that are not in `_DRAWING`
        self._backward = False
        self._replays = False  # blocks of the forward pass are run a second time
        self._again = 0  # how many of them are being run
        for one in {torch.device("cpu"), self._device}:
            self.generator(one)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device."""
        name = self._name(device)
        if name not in self._generators:
            self._generators[name] = torch.Generator(device).manual_seed(self._seed)
            if name in self._later:
                self._generators[name].set_state(self._later.pop(name))
        return self._generators[name]

    def state(self) -> dict[str, Tensor]:
        """Return {device: its generator's state, uint8}, as `torch.get_rng_state` does."""
        now = {name: generator.get_state() for name, generator in self._generators.items()}
        return self._later | now

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned; what is of a device that draws later waits for it."""
        self._later = dict(state)
        for name, generator in self._generators.items():
            if name in self._later:
                generator.set_state(self._later.pop(name))

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Have every operation of the block draw from here; looks at each of them, 10 µs or so."""
        with _in_force(None), _AnyOperation(self):
            yield

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Have the forward pass in the block draw from here; `backward` is to follow.

        All operations of the first two passes are looked at. Those after them are taken to draw
        where they drew: nowhere, which costs nothing, in functions that are known to, or elsewhere.
        """
        with self._looking():
            yield

    def backward(self, loss: Tensor) -> None:
        """Call `loss.backward()`.

        Raises:
            RunError: something is computed again there with dropout, by code that does not say so.
        """
        self._backward = True
        try:
            with self._looking() if self._first or self._replays else contextlib.nullcontext():
                loss.backward()
        finally:
            self._backward = self._first = False

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        with _in_force(self):
            if self._first or self._unknown:
                with _AnyOperation(self), _KnownFunctions(self, None):
                    yield
            elif self._draws:
                with _KnownFunctions(self, _AnyOperation(self)):
                    yield
            else:
                yield

    @contextlib.contextmanager
    def replayed(self, model: nn.Module) -> Iterator[None]:
        """Have the blocks that gradient checkpointing computes again see the same numbers again."""
        before = checkpoint_functions(model)

        def restore() -> None:
            for module, function in before:
                set_checkpoint_function(module, function)

        with put_back_by(restore):
            for module, function in before:
                set_checkpoint_function(module, functools.partial(self._checkpoint, function))
            yield

    def _checkpoint(
        self, checkpoint: Callable[..., Any], block: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        if _here.random is not self and not self._backward:  # another thread's pass
            return checkpoint(block, *args, **more)
        inner = checkpoint.func if isinstance(checkpoint, functools.partial) else checkpoint
        if inner is torch.utils.checkpoint.checkpoint:
            more["preserve_rng_state"] = False  # which would write into torch's global ones
        self._replays = True
        start: dict[str, Tensor] = {}

        @functools.wraps(block)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not start:
                start.update(self.state())
                return block(*args, **kwargs)
            now = self.state()
            self.set_state(start)
            self._again += 1
            try:
                return block(*args, **kwargs)
            finally:
                self._again -= 1
                self.set_state(now)

        return checkpoint(run, *args, **more)

    def draw(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run an operation that draws."""
        self._note(_here.known)
        device = next(
            (value.device for value in args if isinstance(value, Tensor)),
            torch.device(kwargs.get("device") or "cpu"),
        )
        if device.type == "meta":
            return operation(*args, **kwargs)
        generator = self.generator(device)
        if (with_generator := takes_generator(operation)) is not None:
            return with_generator(*args, **{**kwargs, "generator": generator})
        if operation is torch.ops.aten.native_dropout.default and device.type == "cpu":
            return _native_dropout(*args, generator=generator)
        return _swapped(functools.partial(operation, *args, **kwargs), device, generator)

    def quick(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what dropout on the CPU returns, without a look at its operations.

        None: it is some other function, or an odd case.
        """
        quick: dict[Any, Any] = {
            functional.dropout: _dropout,
            torch.native_dropout: _native_dropout,
        }
        make = quick.get(function)
        if make is None or not args or args[0].device.type != "cpu":
            return None
        self._note(known=True)
        return make(*args, **kwargs, generator=self.generator(args[0].device))

    def dropout(self, x: Tensor, p: float) -> tuple[Tensor, Tensor] | None:
        """Return what `torch.native_dropout` returns on the CPU; None: where others look anyhow."""
        if self._draws or x.device.type != "cpu":
            return None
        self._check_pass()
        return _native_dropout(x, p, generator=self.generator(x.device))

    def _note(self, known: bool) -> None:
        self._check_pass()
        self._draws = True
        self._unknown |= not known

    def _check_pass(self) -> None:
        if self._backward and not self._again:
            raise RunError(
                "dropout in a block that is computed again in the backward pass, by checkpointing "
                "that is not transformers' own: the second time it would drop other entries; call "
                "model.gradient_checkpointing_enable() in its place, or set dropout to 0"
            )

    def _name(self, device: torch.device) -> str:
        same = device.type == self._device.type and device.index in (None, self._device.index)
        return device.type if same or device.type == "cpu" else str(device)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` in the block, on every device, and leave torch's global generators alone."""
    with OwnRandom(seed).everywhere():
        yield


def native_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Call `torch.native_dropout(x, p, True)`, for layers of our own.

    Where a run's pass is, they ask it for its numbers: a model that draws nowhere else needs no
    look at each of its functions.
    """
    random = _here.random
    found = None if random is None else random.dropout(x, p)
    return torch.native_dropout(x, p, True) if found is None else found


@contextlib.contextmanager
def _in_force(random: OwnRandom | None) -> Iterator[None]:
    before, _here.random = _here.random, random
    try:
        yield
    finally:
        _here.random = before


class _AnyOperation(TorchDispatchMode):
    """Looks at every operation."""

    def __init__(self, random: OwnRandom) -> None:
        super().__init__()
        self._random = random

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _draws(func, args, kwargs):
            return self._random.draw(func, args, kwargs)
        return func(*args, **kwargs)


class _KnownFunctions(TorchFunctionMode):
    """Looks at the operations of functions that are known to draw; a fifth of the cost.

    Args:
        random: where the numbers come from.
        operations: that looks at the operations then; None: somebody does already.
    """

    def __init__(self, random: OwnRandom, operations: _AnyOperation | None) -> None:
        super().__init__()
        self._random = random
        self._operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _DRAWING or kwargs.get("dropout_p") == 0:
            return func(*args, **kwargs)
        if self._operations is not None:
            found = self._random.quick(func, args, kwargs)
            if found is not None:
                return found
        before, _here.known = _here.known, True
        try:
            with self._operations or contextlib.nullcontext():
                return func(*args, **kwargs)
        finally:
            _here.known = before


class _Here(threading.local):
    known = False
    random: OwnRandom | None = None  # whose pass this thread is in


_here = _Here()

_DRAWING = frozenset(
    getattr(place, name)
    for place, names in (
        (functional, "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
        (functional, "rrelu gumbel_softmax scaled_dot_product_attention"),
        (functional, "multi_head_attention_forward"),
        (torch, "dropout native_dropout bernoulli multinomial normal poisson rand rand_like randn"),
        (torch, "randn_like randint randint_like randperm"),
        (Tensor, "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial"),
        (Tensor, "normal_ random_ uniform_"),
    )
    for name in names.split()
)


def _draws(operation: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation is about to draw from a global generator."""
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return False
    names = zip(argument_names(operation), args, strict=False)
    given = {**argument_defaults(operation), **dict(names), **kwargs}
    return given.get("generator") is None and given.get("dropout_p") != 0


def _dropout(
    input: Tensor,  # noqa: A002 - the names by which torch hands them on
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator,
) -> Tensor | None:
    """Do what `torch.nn.functional.dropout` does on the CPU, bit for bit; None: in an odd case."""
    if not training or p == 0 or not input.numel():
        return input
    if inplace or not 0 < p < 1:
        return None
    return input * torch.empty_like(input).bernoulli_(1 - p, generator=generator).div_(1 - p)


def _native_dropout(
    x: Tensor, p: float, train: bool | None = True, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Do what `native_dropout` does on the CPU, bit for bit."""
    mask = torch.empty_like(x, dtype=torch.bool)
    if not (train or train is None) or not x.numel():
        return x.clone(), mask.fill_(True)
    mask.bernoulli_(1 - p, generator=generator)
    return x.mul(mask).mul_(1 / (1 - p) if p < 1 else 0.0), mask


def _swapped(operation: Callable[[], Any], device: torch.device, generator: torch.Generator) -> Any:
    """Run what takes no generator (a fused kernel of the GPU) with the global one at our place.

    Where the numbers begin is read when the kernel is launched, and put back at once.
    """
    module = torch.random if device.type == "cpu" else torch.get_device_module(device)
    where = () if device.type in ("cpu", "mps") else (device,)
    with _swapping:
        theirs = module.get_rng_state(*where)
        module.set_rng_state(generator.get_state(), *where)
        try:
            return operation()
        finally:
            moved = module.get_rng_state(*where)
            module.set_rng_state(theirs, *where)
            generator.set_state(moved)
