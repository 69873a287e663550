"""A device that does not exist: torch's rules for it are a GPU's, its numbers are the CPU's.

"gpu" is torch's PrivateUse1 backend under another name. What is on it are fake tensors. Each has a
twin on the CPU on which every operation is done in truth, so that code which looks at values goes
on. Where an operation is given tensors of several devices, FakeTensorMode says whether torch allows
it. Tensors on the CPU are ordinary ones.

A process that has imported this has a device "gpu" for good: it is for processes of their own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = "gpu"


class _Backend:
    """What torch asks a device's module; its generators are the CPU's kind."""

    def __init__(self) -> None:
        self.generators = [torch.Generator(), torch.Generator()]

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return len(self.generators)

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        for generator in self.generators:
            generator.manual_seed(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self.generators[_index(device)].get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self.generators[_index(device)].set_state(state)


def _index(device: Any) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0


BACKEND = _Backend()
_setup_privateuseone_for_python_backend(KIND, BACKEND)
DEVICES = [torch.device(KIND, 0), torch.device(KIND, 1)]


def _set_data(tensor: Any, value: Any) -> None:
    Tensor.data.__set__(tensor, value)
    tensor.fake_device = value.fake_device
    tensor.twin = value.twin.detach()


# Its own reads number by number.
FakeTensor.tolist = lambda tensor: tensor.cpu().tolist()
FakeTensor.data = property(Tensor.data.__get__, _set_data)

_aten: Any = torch.ops.aten
_COPIES = (_aten._to_copy, _aten.copy_, _aten._foreach_copy_)
# What waits for the device within CUDA's kernels, in aten/src/ATen/native: cuda/{CUDAScalar,
# Nonzero,IndexKernel,Unique,Equal,SummaryOps}.cu(a size or a value is read), and in
# linalg/BatchLinearAlgebra.cpp `_linalg_check_errors` (whether it went well).
_WAITS = (
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_consecutive,
    _aten.unique_dim,
    _aten._unique2,
    _aten.equal,
    _aten.is_nonzero,
    _aten.bincount,
    _aten._linalg_svd,
    _aten._linalg_eigh,
    _aten._linalg_check_errors,
)
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)


@dataclass(frozen=True)
class Finding:
    """What does not belong into a training step.

    Attributes:
        kind: "wait": the host waits for the device; "CPU tensor": one is made.
        operation: torch's name.
        function: that calls torch.
        place: of it, "file:line" below the folder of its package.
    """

    kind: str
    operation: str
    function: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.operation} in {self.function} at {self.place}"


class FakeDevice(TorchDispatchMode):
    """Has tensors on "gpu" made and used in the block, and takes note of what is done with them."""

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._found: list[Finding] | None = None
        self._lifts: list[bool] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which costs 20 µs an operation

    def __enter__(self) -> Any:
        # So torch.tensor(…, device=) is made on the CPU and copied, as in truth, where we see it.
        self._lifts.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifts.pop())

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Finding]]:
        """Yield the list of what is found in the block."""
        before, self._found = self._found, []
        try:
            yield self._found
        finally:
            self._found = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # autograd, in C++, asks where a tensor is
            return args[0].fake_device
        given = [*_tensors(args), *_tensors(kwargs)]
        fakes = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
        target = kwargs.get("device")
        if self._found is not None:
            self._look(func, args, kwargs, given)
        if not fakes and (target is None or target.type != KIND):
            return func(*args, **kwargs)
        device = target or fakes[0].fake_device
        copies = func.overloadpacket in _COPIES
        if not copies and any(
            not isinstance(tensor, FakeTensor) or tensor.fake_device != device for tensor in given
        ):
            device = self._common_device(func, types, args, kwargs, device)
        real = _done_in_truth(func, args, kwargs, device)
        if isinstance(real, (Tensor, tuple, list)):
            return self._paired(real, {id(twin(tensor)): tensor for tensor in given}, device)
        return real

    def _common_device(self, func: Any, types: Any, args: Any, kwargs: Any, device: Any) -> Any:
        """Have torch say on which device an operation runs.

        Raises:
            RuntimeError: its tensors must not meet.
        """
        try:
            fake = self._fakes.dispatch(func, types, args, kwargs)
        except DynamicOutputShapeException:  # a size that hangs on values; the devices were right
            return device
        return next((tensor.device for tensor in _tensors(fake)), device)

    def _paired(self, real: Any, given: dict[int, Tensor], device: torch.device) -> Any:
        """Return the tensors of which an operation's results on the CPU are the twins."""
        if isinstance(real, (tuple, list)):
            return [self._paired(one, given, device) for one in real]
        if not isinstance(real, Tensor):
            return real
        if id(real) in given:  # written into
            return given[id(real)]
        if device.type != KIND:
            return real
        storage = real.untyped_storage()._cdata
        for tensor in given.values():
            held = twin(tensor)
            if isinstance(tensor, FakeTensor) and held.untyped_storage()._cdata == storage:
                offset = tensor.storage_offset() + real.storage_offset() - held.storage_offset()
                with in_kernel_invocation_manager(self._fakes):
                    shape = _aten.as_strided.default(tensor, real.shape, real.stride(), offset)
                break
        else:
            shape = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        return self._fake(shape, device, real)

    def _fake(self, shape: Tensor, device: torch.device, real: Tensor) -> FakeTensor:
        """Return FakeTensor(…) without what tracing alone reads: a fifth of the time of all."""
        fake: Any = Tensor._make_subclass(
            FakeTensor, shape, False, dispatch_device=True, device_for_backend_keys=device
        )
        fake._fake_device, fake.fake_mode, fake.twin = device, self._fakes, real
        fake.constant = fake.pytype = fake.dispatch_keys = fake.real_tensor = None
        return fake

    def _look(self, func: Any, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> None:
        packet = func.overloadpacket
        if packet in _COPIES:
            there = args[0].device if packet is _aten.copy_ else kwargs.get("device")
            goes = there is not None and there.type != given[-1].device.type
            late = kwargs.get("non_blocking") or (packet is _aten.copy_ and args[2:] == (True,))
            # cuda/Copy.cu: `memcpy_and_sync`, unless non_blocking. What has come to the CPU so is
            # not there yet.
            if goes and (there.type == "cpu" or not late):
                self._note("wait", func)
        elif not any(isinstance(tensor, FakeTensor) for tensor in given):
            makes = func.namespace == "aten" and (not given or packet is _aten.lift_fresh)
            where = kwargs.get("device")
            if makes and packet is not _aten.promote_types and (not where or where.type == "cpu"):
                self._note("CPU tensor", func)
        elif packet in _WAITS or (packet in _INDEXED and _has_mask(args[1])):
            self._note("wait", func)

    def _note(self, kind: str, func: Any) -> None:
        assert self._found is not None
        self._found.append(Finding(kind, str(func), *_place()))


def twin(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU that holds the values of one on "gpu"; of others, itself."""
    found: Tensor = getattr(tensor, "twin", tensor)
    return found


def _done_in_truth(func: Any, args: tuple, kwargs: dict[str, Any], device: torch.device) -> Any:
    more = {name: _twins(value) for name, value in kwargs.items()}
    if "device" in more:
        more["device"] = torch.device("cpu")
    if torch.Tag.nondeterministic_seeded not in func.tags or device.type != KIND:
        return func(*_twins(args), **more)
    own, before = BACKEND.generators[_index(device)], torch.get_rng_state()
    torch.set_rng_state(own.get_state())
    try:
        return func(*_twins(args), **more)
    finally:
        own.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _twins(value: Any) -> Any:
    if isinstance(value, Tensor):
        return twin(value)
    return type(value)(map(_twins, value)) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an operation's arguments, which nest in lists, tuples and a dict."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def _has_mask(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


_HANDS_ON = ("/torch/", "/own_random.py", __file__)


def _place() -> tuple[str, str]:
    """Return the innermost function that is not torch's or ours, and where it stands."""
    frame: Any = sys._getframe(4)
    while any(name in frame.f_code.co_filename for name in _HANDS_ON):
        frame = frame.f_back
    name = frame.f_code.co_filename
    for root in ("/site-packages/", "/lora_lab/"):
        name = name.rpartition(root)[2]
    return frame.f_code.co_name, f"{name}:{frame.f_lineno}"


def put(model: nn.Module, dtype: torch.dtype, place: Callable[[str], torch.device]) -> None:
    """Put a model on the fake device, as transformers' loading does it: what is tied stays so.

    Args:
        model: on the CPU.
        dtype: of its parameters; buffers keep theirs.
        place: path of a module → its device.
    """
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in held.items():
                if not isinstance(value, Tensor):
                    continue
                if id(value) not in made:
                    learns = isinstance(value, nn.Parameter) and value.is_floating_point()
                    new = value.detach().to(place(path), dtype if learns else value.dtype)
                    whole = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(new, value.requires_grad) if whole else new
                held[name] = made[id(value)]
