"""How fast ΔW = s·BA is looked at: `python -m benchmarks.spectra`.

All 210 sites of a SmolLM2-135M with every linear layer adapted at r = 8, and one 2048² site
against the SVD of the built matrix. Medians of runs that alternate in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch

from lora_lab import spectra
from lora_lab.analysis import adapter_spectra

# (out, in) of one layer of SmolLM2-135M: q k v o gate up down. It has 30 layers.
LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
LAYERS, RANK, TARGET_MS = 30, 8, 100.0


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32, r = {RANK}\n")
    print(f"{'what':<52}{'median':>12}{'fastest':>12}")

    adapter = smollm2_adapter()
    times = alternating(20, lambda: adapter_spectra(adapter))[0]
    row(f"singular values, all {len(adapter.sites)} sites", times)
    verdict = "met" if statistics.median(times) * 1e3 < TARGET_MS else "MISSED"
    print(f"{'':<4}target: under {TARGET_MS:.0f} ms: {verdict}\n")

    A, B = torch.randn(RANK, 2048), torch.randn(2048, RANK)
    built = B @ A
    ours, theirs = alternating(
        3, lambda: spectra.singular_values(A, B), lambda: torch.linalg.svdvals(built)
    )
    row("one 2048 × 2048 site, from its factors", ours)
    row("the same, torch.linalg.svdvals of the built ΔW", theirs)
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    faster = statistics.median(ratios)
    print(f"{'':<4}ratio, median of {len(ratios)} pairs: {faster:,.0f} times faster")
    error = (spectra.singular_values(A, B) - torch.linalg.svdvals(built)[:RANK]).abs().max()
    print(f"{'':<4}largest difference: {error / torch.linalg.svdvals(built)[0]:.1e} of σ₁")


def smollm2_adapter() -> SimpleNamespace:
    shapes = [(layer, i, d, k) for layer in range(LAYERS) for i, (d, k) in enumerate(LAYER)]
    return SimpleNamespace(
        sites={
            f"{layer}.{i}": SimpleNamespace(
                A=torch.randn(RANK, k), B=torch.randn(d, RANK), scale=2.0
            )
            for layer, i, d, k in shapes
        }
    )


def alternating(rounds: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Return seconds a call of each function, run in turns after one warm-up each."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, kept in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            kept.append(time.perf_counter() - start)
    return times


def row(what: str, seconds: list[float]) -> None:
    median, fastest = statistics.median(seconds) * 1e3, min(seconds) * 1e3
    print(f"{what:<52}{median:>9.2f} ms{fastest:>9.2f} ms")


if __name__ == "__main__":
    main()
