"""The memory of a shared GPU: how much is free, who has the rest, and what would fit into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lora_lab._util.format import format_bytes
from lora_lab._util.hardware import hardware
from lora_lab.budget.dry_run import dry_run
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.gpu_processes import GpuProcess, in_words, other_processes

CAP = "LORA_LAB_MAX_VRAM_GB"
_GIB = 2**30
_CONTEXT = _GIB  # bytes; what CUDA itself takes for this process is less, and counts as others'


class OutOfMemoryForecastError(RunError):
    """A training that will not fit, refused before its first step.

    Attributes:
        proposal: fields of `TrainingConfig` that would; empty where none would.
    """

    def __init__(self, message: str, proposal: dict[str, int]) -> None:
        super().__init__(message)
        self.proposal = proposal


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one device.

    Attributes:
        free: what this process may take yet, its allocator's idle blocks included.
        total: the device's.
        others: in use beyond this process's allocator: other processes, and CUDA itself.
        capped: `free` is what LORA_LAB_MAX_VRAM_GB leaves, not what the device has.
        processes: the other ones, as far as the driver names them.
    """

    free: int
    total: int
    others: int
    capped: bool = False
    processes: tuple[GpuProcess, ...] = ()

    def __str__(self) -> str:
        what = f"left of {CAP}" if self.capped else f"free of {format_bytes(self.total)}"
        return f"{format_bytes(self.free)} {what}, {self.in_use}"

    @property
    def in_use(self) -> str:
        """Who has the rest: "12 GiB in use by others: python (42) 11 GiB"."""
        return f"{format_bytes(self.others)} in use by others{in_words(self.processes)}"


def cap_bytes() -> int | None:
    """Return what LORA_LAB_MAX_VRAM_GB (GiB, as nvidia-smi counts) allows; None where unset.

    Raises:
        ConfigError: it is no positive number.
    """
    text = os.environ.get(CAP, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{CAP} is {text!r}; set it to the GiB that may be taken, such as 8")
    return int(value * _GIB)


def apply_cap(device: torch.device) -> None:
    """Have PyTorch's allocator keep to LORA_LAB_MAX_VRAM_GB, for this whole process."""
    cap = cap_bytes()
    here = hardware(device)
    if cap is not None and (memory := here.free_and_total()) is not None:
        here.limit(min(1.0, cap / memory[1]))


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """Return the memory of a CUDA device; None of others, whose memory is the whole computer's."""
    here = hardware(device)
    if (memory := here.free_and_total()) is None:
        return None
    free, total = memory
    reserved, allocated = here.reserved(), here.allocated() or 0
    others = max(0, total - free - reserved)
    mine = free + reserved - allocated
    processes = other_processes(device)
    cap = cap_bytes()
    if cap is not None and cap - allocated < mine:
        return GpuMemory(max(0, cap - allocated), total, others, True, processes)
    return GpuMemory(mine, total, others, processes=processes)


def used_by_others(device: torch.device) -> str:
    """Return who else is on a CUDA device, as `GpuMemory.in_use`; "" where nobody is, or no CUDA.

    Where the driver names nobody, as in a container, less than 1 GiB is taken for CUDA's own. May
    take seconds where `nvidia-smi` is asked.
    """
    memory = gpu_memory(device)
    if memory is None or not (memory.processes or memory.others >= _CONTEXT):
        return ""
    return memory.in_use


def largest_batch(
    training: TrainingConfig, needed: Callable[[int], int], free: int, largest: int
) -> dict[str, int]:
    """Return the largest batch that fits, with as many more passes: the step sees as many examples.

    Args:
        training: as it was asked for.
        needed: bytes that a step of so many examples a pass takes, growing with them.
        free: bytes.
        largest: examples a pass at most.

    Returns:
        The two fields of `TrainingConfig`; empty where not even one example fits.
    """
    together = training.per_device_train_batch_size * training.gradient_accumulation_steps
    sizes = [n for n in range(1, min(largest, together) + 1) if together % n == 0]
    low, high = 0, len(sizes)  # sizes[:low] fit, sizes[high:] do not
    while low < high:
        middle = (low + high) // 2
        if needed(sizes[middle]) <= free:
            low = middle + 1
        else:
            high = middle
    return batch_fields(training, sizes[low - 1]) if low else {}


def batch_fields(training: TrainingConfig, size: int) -> dict[str, int]:
    """Return the fields of a smaller batch; with more passes the step sees as many examples."""
    together = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": -(-together // size),
    }


