"""What torch does not say in public: each private name that is used, in one function.

Seen on torch 2.6 to 2.13. `tests/core/_util/test_private_names.py` fails first after an upgrade.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as _FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_map as tree_map

from lora_lab._util.graph_nodes import nodes_behind

# From torch 2.8 on; before, nobody can tell.
_top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_OURS = "lora_lab"  # the key of our objects among those that torch keeps for a thread


class FakeTensorMode(_FakeTensorMode):
    """Fake tensors, of the CPU: nothing of a CUDA device is set up for them.

    Where torch is built for CUDA and there is no GPU, torch's own mode puts a stand-in in place of
    CUDA's device guard, for the whole process and kept by the thread at hand
    (`ensureCUDADeviceGuardSet`, c10/core/impl/DeviceGuardImplInterface.cpp). When a thread that ran
    one ends, the stand-in is freed, and the next mode crashes the process.
    """

    avoid_device_init = False


def saving_hooks() -> Any:
    """Return the hooks on saved tensors in force, such as gradient checkpointing's, or None."""
    return None if _top is None else _top(True)


def thread_values() -> MutableMapping[object, Any]:
    """Return this thread's {owner: value}, forgotten with the owner.

    What torch calls Python objects in thread-local state: autograd's threads have those of the
    thread that called `backward` (aten/src/ATen/ThreadLocalState.cpp, `saved_objects_`).
    """
    if not torch._C._is_key_in_tls(_OURS):
        _stash(weakref.WeakKeyDictionary())
        _here.end = _ThreadEnd()
    values: MutableMapping[object, Any] = torch._C._get_obj_in_tls(_OURS)
    return values


def _stash(values: object) -> None:
    """Put an object into this thread's state, which holds it from then on.

    Before torch 2.13 the state takes over a reference that it was never given: the object would be
    freed while it is in use, and read there by the next who asks.
    """
    before = sys.getrefcount(values)
    torch._C._stash_obj_in_tls(_OURS, values)
    if sys.getrefcount(values) == before:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(values))


class _ThreadEnd:
    """What takes our objects out of a thread's state when the thread ends.

    Left there, they are let go of behind the end that `join` waits for. A process that ends at that
    moment is aborted: "terminate called without an active exception". From torch 2.13 on.
    """

    _remove = staticmethod(getattr(torch._C, "_remove_obj_from_tls", lambda _: None))

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __del__(self, key: str = _OURS, ident: Callable[[], int] = threading.get_ident) -> None:
        if ident() == self._thread:  # a forked child's only thread ends those of its parent
            self._remove(key)


_here = threading.local()


def functorch_is_active() -> bool:
    """Whether one of `torch.func`'s transforms is running."""
    return torch._C._are_functorch_transforms_active()


def gradient_dtypes(tensor: Tensor) -> set[torch.dtype]:
    """Return the dtypes that gradients will have on their way back from a tensor.

    Of a pass that one node hides (reentrant checkpointing) it is that of what the node returned.
    """
    return {each.dtype for node in nodes_behind(tensor) for each in node._input_metadata}


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return what tells a storage from others, while it lives."""
    key: int = storage._cdata
    return key


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's own dictionary of children, of any name, to read or to write."""
    return module._modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return a module's own dictionary of parameters, without its children's."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own dictionary of buffers, without its children's."""
    return module._buffers


def has_function_modes() -> bool:
    """Whether this thread is in any mode that looks at torch's functions, as a default device is.

    Seen on torch 2.13; without the function: they may be there.
    """
    count = getattr(torch._C, "_len_torch_function_stack", None)
    return count is None or bool(count())


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written in place, itself or through a view (torch 2.13).

    Writes through `.data`, and those of kernels that do not tell, are not counted.
    """
    return tensor._version


def ignore_in_ddp(module: Any, names: list[str] | None) -> None:
    """Have DistributedDataParallel leave a module's tensors of these names alone (torch 2.13).

    Args:
        module: that is to be wrapped.
        names: of parameters and buffers; None: none any more.
    """
    if names is None:
        del module._ddp_params_and_buffers_to_ignore
    else:
        module._ddp_params_and_buffers_to_ignore = names


def pre_hooks_of(module: nn.Module) -> Mapping[int, Any]:
    """Return a module's own forward pre-hooks; the older `weight_norm` is one."""
    return module._forward_pre_hooks


def hooks_of(owner: nn.Module | Tensor) -> list[Any]:
    """Return what is called before and after a module's passes, or of a tensor's gradient."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [hook for kind in kinds for hook in [*(getattr(owner, kind, None) or {}).values()]]


def hollow_tensor(kind: Any, shape: tuple[int, ...], like: Tensor) -> Any:
    """Return a tensor of a class of one's own, with the type of another and no memory behind it."""
    return Tensor._make_wrapper_subclass(kind, shape, dtype=like.dtype, device=like.device)


