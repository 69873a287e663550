"""What a device can do: everything that differs between CUDA, MPS and the CPU is asked here.

A test that wants another device's ways on the CPU has `MAKERS["cpu"]` return a `Hardware` of its
choice (`tests/helpers/made_up_hardware.py`).
"""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

_linalg_lock = threading.Lock()
_linalg_loaded: set[str] = set()  # in this process


@dataclass(frozen=True)
class Hardware:
    """One device; as it stands, one that nothing is known of.

    Attributes:
        device: which one.
        memory: what its bytes are called.
        cuda: CUDA's kernels, allocator and process groups are there.
        capability: of CUDA, (major, minor).
        native_bfloat16: it computes in bfloat16, not by way of float32.
        fast_float16: it computes in float16 at least as fast as in float32.
        fused_optimizer: AdamW is taken as one kernel, without temporaries of all parameters' size.
        keeps_peak: its allocator counts what is allocated, and the most that was.
        asynchronous: work and copies are only begun when a call returns.
        widest: the most precise dtype that it computes in.
    """

    device: torch.device
    memory: str = "tensor bytes on the CPU"
    cuda: bool = False
    capability: tuple[int, int] | None = None
    native_bfloat16: bool = False
    fast_float16: bool = False
    fused_optimizer: bool = False
    keeps_peak: bool = False
    asynchronous: bool = False
    widest: torch.dtype = torch.float64

    @property
    def dtype(self) -> torch.dtype:
        """What a model is loaded in where nobody says: never a type that is only emulated."""
        if self.native_bfloat16:
            return torch.bfloat16
        return torch.float16 if self.fast_float16 else torch.float32

    def name(self) -> str:
        """Return what its maker calls it, such as "Tesla T4"; "" where nobody knows."""
        return ""

    def allocated(self) -> int | None:
        """Return the bytes that are allocated now; None where nobody counts them."""
        return None

    def peak(self) -> int:
        """Return the most bytes that were allocated since `reset_peak`, where `keeps_peak`."""
        raise NotImplementedError

    def reset_peak(self) -> None:
        """Have `peak` begin anew."""

    def reserved(self) -> int:
        """Return the bytes that the allocator holds, its idle blocks included."""
        return 0

    def free_and_total(self) -> tuple[int, int] | None:
        """Return the driver's count of bytes; None where its memory is the whole computer's."""
        return None

    def limit(self, share: float) -> None:
        """Have the allocator keep to a share of all memory, in this whole process."""

    def empty_cache(self) -> None:
        """Give freed blocks back to the device."""

    def current(self) -> AbstractContextManager[object]:
        """Return a context in which this thread's "cuda" is this device."""
        return contextlib.nullcontext()

    def load_linalg(self) -> None:
        """Have `torch.linalg` ready, before two threads call it for the first time at once."""


class _Cuda(Hardware):
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if torch.cuda.is_available() else ""

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def free_and_total(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self.device)

    def limit(self, share: float) -> None:
        torch.cuda.set_per_process_memory_fraction(share, self.device)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device)

    def load_linalg(self) -> None:
        # torch loads this library in the first call (aten/src/ATen/native/cuda/
        # LinearAlgebraStubs.cpp), and a thread that comes meanwhile gets "lazy wrapper should be
        # called at most once" (pytorch#90613).
        with _linalg_lock:
            if "cuda" not in _linalg_loaded and self.capability is not None:
                one = torch.ones(1, 1, dtype=torch.float32, device=self.device)
                torch.linalg.inv(one)
                if type(one) is torch.Tensor:  # no fake one, for which nothing is loaded
                    _linalg_loaded.add("cuda")


class _Mps(Hardware):
    def allocated(self) -> int:
        return torch.mps.current_allocated_memory()

    def empty_cache(self) -> None:
        torch.mps.empty_cache()


def _cuda(device: torch.device) -> Hardware:
    capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None
    major, minor = capability or (0, 0)  # a dry run for CUDA needs no GPU
    return _Cuda(
        device,
        "CUDA memory",
        cuda=True,
        capability=capability,
        # `torch.cuda.is_bf16_supported(including_emulation=False)`, of this device and not of the
        # current one: every GPU of AMD's, and NVIDIA's from Ampere on.
        native_bfloat16=bool(torch.version.hip) or major >= 8,
        # CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions": of 6.1 (the
        # GeForce 10 series) a 64th of float32's, of 6.0 and from 7.0 on twice as much or more.
        fast_float16=(major, minor) == (6, 0) or major >= 7,
        fused_optimizer=True,
        keeps_peak=True,
        asynchronous=True,
    )


def _cpu(device: torch.device) -> Hardware:
    return Hardware(device, fused_optimizer=True)


def _mps(device: torch.device) -> Hardware:
    return _Mps(device, "MPS memory", asynchronous=True, widest=torch.float32)


MAKERS: dict[str, Callable[[torch.device], Hardware]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "mps": _mps,
}


def hardware(device: torch.device) -> Hardware:
    """Return what a device can do."""
    make = MAKERS.get(device.type)
    return make(device) if make else Hardware(device, f"{device.type} memory")


def best_device() -> torch.device:
    """Return CUDA's current device, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def is_here(device: torch.device) -> bool:
    """Whether this machine has such a device."""
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    return there.get(device.type, False)


# torch's allocators and the drivers; by their names the statuses of cuBLAS, cuDNN (since 9
# CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED), cuSOLVER, cuSPARSE, cuFFT, cuRAND and HIP's
# twins, which torch hands on as RuntimeErrors (ATen/cuda/Exceptions.h). NCCL's errors quote CUDA's.
_MEMORY_WORDS = re.compile(
    r"out of memory|(can't|cannot|failed to|unable to) allocate|not enough memory|bad_alloc|"
    r"[A-Z]_ALLOC(ATION)?_FAILED|cudaErrorMemoryAllocation|rocblas_status_memory_error",
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of the GPU, or of the computer, is spent."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MEMORY_WORDS.search(str(error)) is not None
