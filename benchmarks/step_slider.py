"""How fast the maps over steps follow their slider: 200 saved steps of 224 sites, from disk."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from benchmarks._measure import Row, print_table
from lora_lab.analysis import step_maps
from lora_lab.figures import step_maps_figure, update_step_maps
from lora_lab.runs import read_history
from lora_lab.runs.spectra_log import SITES_FILE, SPECTRA_FILE, SpectraLog

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
LAYERS, RANK = 32, 16
REACH_MS = 50.0  # three frames of a screen: what follows a hand within that is not seen to stall


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--moves", type=int, default=400)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_run(folder, args.steps)
        start = time.perf_counter()
        maps = step_maps(read_history(folder))
        opening_ms = (time.perf_counter() - start) * 1e3
    plain = step_maps_figure(maps, 0)
    # As in the workbench: a move also makes the message to the browser.
    kinds: dict[str, Any] = {"figure": plain, "live widget": go.FigureWidget(plain)}
    places = random.Random(0).choices(range(args.steps), k=args.moves)
    rows = []
    for kind, figure in kinds.items():
        moves = []
        for place in places:
            start = time.perf_counter()
            with figure.batch_update():
                update_step_maps(figure, maps, place)
            moves.append((time.perf_counter() - start) * 1e3)
        p95 = float(np.percentile(moves, 95))
        rows.append(
            Row(
                f"one move of the slider, {kind}",
                f"{statistics.median(moves):.1f} ms, p95 {p95:.1f} ms",
                f"p95 < {REACH_MS:.0f} ms",
                p95 < REACH_MS,
                f"median of {args.moves} moves",
            )
        )
    rows.append(Row("reading all of it from disk", f"{opening_ms:.0f} ms", "", None, "once"))
    sites = LAYERS * len(ROLES)
    print_table(f"Maps over steps: {args.steps} saved steps of {sites} sites, r={RANK}", rows)


def write_run(folder: Path, steps: int) -> None:
    """Write what a run keeps of its spectra; the values are drawn, and grow like those of a run."""
    sites = [
        {
            "name": f"{layer}.{role}",
            "stack": "",
            "layer": layer,
            "role": role,
            "out_features": 4096,
            "in_features": 4096,
            "r": RANK,
            "singular_values": RANK,
            "weight_norm": 80.0,
            "trainable": 2 * 4096 * RANK,
        }
        for layer in range(LAYERS)
        for role in ROLES
    ]
    (folder / SITES_FILE).write_text(json.dumps({"sites": sites}), encoding="utf-8")
    log = SpectraLog(folder / SPECTRA_FILE, len(sites) * RANK)
    drawn = np.random.default_rng(0)
    final = -np.sort(-drawn.exponential(size=(len(sites), RANK))).astype(np.float32)
    for step in range(steps):
        log.append(step, (final * (step / steps) ** 0.5).ravel())
    log.close()


if __name__ == "__main__":
    main()