def saved_buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return those of a module's own buffers that its state dict holds."""
    unsaved = module._non_persistent_buffers_set
    return {name: buffer for name, buffer in module._buffers.items() if name not in unsaved}


def with_parameter(module: nn.Module, name: str, value: Tensor) -> nn.Module:
    """Return a module that shares all with another one but one parameter."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, name: nn.Parameter(value, requires_grad=False)}
    return twin


def with_tensors(module: nn.Module, values: Mapping[nn.Parameter, Tensor]) -> nn.Module:
    """Return a module that shares all with another one but some of its parameters.

    `torch.func.functional_call` puts the values into the module itself for the time of its call, so
    that another thread's call may find them there, or leave them there for good.

    Args:
        module: with all of its children.
        values: {parameter: the tensor in its place}.
    """
    twin = copy.copy(module)
    twin.training = module.training
    own: dict[str, Any] = {
        key: p if p is None else values.get(p, p) for key, p in module._parameters.items()
    }
    twin._parameters = own
    twin._modules = {
        key: child and with_tensors(child, values) for key, child in module._modules.items()
    }
    return twin


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has to do with a module: around it, in place, or its forward alone."""
    forward = module.__dict__.get("forward")
    wraps = "_orig_mod" in module._modules or hasattr(forward, "_torchdynamo_orig_callable")
    return wraps or getattr(module, "_compiled_call_impl", None) is not None


def compiled_from(thing: Any) -> Any:
    """Return the model of a function that torch.compile has made of a compiled one, else itself."""
    return getattr(getattr(thing, "_torchdynamo_orig_callable", None), "__self__", thing)


def convolve(conv: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a convolution makes of x with another weight, without its bias.

    Padding that is not of zeros is done too, which `torch.nn.functional` leaves to the module.
    """
    y: Tensor = conv._conv_forward(x, weight, None)
    return y


def in_shape(tensor: Tensor, shape: list[int]) -> Tensor:
    """Return a tensor's numbers in another shape, and not as a view of it that autograd tracks.

    An autograd function may give it out beside others, and its caller change it in place.
    """
    own: Tensor = torch.ops.aten._unsafe_view(tensor, shape)
    return own


def update_averages(averages: list[Tensor], values: list[Tensor], new_share: float) -> None:
    """Write averages += new_share·(values − averages), in one launch for all of them."""
    torch._foreach_lerp_(averages, values, new_share)


def multiply_(xs: list[Tensor], factor: float) -> None:
    """Write x·factor into every x, in one launch for all of a device and dtype."""
    torch._foreach_mul_(xs, factor)


def products(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return |x·y| of every pair, in two launches for all of them."""
    found = list(torch._foreach_mul(xs, ys))
    torch._foreach_abs_(found)
    return found


def distances(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Write |x − y| into every x, in two launches for all of them, and return them."""
    torch._foreach_sub_(xs, ys)
    torch._foreach_abs_(xs)
    return xs


@functools.cache
def argument_names(operation: Any) -> tuple[str, ...]:
    """Return the names of an operation's arguments, such as a dispatch mode is given."""
    return tuple(argument.name for argument in operation._schema.arguments)


@functools.cache
def argument_defaults(operation: Any) -> dict[str, Any]:
    """Return {name: default} of an operation's arguments that have one.

    A dispatch mode is not given arguments that are their defaults, from the last one back.
    """
    known = operation._schema.arguments
    return {each.name: each.default_value for each in known if each.has_default_value()}


@functools.cache
def takes_generator(operation: Any) -> Any:
    """Return an operation's overload that takes a generator, maybe itself; None: it has none."""
    names = set(argument_names(operation))
    packet = operation.overloadpacket
    overloads = [operation, *(getattr(packet, name) for name in packet.overloads())]
    wanted = names | {"generator"}
    return next((each for each in overloads if set(argument_names(each)) == wanted), None)


def attention_kernel(name: str) -> Any:
    """Return the operation of one attention kernel: "cudnn", "flash", "efficient" or "math"."""
    aten = torch.ops.aten
    return {
        "cudnn": aten._scaled_dot_product_cudnn_attention,
        "flash": aten._scaled_dot_product_flash_attention,
        "efficient": aten._scaled_dot_product_efficient_attention,
        "math": aten._scaled_dot_product_attention_math,
    }[name]


def safe_softmax(scores: Tensor) -> Tensor:
    """Return the probabilities of each row, 0 in a row that is masked as a whole."""
    probabilities: Tensor = torch.ops.aten._safe_softmax(scores, -1)
    return probabilities
