"""The memory of all devices that a model computes on: together, and each by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import nn

from lora_lab._util.devices import devices_of
from lora_lab._util.format import format_bytes
from lora_lab._util.hardware import hardware
from lora_lab._util.host_memory import available_memory
from lora_lab.errors import LoraLabError
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.gpu_memory import Forecast, GpuMemory, apply_cap, gpu_memory, largest_batch

Memories = Mapping[torch.device, GpuMemory]


def memories_of(model: nn.Module) -> Memories:
    """Return {device: its memory} of the GPUs that a model computes on, LORA_LAB_MAX_VRAM_GB set.

    Others' memory is the whole computer's: they are left out.
    """
    devices = devices_of(model)
    for device in devices:
        apply_cap(device)
    return {device: memory for device in devices if (memory := gpu_memory(device)) is not None}


def together(memories: Memories) -> GpuMemory | None:
    """Return several devices' memory as one; None of none."""
    each = tuple(memories.values())
    if len(each) < 2:
        return next(iter(each), None)
    return GpuMemory(
        sum(one.free for one in each),
        sum(one.total for one in each),
        sum(one.others for one in each),
        any(one.capped for one in each),
        tuple(process for one in each for process in one.processes),
    )


def notes(
    model: nn.Module, forecast: Forecast, training: TrainingConfig, memories: Memories
) -> list[str]:
    """Return a line for each of several devices: what a step takes there, about, and what is free.

    Args:
        model: spread over them.
        forecast: of a step on all devices together; each is taken to need its part in proportion to
            the weights that it has.
        training: the run's.
        memories: of the devices.
    """
    if len(memories) < 2:
        return []
    held = dict.fromkeys(memories, 0)
    for parameter in model.parameters():
        if parameter.device in held:
            held[parameter.device] += parameter.nbytes
    step = forecast(training.per_device_train_batch_size)
    weights = sum(held.values()) or 1
    lines = []
    for device, memory in memories.items():
        share = step * held[device] // weights
        fits = share <= memory.free
        advice = "" if fits else "; give it fewer blocks (device_map), or take a smaller batch"
        lines.append(
            f"{device}: a step needs about {format_bytes(share)} beside its weights, in "
            f"proportion to them; {memory}{advice}"
        )
    return lines


def empty_caches(model: nn.Module) -> None:
    """Give freed blocks back to every device of a model."""
    for device in devices_of(model):
        hardware(device).empty_cache()


def largest_fitting(
    model: nn.Module, forecast: Forecast | None, training: TrainingConfig
) -> Mapping[str, int]:
    """Return the largest smaller batch that the dry run says fits in what is free now.

    Returns:
        Fields of `TrainingConfig`; {} where there is none, or nobody knows.
    """
    memory = together(memories_of(model))
    free = available_memory() if memory is None else memory.free
    size = training.per_device_train_batch_size
    if forecast is None or free is None or size == 1:
        return {}
    with contextlib.suppress(LoraLabError):
        # Where the dry run says that even this batch fits, it does not know what took the rest.
        if forecast(size) > free:
            return largest_batch(training, forecast, free, size - 1)
    return {}
