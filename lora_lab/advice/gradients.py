"""How much a task's loss asks of each weight matrix: gradient norms of a few backward passes.

A twin of the model that shares its weights goes forward and backward, so that nothing of the model
itself changes: its gradients, its modes, what of it learns, torch's random numbers.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_lab._util.devices import device_of
from lora_lab._util.hardware import hardware
from lora_lab._util.own_random import OwnRandom
from lora_lab._util.torch_modes import plain_modes
from lora_lab._util.torch_private import parameters_of, with_tensors
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Site
from lora_lab.anatomy.wrappers import module_at, unwrapped
from lora_lab.errors import ModelError
from lora_lab.methods.attached import bare
from lora_lab.methods.config import need_count
from lora_lab.methods.lora.layers import owned_rows
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.encoding import IGNORED
from lora_lab.training.checks import check, check_rows, check_settings
from lora_lab.training.data import RunData
from lora_lab.training.pass_loss import PassLosses, Share, label_count

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_SCALE = 1024.0  # of a loss in float16, whose gradients would be lost below 6e-8


@dataclass(frozen=True)
class LayerGradients:
    """‖∂L/∂W₀‖_F of the base model's weight matrices, L being a batch's mean loss.

    Attributes:
        by_pass: {site: one norm for each backward pass}, in the grid's order; of routed experts
            that share a tensor, of all of it; of a slice of a fused matrix, of its rows.
        losses: of each pass, in the task's unit.
        left_out: {site: why it has none}.
        seconds: that it took.
        batches: what the model was given, with "labels", so that anybody can do it again.
    """

    by_pass: Mapping[str, tuple[float, ...]]
    losses: tuple[float, ...]
    left_out: Mapping[str, str]
    seconds: float
    batches: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False)

    @property
    def norms(self) -> dict[str, float]:
        """{site: the mean over the passes}."""
        return {name: statistics.fmean(norms) for name, norms in self.by_pass.items()}

    @property
    def spread(self) -> dict[str, float]:
        """{site: the standard deviation over the passes}, of n − 1; 0 of one pass."""
        several = len(self.losses) > 1
        return {n: statistics.stdev(v) if several else 0.0 for n, v in self.by_pass.items()}


def layer_gradients(
    lm: LoadedModel,
    task: Task,
    *,
    passes: int = 4,
    batch_size: int = 2,
    max_length: int = 128,
    seed: int = 0,
    done: Callable[[int], None] = lambda _count: None,
) -> LayerGradients:
    """Measure them on a task's first training examples, in the order that a run of `seed` draws.

    Without dropout, and without the active adapter, which is switched off meanwhile.

    Args:
        lm: the model; no run trains it.
        task: whose loss it is.
        passes: batches, 4 to 8 as a rule.
        batch_size: examples each.
        max_length: tokens an example; longer ones are cut.
        seed: of the examples' order.
        done: told the number of passes that are done, after each; it may raise.

    Raises:
        ConfigError: a count that cannot be, more tokens than the model has positions, a model
            that the task is not for or that has no weights.
        TaskError: no example fits.
        AdapterError: a run trains the model, or an adapter is merged.
        ModelError: no gradient reaches any matrix.
    """
    start = time.monotonic()
    need_count("passes", passes, least=1)
    need_count("batch_size", batch_size, least=1)
    training = TrainingConfig(
        max_steps=passes,
        per_device_train_batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        eval_examples=0,
    )
    check(lm, task)
    check_settings(lm, task, (), training)
    check_rows(lm, task, (), training)
    with bare(lm.model), plain_modes():
        data = RunData(lm, task, training, [])
        batches = data.first_batches(passes)
        return gradient_norms(lm.model, batches, data.family.loss, start=start, done=done)


def gradient_norms(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    share: Share | None = None,
    *,
    start: float | None = None,
    done: Callable[[int], None] = lambda _count: None,
) -> LayerGradients:
    """Measure them on batches.

    Args:
        model: as it stands, its active adapter with it.
        batches: what the model takes, with "labels", on its device.
        share: (output, labels, num_items_in_batch) → the loss; None: the model's own.
        start: `time.monotonic()` from when it is timed; None: now.
        done: as in `layer_gradients`.

    Raises:
        ModelError: no gradient reaches any matrix, or they are not finite.
    """
    start = time.monotonic() if start is None else start
    own = unwrapped(model)
    sites = anatomy(own).sites
    held, left_out = _held(own, sites)
    leaves = {p: p.detach().requires_grad_() for p in held}
    if not leaves:
        raise ModelError(_nowhere(left_out))
    twin = with_tensors(own, {p: p.detach() for p in own.parameters()} | leaves)
    for module in twin.modules():
        module.training = False  # not by `eval`, in which loralib's layers write into W₀
    found: dict[str, float] = {}
    for parameter, leaf in leaves.items():
        _watch(leaf, held[parameter], found)
    half = any(p.dtype == torch.float16 for p in held)
    make, scale = PassLosses(twin, share), _SCALE if half else 1.0
    norms: defaultdict[str, list[float]] = defaultdict(list)
    losses: list[float] = []
    with torch.enable_grad(), plain_modes(), OwnRandom(0, device_of(own)).everywhere():
        for number, batch in enumerate(batches, start=1):
            found.clear()
            losses.append(_pass(twin, make, dict(batch), [*leaves.values()], scale))
            for site in itertools.chain.from_iterable(held.values()):
                norms[site.name].append(found.get(site.name, 0.0) / scale)
            done(number)
    _check(norms)
    order = [site.name for site in sites if any(norms[site.name])]
    left_out |= {n: "no gradient reaches it" for n, own_ in norms.items() if own_ and not any(own_)}
    if not order:
        raise ModelError(_nowhere(left_out))
    by_pass = {name: tuple(norms[name]) for name in order}
    seconds = time.monotonic() - start
    return LayerGradients(by_pass, tuple(losses), left_out, seconds, tuple(batches))


def _pass(
    twin: nn.Module, make: PassLosses, batch: dict[str, Tensor], leaves: list[Tensor], scale: float
) -> float:
    """Go forward and backward; return the loss."""
    labels = int((batch["labels"] != IGNORED).sum())
    items = torch.full((), label_count(batch), dtype=torch.float32, device=batch["labels"].device)
    loss = make(twin, batch, items, 1, labels=labels, scale=scale)
    if not loss.trained.requires_grad:
        raise ModelError(
            f"{type(twin).__name__} gives a loss that no weight matrix has a part in (it is "
            "compiled, or offloaded); load it plainly on one device"
        )
    (loss.trained * scale).backward(inputs=leaves)
    return float((loss.trained if loss.said is None else loss.said).detach())


def _watch(leaf: Tensor, sites: Sequence[Site], found: dict[str, float]) -> None:
    """Note the norms of a tensor's gradient when it has come, and let it go: one is there at once.

    The sum of squares is taken in float64 where the device has it.
    """

    def take(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        wide = hardware(gradient.device).widest
        for site in sites:
            own = gradient if site.rows is None else owned_rows(gradient, site)
            norm = torch.linalg.vector_norm(own, dtype=wide)
            found[site.name] = float(norm)

    leaf.register_post_accumulate_grad_hook(take)


def _held(
    model: nn.Module, sites: Sequence[Site]
) -> tuple[dict[nn.Parameter, list[Site]], dict[str, str]]:
    """Return {weight: the matrices that it holds}, and {site: why it is not measured}."""
    held: defaultdict[nn.Parameter, list[Site]] = defaultdict(list)
    left_out = {}
    for site in sites:
        module = module_at(model, site.module)
        weight = parameters_of(module).get(site.parameter)
        if (packed := packing(module)) is not None:
            left_out[site.name] = f"its weight is packed ({packed})"
        elif weight is None:
            left_out[site.name] = "its weight is computed from other tensors"
        elif weight.is_meta:
            left_out[site.name] = "its weight is not here"
        else:
            held[weight].append(site)
    return dict(held), left_out


def _check(norms: Mapping[str, Sequence[float]]) -> None:
    for name, values in norms.items():
        if not all(map(math.isfinite, values)):
            raise ModelError(
                f"the gradient of {name} is not finite; load the model in float32 or bfloat16"
            )


def _nowhere(left_out: Mapping[str, str]) -> str:
    name, why = next(iter(left_out.items()), ("the model", "it has no linear layer"))
    return (
        f"there are no gradients to measure ({name}: {why}); probe the model with its weights, "
        "unquantized, on one device"
    )
