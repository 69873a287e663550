"""Uses one of the light parts where torch and transformers cannot be imported.

`python -m tests.helpers.without_torch PART RECORDED`; see tests/stories/test_without_torch.py.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCKED = {"torch", "transformers", "accelerate", "datasets", "peft", "ipywidgets", "anywidget"}


class Blocked(importlib.abc.MetaPathFinder):
    """Lets nothing of `BLOCKED` be found."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is blocked", name=fullname)


sys.meta_path.insert(0, Blocked())

import numpy as np  # noqa: E402

PARTS: dict[str, Callable[[Path], None]] = {}


def part(use: Callable[[Path], None]) -> Callable[[Path], None]:
    PARTS[use.__name__] = use
    return use


@part
def spectra(_: Path) -> None:
    from lora_lab import spectra
    from lora_lab.spectra.update import LowRankUpdate

    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((3, 16)), rng.standard_normal((12, 3))
    expected = np.linalg.svd(2 * B @ A)[1][:3]
    np.testing.assert_allclose(spectra.singular_triplets(A, B, 2.0)[1], expected, rtol=1e-6)
    np.testing.assert_allclose(LowRankUpdate(A, B, 2.0).triplets()[1], expected, rtol=1e-6)
    share = expected / expected.sum()
    rank = np.exp(-(share * np.log(share)).sum())
    assert abs(spectra.effective_rank(expected) - rank) < 1e-6


@part
def configs(_: Path) -> None:
    from lora_lab import configs

    for name in configs.__all__:
        kind = getattr(configs, name)
        if name.endswith("Config") and name not in ("Config", "CombinedConfig", "MethodConfig"):
            given = {"prefix_length": 2} if name.startswith("Prefix") else {}
            made = kind(**given)
            assert kind.from_dict(json.loads(json.dumps(made.to_dict()))) == made, name


@part
def anatomy(_: Path) -> None:
    from lora_lab.anatomy.blocks import cells, site_label
    from lora_lab.anatomy.types import Site

    site = Site("h.3.q", "h.3.q", 3, "q", 8, 8)
    assert cells([site]) == {(site.row, "q"): site}
    assert site_label(site) == "layer 3 · q"


@part
def runs(recorded: Path) -> None:
    from lora_lab.runs.history import read_history
    from lora_lab.runs.records import list_runs

    records = list_runs(recorded / "finished")
    assert len(records) == 15
    for record in records:
        opened = record.open()
        steps = record.summary["steps"] if record.summary else None
        assert opened.losses, record.id
        assert len(opened.rows) == (steps or len(opened.rows)), record.id
        if opened.history is not None:
            assert read_history(record.folder).steps[0] == 0


@part
def analysis(recorded: Path) -> None:
    from lora_lab.analysis.capacity import run_capacity
    from lora_lab.analysis.methods import compare_methods
    from lora_lab.analysis.steps import step_maps
    from lora_lab.analysis.sweep import comparable_runs, sweep_map
    from lora_lab.runs.history import read_history
    from lora_lab.runs.records import list_runs

    run = recorded / "finished" / "20261129-123722-rslora-9a75"
    history = read_history(run)
    maps = step_maps(history)
    drawn = np.isfinite(maps.effective_ranks[-1])
    assert drawn.sum() == sum(site.layer is not None for site in history.sites)
    found = run_capacity(run)
    assert found.parameters == sum(site.trainable for site in history.sites)
    assert found.bits == 2 * found.parameters
    group = comparable_runs(list_runs(recorded / "sweeps" / "ranks"))[0]
    swept = sweep_map(group)
    summaries = [json.loads((r.folder / "summary.json").read_text()) for r in group]
    scores = sorted(s["metrics"]["loss_after"] for s in summaries)
    np.testing.assert_allclose(np.sort(swept.values[np.isfinite(swept.values)]), scores, rtol=1e-6)
    assert len(compare_methods(group).rows) == len(group)


@part
def captions(recorded: Path) -> None:
    from lora_lab import captions
    from lora_lab.analysis.steps import step_maps
    from lora_lab.runs.history import read_history

    maps = step_maps(read_history(recorded / "finished" / "20261129-123722-rslora-9a75"))
    said = captions.step_maps_summary(maps, len(maps.steps) - 1)
    assert said.startswith(f"Step {maps.steps[-1]} of {maps.steps[-1]}: effective ranks ")
    for name in captions.__all__:
        assert getattr(captions, name) is not None


@part
def figures(recorded: Path) -> None:
    from lora_lab import figures
    from lora_lab.analysis.steps import step_maps
    from lora_lab.analysis.sweep import comparable_runs, sweep_map
    from lora_lab.runs.history import read_history
    from lora_lab.runs.records import list_runs

    run = recorded / "finished" / "20261129-123722-rslora-9a75"
    maps = step_maps(read_history(run))
    drawn = np.asarray(figures.step_maps_figure(maps, 0).data[0].z, np.float32)
    assert drawn.shape == maps.effective_ranks[0].shape
    swept = sweep_map(comparable_runs(list_runs(recorded / "sweeps" / "ranks"))[0])
    np.testing.assert_allclose(figures.sweep_figure(swept).data[0].z, swept.values, rtol=1e-4)
    assert "Plotly" in figures.plotly_js()
    for name in figures.__all__:
        assert getattr(figures, name) is not None


@part
def paper(_: Path) -> None:
    from lora_lab import paper

    assert {row.table for row in paper.TABLES} >= {"Table 2", "Table 3", "Table 4", "Table 15"}
    assert all(row.published > 0 and row.scores for row in paper.TABLES)
    assert "0.3227" in str(paper.list_amplification())
    row = next(row for row in paper.TABLES if row.table == "Table 4")
    assert row in paper.published_rows(paper.TABLES, row.model, row.configs)


@part
def adapters(recorded: Path) -> None:
    from lora_lab.checkpoint.reader import read_adapter

    folders = [path for path in (recorded / "adapters").iterdir() if path.is_dir()]
    assert len(folders) > 10
    for folder in folders:
        found = read_adapter(folder)
        for update in getattr(found, "modules", {}).values():
            assert update.triplets()[1].shape == (min(update.r, *update.shape),), folder.name


if __name__ == "__main__":
    PARTS[sys.argv[1]](Path(sys.argv[2]))
