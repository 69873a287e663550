"""Which device a forecast is for: one that is here, or a GPU by its name where none is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lora_lab._util.devices import device_of
from lora_lab._util.hardware import best_device, hardware
from lora_lab.errors import ConfigError

# Compute capabilities: https://developer.nvidia.com/cuda-gpus
GPUS = {
    "P100": (6, 0),
    "V100": (7, 0),
    "T4": (7, 5),
    "A100": (8, 0),
    "A10G": (8, 6),
    "L4": (8, 9),
    "H100": (9, 0),
}
_UNSEEN = "A100"  # what "cuda" stands for on a machine without a GPU


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU and its torch, as far as torch's choice of kernels depends on them.

    Attributes:
        name: for people: "T4".
        capability: (major, minor).
        torch: its version, (major, minor).
        cudnn: the library's version as torch gives it, 91900 for 9.19; 0: not there.
    """

    name: str
    capability: tuple[int, int]
    torch: tuple[int, int]
    cudnn: int = 0


def gpu_of(device: torch.device | str | None) -> Gpu | None:
    """Return the GPU that a device is; None of the CPU, and of what is not NVIDIA's.

    Args:
        device: as torch names it, or one of `GPUS`; "cuda" where no GPU is here is an A100. None:
            the CPU.

    Raises:
        ConfigError: there is none of that name.
    """
    if device is None:
        return None
    version = _version()
    named = {name.lower(): name for name in GPUS}.get(str(device).lower())
    if named is None:
        kind = _device(device)
        here = hardware(kind)
        if not here.cuda or torch.version.hip:
            return None
        if here.capability is not None:
            name = here.name() or "a GPU of capability {}.{}".format(*here.capability)
            return Gpu(name, here.capability, version, torch.backends.cudnn.version() or 0)
        named = _UNSEEN
    # Wheels for CUDA bring cuDNN 9.19 from torch 2.11 on, and 9.10 before.
    return Gpu(named, GPUS[named], version, 91900 if version >= (2, 11) else 91002)


def own_device(model: Any) -> torch.device | None:
    """Return the device that a model lies on; of a name or a config the best that is here.

    None: it has no weights to tell.
    """
    if not isinstance(model, torch.nn.Module):
        return best_device()
    return device_of(model) if any(True for _ in model.parameters()) else None


def _version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError:
        known = ", ".join(["cpu", "cuda", *GPUS])
        raise ConfigError(f"device {str(device)!r} is not known; use one of {known}") from None