def settings_in_words(fields: dict[str, int]) -> str:
    """Return "per_device_train_batch_size=4 with gradient_accumulation_steps=2"."""
    return " with ".join(f"{name}={value}" for name, value in fields.items())


class Forecast:
    """What a run's step takes beyond what is there before it, by the dry run.

    Args:
        model: adapted; the dry run builds its own from the config.
        config: the method's, or a tuple of them.
        training: the run's.
        length: tokens of the longest example.
        device: that it trains on.
        written: tokens of the longest completion, where it is a sequence of its own.
        labels: tokens of an example that have a label, at most; None: all.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        training: TrainingConfig,
        length: int,
        device: torch.device,
        written: int | None = None,
        labels: int | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._training = training
        self._length = length
        self._written = written
        self._labels = labels
        self._device = device

    def __call__(self, batch_size: int) -> int:
        """Return bytes for so many examples a pass, of several devices on all together.

        Raises:
            LoraLabError: the model cannot be run on fake tensors.
        """
        return sum(self.each(batch_size).values())

    def each(self, batch_size: int) -> dict[torch.device, int]:
        """Return bytes by device: gradients, optimizer, activations, extras.

        Raises:
            LoraLabError: the model cannot be run on fake tensors.
        """
        report = dry_run(
            self._model,
            self._config,
            batch_size=batch_size,
            sequence_length=self._length,
            target_length=self._written,
            label_length=self._labels,
            gradient_checkpointing=self._training.gradient_checkpointing,
            recompute_mlp=self._training.recompute_mlp,
            cuda=hardware(self._device).cuda,
            device=self._device,
        )
        if not report.devices:
            return {self._device: report.device_peak - report.weights}
        # Blocks that stay cached are of the step on one device.
        extras = report.device_peak - report.peak - report.extras.get("cached blocks", 0)
        return {device: size + extras for device, size in report.devices.items()}

    def check(self, memory: GpuMemory) -> None:
        """Refuse a training that will not fit into `memory`, of several devices each into its own.

        Raises:
            OutOfMemoryForecastError: the line names the numbers, who has the rest, and a
                batch that fits.
        """
        size = self._training.per_device_train_batch_size
        there: dict[torch.device, GpuMemory | None] = {}

        def lacking(batch_size: int) -> dict[torch.device, int]:
            needed = self.each(batch_size)
            for device in needed.keys() - there.keys():
                there[device] = memory if len(needed) == 1 else gpu_memory(device)
            return {d: size - room.free for d, size in needed.items() if (room := there[d])}

        nothing = (self._device, 0)
        worst, lack = max(lacking(size).items(), key=lambda item: item[1], default=nothing)
        if lack <= 0:
            return
        proposal = largest_batch(
            self._training, lambda batch_size: max(lacking(batch_size).values()), 0, size - 1
        )
        fix = (
            f"take {settings_in_words(proposal)}"
            if proposal
            else "take a smaller max_length, gradient_checkpointing=True or a smaller model"
        )
        where = f" on {worst}" if len(there) > 1 else ""
        room = there[worst]
        assert room is not None
        raise OutOfMemoryForecastError(
            f"training will not fit{where}: a step needs {format_bytes(lack + room.free)} beside "
            f"the weights, and there are {room}; {fix}",
            proposal,
        )
