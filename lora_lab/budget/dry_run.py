"""One real training step on fake tensors: its peak, counted operation by operation.

The model is built without weights, the adapter put on by `attach`, and torch's own autograd and
optimizer take the step on fake tensors, which have shapes and storages of a size but no memory
behind them. They say that they live on the CPU, so the kernels are the CPU's, but for attention
and dropout, which are the operations that the GPU in question would choose.

Of what belongs to the whole process nothing is touched that training would notice: no random
numbers are drawn, torch's default dtype stays, and of a real model only its config is read. So a
dry run may go on beside a training.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.quiet import quiet_thread
from lora_lab._util.torch_private import FakeTensorMode
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.model_config import position_limit
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.budget import fake_model
from lora_lab.budget.costs import Memory
from lora_lab.budget.cuda import CudaStorages, cublas_workspace
from lora_lab.budget.gpu import Gpu, gpu_of, own_device
from lora_lab.budget.gpu_attention import GpuKernels
from lora_lab.budget.meter import LiveStorages, storage_bytes
from lora_lab.budget.optimizers import OPTIMIZERS
from lora_lab.budget.spread import SpreadStorages, places_of
from lora_lab.budget.table import (
    fitting_tokens,
    need_sizes,
    need_target,
    settings_text,
    tokens_text,
)
from lora_lab.errors import ConfigError
from lora_lab.methods.base import Adapter
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.masters import Masters
from lora_lab.methods.recompute_mlp import recomputed_mlps

_MAX_GRAD_NORM = 1.0  # TrainingConfig's; how far gradients are scaled costs nothing


@dataclass(frozen=True)
class DryRun:
    """The peak of one training step, in bytes, by part; the parts are those of `Memory`.

    Attributes:
        peak: live tensors at the dearest moment: the sum of the four parts.
        weights: the model's with its buffers, and the adapter's.
        gradients: of all that is trained.
        optimizer: its state, float32 masters of what is trained in half precision, and AdaLoRA's
            scores.
        activations: what the peak needs beyond the other three.
        seconds: that the dry run took.
        settings: what was assumed, for people: "batch 8 × 128 tokens, AdamW, float32".
        extras: what a CUDA device needs on top, by name; empty unless `cuda=True`. Not in `peak`.
        notes: what people should know besides.
        devices: of a model that lies on several, what the step takes on each beside its weights.
    """

    peak: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    seconds: float
    settings: str
    extras: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    devices: Mapping[torch.device, int] = field(default_factory=dict)

    @property
    def memory(self) -> Memory:
        """The four parts, as the closed form gives them."""
        return Memory(self.weights, self.gradients, self.optimizer, self.activations)

    @property
    def device_peak(self) -> int:
        """The peak with all extras: what the device has to hold."""
        return self.peak + sum(self.extras.values())


def dry_run(
    model: Any,
    config: Any = None,
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: torch.dtype | str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    padding_mask: bool = False,
    cuda: bool = False,
    target_length: int | None = None,
    device: torch.device | str | None = None,
    recompute_mlp: bool | None = None,
    label_length: int | None = None,
) -> DryRun:
    """Take one training step on fake tensors and count what it holds.

    As in training, the loss is the model's own with the method's penalty added, gradients are
    clipped, and the optimizer is the one that a run makes on the device. A model without a loss of
    its own is given the sum of its output. AdaLoRA's step is one before the first cut. FT's copy of
    W₀ is in the host's memory, and not counted.

    Args:
        model: a transformers model (its config and dtype are read) or config, a name, a folder.
        config: a method's config, or a list of them; None trains every weight.
        batch_size: sequences a step.
        sequence_length: tokens a sequence, padding included; learned ones come on top.
        dtype: of the base model; None takes the model's own. A and B are float32.
        optimizer: "adamw", "adamw_8bit", "sgd" or "adafactor".
        gradient_checkpointing: whether blocks are recomputed in the backward pass.
        padding_mask: whether some sequence is shorter, so that attention needs a mask.
        cuda: count what a CUDA device needs on top, in `extras`; see `lora_lab.budget.cuda`.
        target_length: tokens that an encoder-decoder model writes; None: as many as it reads.
        device: whose kernels are taken: torch's name, or one of `GPUS`. None: the model's own.
        recompute_mlp, label_length: see `budget`.

    Raises:
        ConfigError: for a setting that cannot be, or a config that does not fit the model.
        ModelError: for a model that cannot be read, or cannot be run on fake tensors.
    """
    start = time.perf_counter()
    gpu, kernels = _kernels(device or ("cuda" if cuda else own_device(model)))
    sizes = need_sizes(batch_size, sequence_length, label_length)
    with quiet_thread():
        hollow, kinds = fake_model.hollow_model(model, dtype)
        with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode():
            fake_model.fill(hollow, kinds)
            with fake_model.explained(hollow):
                config = _checked(hollow, config, sequence_length, target_length)
                adapter = fake_model.set_up(hollow, config, gradient_checkpointing, kernels)
                batch = fake_model.inputs(hollow, *sizes, padding_mask, target_length)
                step = _Step(hollow, adapter, batch, optimizer, cuda or bool(gpu), label_length)
                with kernels, recomputed_mlps(hollow, recompute_mlp):
                    peak, extras, each = step.measured(model, gpu, cuda)
    read = fake_model.read_text(batch) or tokens_text(sequence_length, target_length)
    shown = f"batch {batch_size} × {read}", OPTIMIZERS[optimizer], kinds.dtype
    settings = settings_text(shown, gradient_checkpointing, padding_mask, gpu)
    notes = (*kinds.notes, *getattr(kernels, "notes", ()))
    return DryRun(peak, *step.held(peak, start), settings, extras, notes, each)


def _kernels(device: torch.device | str | None) -> tuple[Gpu | None, AbstractContextManager[Any]]:
    gpu = gpu_of(device)
    return gpu, GpuKernels(gpu) if gpu else contextlib.nullcontext()


def _checked(
    model: Any, config: Any, sequence_length: int, target_length: int | None
) -> MethodConfig | None:
    """Return the config, or say what of it or of the lengths the model cannot take."""
    if target_length is not None:
        need_target(target_length, bool(getattr(model.config, "is_encoder_decoder", False)))
    most, longest = position_limit(model), max(sequence_length, target_length or 0)
    if most is not None and longest > most:
        raise ConfigError(
            f"a sequence of {longest} tokens is longer than the {most} positions of "
            f"{type(model).__name__}; use at most {most}"
        )
    if config is None:
        return None
    config = as_config(config)
    fitting_tokens(anatomy(model), config, sequence_length)
    return cast(MethodConfig, config)


class _Step:
    """A training step of a model on fake tensors.

    Attributes:
        gradients: bytes of all that the optimizer is given.
        state: bytes of masters, and of what the update leaves: the optimizer's state, and what an
            adapter keeps.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        batch: dict[str, Tensor],
        optimizer: str,
        on_gpu: bool,
        label_length: int | None,
    ) -> None:
        self._model = model
        self._adapter = adapter
        learning = [*(adapter or model).parameters()]
        self._masters = Masters(learning)
        self._moved = [self._masters.of(p) for p in learning]
        self._optimizer = fake_model.make_optimizer(optimizer, self._moved, on_gpu)
        self._batch, self._label_length = batch, label_length
        self.gradients = self._made = 0
        if adapter is not None:
            adapter.begin_training(self._optimizer, fake_model.MANY_STEPS)

    def measured(
        self, model: Any, gpu: Gpu | None, cuda: bool
    ) -> tuple[int, dict[str, int], dict[torch.device, int]]:
        """Return the peak, what a CUDA device needs on top, and what each of several needs."""
        peak, extras = self.on_cuda(gpu) if cuda else (self.peak(), {})
        return peak, extras, self.on_each(model)

    def peak(self) -> int:
        """Return the peak of the second step: the first has no optimizer state yet.

        That state is all that the second step's forward and backward pass have beyond the first's,
        so the first's are counted, and the state added.
        """
        counter = LiveStorages(self._resident())
        with counter:
            self._pass()
            passes = counter.peak
            self._update(counter)
        counter.peak = 0
        with counter:
            self._update(counter)
        return max(passes + self._made, counter.peak)

    def held(self, peak: int, start: float) -> tuple[int, int, int, int, float]:
        """Return the four parts of a peak, and the seconds since the start."""
        weights = storage_bytes([*self._model.parameters(), *self._model.buffers()])
        rest = peak - weights - self.gradients - self.state
        return weights, self.gradients, self.state, rest, time.perf_counter() - start

    def on_cuda(self, gpu: Gpu | None) -> tuple[int, dict[str, int]]:
        """Take two steps from end to end; return (peak, what a CUDA device needs on top)."""
        counter = CudaStorages(self._resident(), cublas_workspace(gpu))
        with counter:
            for _ in range(2):
                self._optimizer.zero_grad()
                self._pass()
                self._update(counter)
        return counter.peak, counter.extras()

    def on_each(self, model: Any) -> dict[torch.device, int]:
        """Take two steps as `model` lies on its devices; return what each needs beside weights."""
        places = places_of(unwrapped(model)) if isinstance(model, nn.Module) else {}
        if not places:
            return {}
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        counter = SpreadStorages(named, places)
        for name, parameter in self._model.named_parameters():
            counter.add(name, self._masters.of(parameter))
        with counter, counter.moving(self._model):
            for _ in range(2):
                self._optimizer.zero_grad()
                self._pass()
                self._update(counter)
        return {d: peak - counter.resident.get(d, 0) for d, peak in counter.peaks.items()}

    def _resident(self) -> list[Tensor]:
        masters = self._masters.state().values()
        return [*self._model.parameters(), *self._model.buffers(), *masters]

    def _pass(self) -> None:
        loss = fake_model.loss_of(self._model, self._batch, self._label_length)
        if self._adapter is not None and (penalty := self._adapter.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        self._masters.gather()
        self.gradients = storage_bytes(p.grad for p in self._moved if p.grad is not None)

    def _update(self, counter: LiveStorages) -> None:
        before = counter.live
        nn.utils.clip_grad_norm_(self._moved, _MAX_GRAD_NORM)
        self._optimizer.step()
        self._masters.write()
        self._made = self._made or counter.live - before  # the first update makes it
        self.state = self._made + storage_bytes(self._masters.state().values())
