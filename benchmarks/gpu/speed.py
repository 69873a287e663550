"""How fast the device trains, beside PEFT and beside the bare steps, and how it looks at ΔW."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

import lora_lab as ll
from benchmarks._measure import Row, alternate, median_ratio
from benchmarks.adapters import BILLION, METHODS, NARROW, Shape, at_most, llama, stepper
from benchmarks.gpu.lines import Place
from benchmarks.gpu.memory import allocated
from benchmarks.spectra import SMOLLM2
from lora_lab.analysis import adapter_spectra
from lora_lab.anatomy import Site
from lora_lab.budget.meter import LiveStorages, Meter
from lora_lab.models import LoadedModel
from lora_lab.spectra.update import LowRankUpdate, SiteUpdate
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.adamw import AdamW
from tests.helpers.tiny_text import tiny_tokenizer

MIB = 2**20


def _shape(place: Place) -> tuple[Shape, int, int]:
    """Return the model's shape, and the batch: examples and tokens of each."""
    narrow = {**NARROW, "num_hidden_layers": 2, "vocab_size": 320}
    return (narrow, 1, 64) if place.small else (BILLION, 1, 2048)


def against_peft(place: Place) -> list[Row]:
    """Take steps of all three in turn: ours, PEFT's, and the gradient chain without an adapter."""
    shape, batch, length = _shape(place)
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    for name, attach in METHODS.items():
        before = allocated(place)
        model = attach(llama(shape, torch.bfloat16, place.device))
        steps[name] = stepper(model, batch, length, place.device, torch.bfloat16)
        steps[name]()  # the optimizer's state
        peaks[name] = peak_of(place, model, steps[name]) - before
        del model
    seconds = alternate(steps, 2 if place.small else 15, warmup=0 if place.small else 3)
    floor = median_ratio(seconds["floor"], seconds["peft"])
    what = f"{length:,} tokens, bfloat16" + ("" if place.small else ", 1B shape")
    rows = [
        at_most(
            f"a training step's time against PEFT's, {what}",
            median_ratio(seconds["ours"], seconds["peft"]),
            0.80,
            f"bound {floor:.3f}×: no adapter, gradient chain only; "
            f"{1e3 * min(seconds['ours']):.0f} against {1e3 * min(seconds['peft']):.0f} ms",
        ),
        at_most(
            f"its peak memory against PEFT's, {what}",
            peaks["ours"] / peaks["peft"],
            0.75,
            f"{peaks['ours'] / MIB:,.0f} against {peaks['peft'] / MIB:,.0f} MiB; "
            f"bound {peaks['floor'] / MIB:,.0f} MiB: no adapter",
        ),
    ]
    return [_of_the_gpu(place, row) for row in rows]


