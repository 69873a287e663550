"""Does training on the device do what it does on the CPU, under every method?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lora_lab as ll
from benchmarks._measure import Row
from benchmarks.gpu.lines import Place
from lora_lab.methods.attached import activate, active
from lora_lab.models import LoadedModel
from lora_lab.tasks.families.api import family_of
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

ALL: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
LORA = ll.LoraConfig(**ALL)
METHODS: dict[str, Any] = {
    "LoRA": LORA,
    "rsLoRA": LORA.replace(use_rslora=True),
    "DoRA": LORA.replace(use_dora=True),
    "PiSSA": LORA.replace(init_lora_weights="pissa"),
    "OLoRA": LORA.replace(init_lora_weights="olora"),
    "LoRA-FA": LORA.replace(use_lorafa=True),
    "AdaLoRA": ll.AdaLoraConfig(
        init_r=4, target_r=2, target_modules="all-linear", tinit=1, tfinal=1, deltaT=1
    ),
    "IA3": ll.IA3Config(),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["o", "down"]),
    "FT": ll.FullConfig(),
    "FT-Top2": ll.FullConfig(top_layers=2),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "PreEmbed": ll.PrefixEmbedConfig(prefix_length=3),
    "PreLayer": ll.PrefixLayerConfig(prefix_length=2),
    "Adapter^H": ll.BottleneckConfig("H", r=3),
    "Adapter^P": ll.BottleneckConfig("P", r=3),
    "LoRA+PE": [LORA, ll.PrefixEmbedConfig(prefix_length=3)],
}
STEPS, CLOSE = 5, 1e-4
AS_ON_THE_CPU = 1e-3  # other kernels; float32 against float64 differs by 3e-5 on the CPU


def tiny_lm(device: str) -> LoadedModel:
    """Return a random Llama of two layers, the same on every device."""
    model: Any = tiny_llama()
    return LoadedModel.given(model.to(device), tiny_tokenizer(), "tiny-llama")


def fused_version(place: Place) -> list[Row]:
    """Look at what `_fused_adamw_` leaves of a tensor's version: the dispatcher bumps it for what
    an operation returns, and this one returns nothing."""
    parameter = nn.Parameter(torch.ones(4, device=place.device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    before = parameter._version
    optimizer.step()
    moved, bumps = bool((parameter != 1).all()), parameter._version - before
    return [
        Row(
            "a fused AdamW step raises the parameter's version by",
            str(bumps),
            "0, and moves it",
            moved and not bumps,
            "moved" if moved else "did not move",
        )
    ]


def dora(place: Place) -> list[Row]:
    """Train DoRA; compare the live model with the saved adapter and with the merged weights."""
    lm = tiny_lm(place.device)
    steps = 5 if place.small else 60
    config = LORA.replace(use_dora=True)
    run = _train(place, lm, config, max_steps=steps)
    folder = run.result().adapter_folder
    ids = torch.arange(5, 25, device=place.device).unsqueeze(0)
    twin = tiny_lm(place.device).model
    ll.load_adapter(twin, folder)
    live, reloaded = _logits(lm.model, ids), _logits(twin, ids)
    ll.merge(lm.model)
    merged = _logits(lm.model, ids)
    return [
        _close(f"DoRA after {steps} steps, live − reloaded, logits", live, reloaded, CLOSE),
        _close(f"DoRA after {steps} steps, live − merged, logits", live, merged, 1e-3),
    ]


def methods(place: Place) -> list[Row]:
    """Train with every method for a few steps, three times."""
    chosen = ("LoRA", "AdaLoRA", "PreEmbed") if place.small else tuple(METHODS)
    steps = 3 if place.small else STEPS
    found: dict[str, dict[str, list[float]]] = {}
    failed = []
    for name in chosen:

        def losses(device: str, config: Any = METHODS[name], **settings: Any) -> list[float]:
            run = _train(place, tiny_lm(device), config, max_steps=steps, **settings)
            return _losses(run)

        try:
            found[name] = {
                "plain": losses(place.device),
                "with gradient checkpointing as without": losses(
                    place.device, gradient_checkpointing=True
                ),
                "as on the CPU": losses("cpu"),
            }
        except Exception as error:  # the other methods are tried all the same
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:120]}")
    rows = []
    for what, limit in {
        "with gradient checkpointing as without": CLOSE,
        "as on the CPU": AS_ON_THE_CPU,
    }.items():
        apart = {name: _apart(each["plain"], each[what]) for name, each in found.items()}
        off = [f"{name} {value:.1e}" for name, value in apart.items() if not value <= limit]
        measured = f"{max(apart.values(), default=float('nan')):.1e} at most"
        label = f"{len(chosen)} methods, {steps} steps, losses {what}"
        note = "; ".join(off + failed)
        rows.append(Row(label, measured, f"≤ {limit:g}", not off and not failed, note))
    return rows


def resumed(place: Place) -> list[Row]:
    """Compare a run that is left alone with one that answers meanwhile and one that is resumed."""
    config = LORA.replace(lora_dropout=0.1)
    steps = 12 if place.small else 40
    alone = _losses(_train(place, tiny_lm(place.device), config, max_steps=steps))

    lm = tiny_lm(place.device)
    asked = _train(place, lm, config, max_steps=steps, start=False)
    task = tiny_task()
    _after(asked, 5, lambda: asked.pause())
    asked.start()
    while not (asked.is_paused or asked.state.final):
        asked.wait(0.01)
    with asked.paused():
        _answer(lm, task)
    asked.resume()

    stopped = _train(place, tiny_lm(place.device), config, max_steps=steps, start=False)
    _after(stopped, 5, lambda: stopped.stop())
    stopped.start().result()
    again = ll.resume(stopped.folder, tiny_lm(place.device), tiny_task())
    rows = []
    for what, run in {"paused, with an answer in between": asked, "resumed": again}.items():
        apart = _apart(alone, _losses(run))
        note = "bit for bit" if apart == 0 else ""
        what = f"dropout, {steps} steps, left alone − {what}, losses"
        rows.append(Row(what, f"{apart:.1e} at most", "≤ 1e-05", apart <= 1e-5, note))
    return rows


def scores(place: Place) -> list[Row]:
    """Train with answers before and after, which sacrebleu scores."""
    lm = tiny_lm(place.device)
    steps = 2 if place.small else 150
    run = _train(place, lm, LORA, max_steps=steps, eval_examples=4, learning_rate=1e-2)
    found = run.result().metrics
    before, after = found["bleu_before"], found["bleu_after"]
    better = None if place.small else after > before
    return [Row("BLEU of a tiny task", f"{before:.1f} → {after:.1f}", "rises", better)]


_numbers = itertools.count()


def _train(place: Place, lm: LoadedModel, config: Any, **settings: Any) -> ll.Run:
    settings = {"eval_examples": 0, "max_length": 64, "learning_rate": 1e-2, **settings}
    folder = place.folder / f"runs-{next(_numbers)}"
    return ll.train(lm, tiny_task(), config, output_dir=folder, **settings)


def _losses(run: ll.Run) -> list[float]:
    return [loss for _, loss in run.result().losses]


def _after(run: ll.Run, step: int, do: Callable[[], None]) -> None:
    """Have something done by the run's own thread in the forward pass of one step."""
    calls = itertools.count(1)

    def look(*_: object) -> None:
        if run.model.training and next(calls) == step:
            do()

    run.model.register_forward_pre_hook(look)


def _answer(lm: LoadedModel, task: Any) -> None:
    family = family_of(task, lm)(lm, task, 64)
    name = active(lm.model)
    for each in (None, name):  # as the workbench's "Try it": the base, then the adapted model
        activate(lm.model, each)
        family.answer(task.validation[0].prompt, 8)


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return logits


def _close(what: str, x: torch.Tensor, y: torch.Tensor, limit: float) -> Row:
    apart = float((x - y).abs().max())
    note = f"logits up to {float(x.abs().max()):.1f}"
    return Row(what, f"{apart:.1e} at most", f"≤ {limit:g}", apart <= limit, note)


def _apart(x: list[float], y: list[float]) -> float:
    assert len(x) == len(y), f"{len(x)} steps against {len(y)}"
    return max(abs(a - b) for a, b in zip(x, y, strict=True))
