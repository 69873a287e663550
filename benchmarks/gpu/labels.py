"""The loss of labels alone on the device: as exact as the model's own, and what it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks._large_vocabulary import adapted, words
from benchmarks._measure import Row, alternate, median_ratio
from benchmarks.adapters import at_most
from benchmarks.gpu.lines import Place
from benchmarks.gpu.memory import allocated
from benchmarks.gpu.speed import MIB, peak_of
from lora_lab.tasks.label_logits import label_logits


def labels(place: Place) -> list[Row]:
    """Compare loss and gradients with the model's own, then a step's peak and time with PEFT's."""
    found = {name: _gradients(place, alone) for name, alone in (("own", False), ("alone", True))}
    (own, theirs), (loss, mine) = found["own"], found["alone"]
    apart = max(
        abs(loss - own) / abs(own),
        *(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True)),
    )
    rows = [
        Row(
            "loss and gradients for labels alone, float32, against the model's own",
            f"{apart:.1e}",
            "≤ 1e-05",
            apart <= 1e-5,
            "of the largest of each tensor",
        )
    ]
    peaks: dict[str, int] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name in ("ours", "peft"):
        before = allocated(place)
        model = _adapted(place, name == "ours", torch.bfloat16)
        steps[name] = partial(_step, model, _batch(place), name == "ours")
        steps[name]()
        peaks[name] = peak_of(place, model, steps[name]) - before
    seconds = alternate(steps, 2 if place.small else 15)
    what = f"{words(place.small):,} words, 2 layers, a third of the tokens learned, bfloat16"
    speed = [
        at_most(
            f"peak of a pass and its gradient against PEFT's, {what}",
            peaks["ours"] / peaks["peft"],
            0.60,
            f"{peaks['ours'] / MIB:,.0f} against {peaks['peft'] / MIB:,.0f} MiB",
        ),
        at_most("its time", median_ratio(seconds["ours"], seconds["peft"]), 0.80, "against PEFT's"),
    ]
    return rows + [dataclasses.replace(r, met=None) if place.small else r for r in speed]


def _batch(place: Place) -> dict[str, torch.Tensor]:
    """Return 8 rows, of whose tokens the last third is learned."""
    length = 48 if place.small else 384
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 1000, (8, length), generator=drawn)
    learned = ids.where(torch.arange(length) >= length * 2 // 3, -100)
    return {"input_ids": ids.to(place.device), "labels": learned.to(place.device)}


def _adapted(place: Place, ours: bool, dtype: torch.dtype) -> Any:
    return adapted(ours, place.small, dtype).to(place.device)


def _loss(model: Any, batch: dict[str, torch.Tensor], alone: bool) -> torch.Tensor:
    learned = int((batch["labels"] != -100).sum())
    with label_logits(model, learned) if alone else nullcontext():
        loss: torch.Tensor = model(**batch).loss
    return loss


def _step(model: Any, batch: dict[str, torch.Tensor], alone: bool) -> None:
    """Take a forward and a backward pass, and wait for the device."""
    _loss(model, batch, alone).backward()
    model.zero_grad()
    if batch["labels"].is_cuda:
        torch.cuda.synchronize()


def _gradients(place: Place, alone: bool) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and all gradients, in float32 with factors that are not zero."""
    model = _adapted(place, True, torch.float32)
    learning = [p for p in model.parameters() if p.requires_grad]
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for each in learning:
            each.copy_(0.05 * torch.randn(each.shape, generator=drawn))
    loss = _loss(model, _batch(place), alone)
    return float(loss.detach()), list(torch.autograd.grad(loss, learning))
