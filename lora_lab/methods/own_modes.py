"""The modes of a model's modules while a run has it: the run's are its own, on its thread.

`model.eval()` in a cell, and every evaluation, sets a flag on each module, which a pass under way
would read. So the run's flags are kept apart: for their thread (and autograd's, which works for it)
modules have them, for all others the flags that are set on them. It takes a class of their own, for
as long as the run has the model; to whoever looks, copies or pickles, it is the old one. It also
refuses `model.half()`, `model.load_state_dict(…)` and the like in a cell, which would change the
weights under the run's hands.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.class_swap import disguised
from lora_lab._util.put_back import put_back_by
from lora_lab._util.thread_own import ThreadOwn
from lora_lab._util.torch_private import is_compiled
from lora_lab.errors import AdapterError

_FLAG = "training"


class _Modes:
    """A thread's own flags, {a module's id: whether it trains}; None: it has those of everybody."""

    own: dict[int, bool] | None = None


_modes: ThreadOwn[_Modes] = ThreadOwn(_Modes)


class _Here(threading.local):
    own: dict[int, bool] | None = None  # the same of a run's thread, which asks most often


_here = _Here()


def _own() -> dict[int, bool] | None:
    return _here.own or _modes.here().own


class _OwnMode:
    """Mixed into a module's class while a run has its model."""

    @property
    def training(self) -> bool:
        own = _own()
        everybodys: bool = self.__dict__[_FLAG]
        return everybodys if own is None else own.get(id(self), everybodys)

    @training.setter
    def training(self, value: bool) -> None:
        own = _own()
        if own is not None and id(self) in own:
            own[id(self)] = value
        else:
            self.__dict__[_FLAG] = value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        refuse_conversion(cast(nn.Module, self), fn)
        return cast(Any, super())._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        # `load_state_dict` comes here before it writes anything, and that of a module around it.
        refuse_loading(cast(nn.Module, self))
        cast(Any, super())._load_from_state_dict(*args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = cast(Any, super().__reduce_ex__(max(2, protocol)))
        return plain_reduce(made, type(self), class_of(cast(Any, self)))


def plain_reduce(made: Any, kind: type, plain: Any) -> Any:
    """Return what `__reduce_ex__` has made of an object, as if its class were the plain one."""
    if isinstance(made, str):
        return made
    make, args, *rest = made

    def of_class(value: Any) -> Any:
        return plain if value is kind else value

    if getattr(make, "__name__", "") == "__newobj__":  # pickle compares its class to ours
        make = _new
    return of_class(make), tuple(map(of_class, args)), *rest


def _new(kind: Any, *args: Any) -> Any:
    return kind.__new__(kind, *args)


class OwnModes:
    """A run's modes on one model.

    Args:
        model: that it has. Its modules start in the modes that they are in.
        apart: whether there is anybody to keep them from.
        whose: for errors, in words.

    Attributes:
        shared: whether they are everybody's nonetheless.
    """

    def __init__(self, model: nn.Module, apart: bool = True, whose: str = "a run") -> None:
        self._model, self._apart, self.whose = model, apart, whose
        self._own: dict[int, bool] = {}
        self._are_lent = False
        self.shared = apart and not can_be_apart(model)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Have modes apart from everybody's in the block, on this thread.

        Not of a model that is compiled, whose graphs are made for the classes that it has, nor of
        one that a wrapper calls on threads of its own.
        """
        modules = [*self._model.modules()]
        thread = _modes.here()
        before = thread.own

        def give_back() -> None:
            _at_work.remove(self)
            for module in modules:
                module.__class__ = class_of(module)

        _at_work.append(self)
        with put_back_by(give_back):
            try:
                for module in modules if self._apart and not self.shared else ():
                    if _FLAG in module.__dict__:  # not in what TorchScript has made
                        set_class(module, class_of(module), own_mode=True)
                        self._own[id(module)] = module.__dict__[_FLAG]
                thread.own = _here.own = self._own
                yield
            finally:
                thread.own = _here.own = before

    def lend(self) -> list[tuple[nn.Module, bool, bool]]:
        """Have everybody find the run's modes on the model; return what `take_back` is given."""
        found = []
        self._are_lent = True
        for module in self._model.modules():
            if _FLAG not in module.__dict__:
                continue
            own, flag = module.training, module.__dict__[_FLAG]
            found.append((module, own, flag))
            module.__dict__[_FLAG] = own
        return found

    def take_back(self, lent: Iterable[tuple[nn.Module, bool, bool]]) -> None:
        """Put everybody's modes back as they were, and the run's."""
        self._are_lent = False
        for module, own, flag in lent:
            module.training = own
            module.__dict__[_FLAG] = flag

    def are_here(self) -> bool:
        """Whether this thread has them, or works for the one that has, or the model is lent."""
        return self._are_lent or _own() is self._own

    def refuse_conversion(self, module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
        """Raise if another thread converts a module's tensors; see `refuse_conversion`."""
        moves = self._are_lent  # a pause may take the model to another device, and back
        if _own() is not self._own and id(module) in self._own and _converts(module, fn, moves):
            raise self._refusal("casting or moving the model")

    def refuse_loading(self, module: nn.Module) -> None:
        """Raise if another thread loads a state dict into a module, but in a pause."""
        if id(module) in self._own and not self.are_here():
            raise self._refusal("loading a state dict into the model")

    def _refusal(self, what: str) -> AdapterError:
        return AdapterError(
            f"{what} here would change the weights that {self.whose} trains on; do it with a copy "
            "(copy.deepcopy), or when the run is over"
        )


_at_work: list[OwnModes] = []  # those of the runs that have a model now


def refuse_conversion(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Raise where `Module._apply` would give a module's tensors another type beside a run.

    All of `to`, `half`, `bfloat16`, `float`, `double`, `cpu`, `cuda` and `to_empty` come by here.

    Args:
        module: of any model.
        fn: what is applied to each of its tensors.

    Raises:
        AdapterError: it is a run's, another thread's, and one of them would be another one.
    """
    for modes in [*_at_work]:
        modes.refuse_conversion(module, fn)


def refuse_loading(module: nn.Module) -> None:
    """Raise `AdapterError` where a state dict would be loaded into a module beside its run.

    In a pause the model is whoever's has it; the run goes on with what it finds then.
    """
    for modes in [*_at_work]:
        modes.refuse_loading(module)


def _converts(module: nn.Module, fn: Callable[[Tensor], Tensor], moves: bool) -> bool:
    """Whether a function makes other tensors of a module's; `moves`: on another device is none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    kinds = {(t.dtype, t.device, t.dim(), t.is_contiguous()) for t in tensors}
    with torch.no_grad():
        for dtype, device, dim, _ in kinds:
            like = torch.empty((2,) * dim, dtype=dtype, device=device)
            made = fn(like)
            same = moves and made.dtype is like.dtype and made.stride() == like.stride()
            if not (made is like or same):
                return True
    return False


def can_be_apart(model: nn.Module) -> bool:
    """Whether all passes through a model are on the thread that calls it, and not compiled."""

    def threads(module: nn.Module) -> bool:
        return isinstance(module, nn.DataParallel) and len(module.device_ids) > 1

    return not any(is_compiled(module) or threads(module) for module in model.modules())


def are_training(modules: Mapping[int, nn.Module]) -> bool:
    """Whether all of some modules, by their ids, are in training mode for this thread."""
    own = _own()
    if own is not None and own.keys() >= modules.keys():
        return all(map(own.__getitem__, modules))
    return all(module.training for module in modules.values())


def is_anothers(module: nn.Module) -> bool:
    """Whether a run has a module, and this thread is not the run's."""
    return isinstance(module, _OwnMode) and id(module) not in (_own() or ())


def class_of(module: nn.Module) -> Any:
    """Return a module's class, without what a run's modes take."""
    kind = type(module)
    return kind.__dict__.get("own_mode_of", kind)  # not where another's class is on top


def set_class(module: nn.Module, kind: Any, own_mode: bool = False) -> None:
    """Give a module another class, in which a run keeps its modes if it did, or is about to."""
    own_mode = own_mode or class_of(module) is not type(module)
    module.__class__ = _with_own_mode(kind) if own_mode else kind


@functools.cache
def _with_own_mode(kind: Any) -> Any:
    return disguised(_OwnMode, kind, own_mode_of=kind)
