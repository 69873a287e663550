"""What a device can do, chosen by capability; CUDA's own answers are made up here."""

import errno
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lora_lab
import lora_lab as ll
from lora_lab._util import hardware as module
from lora_lab._util.hardware import Hardware, hardware, is_out_of_memory
from lora_lab._util.torch_private import FakeTensorMode
from lora_lab.training.isolation import thread_settings
from tests.helpers.made_up_hardware import cpu_can
from tests.helpers.tiny_models import tiny

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("gpu", "capability", "dtype"),
    [
        ("GTX 1080", (6, 1), torch.float32),  # float16 at a 64th of float32's rate
        ("P100", (6, 0), torch.float16),
        ("V100", (7, 0), torch.float16),
        ("T4", (7, 5), torch.float16),
        ("A100", (8, 0), torch.bfloat16),
        ("L4", (8, 9), torch.bfloat16),
        ("H100", (9, 0), torch.bfloat16),
        ("B200", (10, 0), torch.bfloat16),
    ],
)
def test_the_half_type_that_a_gpu_is_fast_in(monkeypatch, gpu, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    # Emulation would say yes on all of them.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    here = hardware(CUDA)
    assert (here.dtype, here.capability) == (dtype, capability), gpu
    assert asked == [CUDA]  # of this device, not of the current one
    assert here.fused_optimizer
    assert here.keeps_peak


def test_elsewhere_nothing_of_cuda_is_called(monkeypatch):
    for name in ("get_device_capability", "memory_allocated", "mem_get_info", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 1 / 0)
    for device in (CPU, torch.device("mps"), torch.device("meta")):
        here = hardware(device)
        assert here.dtype == torch.float32
        assert not here.cuda
        assert not here.keeps_peak
        assert here.free_and_total() is None
        assert here.reserved() == 0
        here.reset_peak()
        here.limit(0.5)
        with thread_settings(device):
            pass
    assert hardware(CPU).allocated() is None
    assert hardware(torch.device("mps")).memory == "MPS memory"
    assert hardware(torch.device("meta")).memory == "meta memory"


def test_mps_is_asked_for_its_memory(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 7)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(True))
    here = hardware(torch.device("mps"))
    here.empty_cache()
    assert (here.allocated(), emptied) == (7, [True])


def test_cuda_is_asked_of_the_device_that_is_meant(monkeypatch):
    told = {}
    counts = {"memory_allocated": 3, "max_memory_allocated": 5, "memory_reserved": 8}
    for name, count in counts.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda at, name=name, count=count: (told.update({name: at}), count)[1]
        )
    here = hardware(CUDA)
    assert (here.allocated(), here.peak(), here.reserved()) == (3, 5, 8)
    assert set(told.values()) == {CUDA}


def test_a_test_chooses(monkeypatch):
    cpu_can(monkeypatch, native_bfloat16=True)
    assert hardware(CPU).dtype == torch.bfloat16
    assert hardware(CPU) == Hardware(CPU, native_bfloat16=True)


SPENT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.75 GiB",
    "CUDA error: out of memory",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max: 9 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR: out of memory",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:2, unhandled cuda error, NCCL version 2.29.7\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    "Cuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 8 bytes.",
    "std::bad_alloc",
]
OTHER = [
    "shapes",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",  # of any cause
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: device-side assert triggered",
    "out of resource: shared memory, Required: 106496, Hardware limit: 101376",  # Triton's
    "NCCL error: unhandled system error, ncclSystemError: System call failed",
]


def test_what_is_out_of_memory():
    assert [text for text in SPENT if not is_out_of_memory(RuntimeError(text))] == []
    assert [text for text in OTHER if is_out_of_memory(RuntimeError(text))] == []
    assert is_out_of_memory(torch.distributed.DistBackendError(SPENT[-4]))
    assert is_out_of_memory(torch.AcceleratorError(SPENT[1]))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(ValueError("out of memory"))


# The dry run's allocator, the launcher's processes, and a list for people.
MAY_NAME_CUDA = {Path(module.__file__).name, "cuda.py", "sharding.py", "processes.py"}
MAY_NAME_CUDA |= {"gpu_processes.py", "replicas.py", "installed.py", "gpu.py"}


def test_nobody_else_asks_for_cuda():
    asks = re.compile(r"""\.type [!=]= ["'](cuda|mps)|torch\.(cuda|mps)\.|\.is_cuda\b""")
    for path in Path(lora_lab.__file__).parent.rglob("*.py"):
        if path.name not in MAY_NAME_CUDA:
            assert not asks.findall(path.read_text("utf-8")), path


class _Loading(Hardware):
    """Loads as CUDA does."""

    load_linalg = module._Cuda.load_linalg


def test_linear_algebra_is_loaded_by_one_thread_before_any_other_needs_it(monkeypatch):
    cpu_can(monkeypatch, _Loading, capability=(7, 5))
    monkeypatch.setattr(module, "_linalg_loaded", set())
    calls, real = [], torch.linalg.inv
    together, inside = threading.Barrier(4), threading.Lock()

    def first_call(x):
        assert inside.acquire(blocking=False), "lazy wrapper should be called at most once"
        calls.append(threading.get_ident())
        found = real(x)
        inside.release()
        return found

    monkeypatch.setattr(torch.linalg, "inv", first_call)

    def attach(model):
        together.wait()
        ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear", init_lora_weights="olora"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attach, [tiny("llama") for _ in range(4)]))
    assert len(calls) == 1


def test_nothing_is_loaded_for_fake_tensors_or_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(module, "_linalg_loaded", set())
    _Loading(CPU, capability=None).load_linalg()
    with FakeTensorMode():
        _Loading(CPU, capability=(9, 0)).load_linalg()
    assert module._linalg_loaded == set()
    _Loading(CPU, capability=(9, 0)).load_linalg()
    assert module._linalg_loaded == {"cuda"}
