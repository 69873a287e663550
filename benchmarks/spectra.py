"""How fast ΔW = s·BA is looked at: all sites of a model, and one site against the built matrix."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import torch

from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab import spectra
from lora_lab.analysis import adapter_spectra

# (out, in) of one layer of SmolLM2-135M: q k v o gate up down. It has 30 layers.
LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
LAYERS, RANK, REACH_MS, SIDE = 30, 8, 100.0, 2048


def main() -> None:
    torch.manual_seed(0)
    adapter = smollm2_adapter()
    seconds = alternate({"all": lambda: adapter_spectra(adapter)}, rounds=20)["all"]
    sites_ms = statistics.median(seconds) * 1e3

    A, B = torch.randn(RANK, SIDE), torch.randn(SIDE, RANK)
    built = B @ A
    runs = {
        "ours": lambda: spectra.singular_values(A, B),
        "built": lambda: torch.linalg.svdvals(built),
    }
    both = alternate(runs, rounds=3)
    faster = 1 / median_ratio(both["ours"], both["built"])
    exact = torch.linalg.svdvals(built)
    error = (spectra.singular_values(A, B) - exact[:RANK]).abs().max() / exact[0]
    print_table(
        f"Spectra of ΔW, float32, r={RANK}",
        [
            Row(
                f"singular values of all {len(adapter.sites)} sites of SmolLM2-135M",
                f"{sites_ms:.1f} ms",
                f"< {REACH_MS:.0f} ms",
                sites_ms < REACH_MS,
                "median of 20",
            ),
            Row(
                f"one {SIDE}² site against torch.linalg.svdvals of the built ΔW",
                f"{faster:,.0f}× faster",
                "",
                None,
                f"median of 3 pairs; they differ by {error:.0e} of σ₁",
            ),
        ],
    )


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


if __name__ == "__main__":
    main()
