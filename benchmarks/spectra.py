"""How fast ΔW = s·BA is looked at: whole models, one site against the built matrix, and table 7."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch

from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab import spectra
from lora_lab.analysis import adapter_spectra
from lora_lab.analysis.amplify import amplifications
from lora_lab.anatomy import Site
from lora_lab.methods.lora.init import olora
from lora_lab.spectra.update import LowRankUpdate, SiteUpdate

# (out, in) of one layer: q k v o gate up down.
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
LLAMA2 = [*[(4096, 4096)] * 4, (11008, 4096), (11008, 4096), (4096, 11008)]
SIDE, RANK = 4096, 16
FASTER, EQUAL, TABLE_7_MS, START = 5_000, 1e-5, 50.0, 20


def main() -> None:
    torch.manual_seed(0)
    rows = [
        whole_model("SmolLM2-135M", SMOLLM2, layers=30, r=8, reach_ms=100),
        whole_model("Llama-2-7B", LLAMA2, layers=32, r=RANK, reach_ms=1000),
        *one_site(SIDE),
        *table_7(SIDE),
        start_of_olora(SIDE // 2),
    ]
    print_table("Spectra of ΔW, float32", rows)


def whole_model(
    name: str, layer: list[tuple[int, int]], layers: int, r: int, reach_ms: float
) -> Row:
    sites = {
        f"{i}.{j}": SiteUpdate(
            Site("q", "q", 0, "q", k, d), LowRankUpdate(torch.randn(r, k), torch.randn(d, r), 2.0)
        )
        for i in range(layers)
        for j, (d, k) in enumerate(layer)
    }
    adapter = SimpleNamespace(sites=sites)
    ms = median_ms(lambda: adapter_spectra(adapter))
    what = f"singular values of all {len(sites)} sites of {name}, r={r}"
    return Row(what, f"{ms:.1f} ms", f"< {reach_ms:.0f} ms", ms < reach_ms, "median of 20")


def one_site(side: int) -> Iterator[Row]:
    A, B = torch.randn(RANK, side), torch.randn(side, RANK)
    ours = median_ms(lambda: spectra.singular_values(A, B))
    start = time.perf_counter()
    exact = torch.linalg.svdvals(B @ A)
    built = (time.perf_counter() - start) * 1e3
    what = f"one {side}² site, r={RANK}, against torch.linalg.svdvals of the built ΔW"
    yield Row(
        what,
        f"{built / ours:,.0f}× faster",
        f"≥ {FASTER:,}×",
        built / ours >= FASTER,
        f"{ours:.2f} ms (median of 20) against {built / 1e3:.1f} s (once)",
    )
    error = float((spectra.singular_values(A, B) - exact[:RANK]).abs().max() / exact[0])
    yield Row(
        "largest difference between the two", f"{error:.0e} of σ₁", f"≤ {EQUAL:g}", error <= EQUAL
    )


def table_7(side: int) -> Iterator[Row]:
    W = weight(side)
    site = Site("q", "q", 0, "q", side, side)
    update = LowRankUpdate(torch.randn(RANK, side), torch.randn(side, RANK), 2.0)
    known = SiteUpdate(site, update)
    start = time.perf_counter()
    amplifications([known], lambda _: W)
    first = (time.perf_counter() - start) * 1e3

    def step() -> None:
        update.B.add_(1e-3)  # as training does: another ΔW, the same W₀
        amplifications([known], lambda _: W)

    again = median_ms(step)
    yield Row(
        f"table 7's triple of a {side}² site, r={RANK}, W₀'s directions known",
        f"{again:.1f} ms",
        f"< {TABLE_7_MS:.0f} ms",
        again < TABLE_7_MS,
        f"median of 20; {first:.0f} ms the first time",
    )


def start_of_olora(side: int) -> Row:
    W = weight(side)
    runs = {"ours": lambda: olora(W, RANK), "whole": lambda: torch.linalg.qr(W)}
    seconds = alternate(runs, rounds=5)
    faster = 1 / median_ratio(seconds["ours"], seconds["whole"])
    what = f"OLoRA's start of a {side}² site, r={RANK}, against the whole QR that PEFT takes"
    return Row(what, f"{faster:.0f}× faster", f"≥ {START:g}×", faster >= START, "median of 5")


def weight(side: int) -> torch.Tensor:
    """Return a matrix with a trained weight's kind of spectrum: a slow decay over noise."""
    strong = side // 8
    U, V = (torch.linalg.qr(torch.randn(side, strong))[0] for _ in range(2))
    return (U * (10 * torch.arange(1, strong + 1) ** -0.4)) @ V.T + 0.01 * torch.randn(side, side)


def median_ms(run: Callable[[], object]) -> float:
    return statistics.median(alternate({"run": run}, rounds=20)["run"]) * 1e3


if __name__ == "__main__":
    main()