def tokens(place: Place) -> list[Row]:
    """Train from end to end, and count; then take the same steps in a bare loop."""
    shape, _, _ = _shape(place)
    batch, length = (2, 64) if place.small else (8, 1024)
    steps, skipped = (4, 1) if place.small else (24, 8)
    with_positions = {**shape, "max_position_embeddings": 2 * length, "eos_token_id": 2}
    model: Any = llama(with_positions, torch.bfloat16, place.device)
    # One token a byte; the end of the text is one more.
    text = "a" * (length // 2 - 1)
    examples = [Example(text, text, (text,)) for _ in range(2 * batch)]
    task = GenerationTask("letters", True, examples, examples[:1])
    lm = LoadedModel.given(model, tiny_tokenizer(), "one-billion")
    run = ll.train(
        lm,
        task,
        ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        output_dir=place.folder / "tokens",
        max_steps=steps,
        per_device_train_batch_size=batch,
        max_length=length,
        eval_examples=0,
        save_steps=0,
    )
    run.result()
    rows = [json.loads(row) for row in (run.folder / "metrics.jsonl").read_text().splitlines()]
    took = {row["step"]: row["seconds"] for row in rows if "seconds" in row}
    rate = (steps - skipped) * batch * length / (took[steps] - took[skipped])
    step = stepper(model, batch, length, place.device, torch.bfloat16)
    for _ in range(skipped):
        step()
    start = time.perf_counter()
    for _ in range(steps - skipped):
        step()
    bare = (steps - skipped) * batch * length / (time.perf_counter() - start)
    row = Row(
        f"tokens a second, end to end, {batch} × {length:,} tokens",
        f"{rate:,.0f}",
        "≥ 0.90× of the bare steps",
        rate >= 0.9 * bare,
        f"{rate / bare:.2f}× of the same model's steps in a bare loop, {bare:,.0f}",
    )
    return [_of_the_gpu(place, row)]


def optimizer(place: Place) -> list[Row]:
    """Take AdamW's step over the factors of 210 sites: the run's, and torch's by default."""
    drawn = torch.Generator(place.device).manual_seed(0)
    shapes = [(8, k) for _ in range(30) for _, k in SMOLLM2]
    shapes += [(d, 8) for _ in range(30) for d, _ in SMOLLM2]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name in ("ours", "torch"):
        factors = [
            torch.nn.Parameter(torch.randn(shape, device=place.device, generator=drawn))
            for shape in shapes
        ]
        for each in factors:
            each.grad = torch.randn(each.shape, device=place.device, generator=drawn)
        if name == "ours":
            meter = Meter(torch.nn.ParameterList(factors))
            optimizers[name] = AdamW(meter, [{"params": factors}], lr=1e-4)
        else:
            optimizers[name] = torch.optim.AdamW(factors, lr=1e-4)

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        if place.device == "cuda":
            torch.cuda.synchronize()

    runs = {name: partial(step, each) for name, each in optimizers.items()}
    seconds = alternate(runs, 3 if place.small else 30, warmup=2)
    row = at_most(
        f"AdamW's step over {len(shapes)} factors, the run's against torch's by default",
        median_ratio(seconds["ours"], seconds["torch"]),
        1.0,
        f"{1e3 * min(seconds['ours']):.2f} against {1e3 * min(seconds['torch']):.2f} ms",
    )
    return [_of_the_gpu(place, row)]


def spectra(place: Place) -> list[Row]:
    """Count ΔW's singular values at every site of SmolLM2-135M, on both."""
    layers = 2 if place.small else 30
    drawn = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(8, k, generator=drawn), torch.randn(d, 8, generator=drawn))
        for _ in range(layers)
        for d, k in SMOLLM2
    ]
    found, milliseconds = {}, {}
    for device in dict.fromkeys((place.device, "cpu")):
        sites = {
            str(i): SiteUpdate(
                Site("q", "q", 0, "q", A.shape[1], B.shape[0]),
                LowRankUpdate(A.to(device), B.to(device), 2.0),
            )
            for i, (A, B) in enumerate(factors)
        }
        adapter: Any = SimpleNamespace(sites=sites)
        found[device] = adapter_spectra(adapter)  # once before it is timed
        seconds = alternate({"all": partial(adapter_spectra, adapter)}, 5)["all"]
        milliseconds[device] = 1e3 * sorted(seconds)[2]
    here, there = found[place.device], found["cpu"]
    apart = max(float(abs(here[site] - there[site]).max() / there[site][0]) for site in there)
    return [
        Row(
            f"ΔW's spectrum at {len(factors)} sites, GPU − CPU",
            f"{apart:.1e} of σ₁",
            "≤ 1e-05",
            apart <= 1e-5,
            ", ".join(f"{ms:.1f} ms on {device}" for device, ms in milliseconds.items()),
        )
    ]


def peak_of(place: Place, model: Any, step: Callable[[], None]) -> int:
    """Return the most bytes that are there during a step."""
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    counter = LiveStorages([*(p.detach() for p in model.parameters()), *model.buffers()])
    with counter:
        step()
    return counter.peak


def _of_the_gpu(place: Place, row: Row) -> Row:
    """Return a row as it is of a GPU; a small model's speed on a CPU says nothing."""
    return dataclasses.replace(row, met=None) if place.small else row
