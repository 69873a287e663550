"""What was recorded is read, measured and drawn where torch and transformers are not installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from lora_lab.runs.history import read_history

RECORDED = Path(__file__).parents[1] / "recorded" / "before_methods" / "finished"

# Runs in a process of its own; prints {run: {site: σ}} of the adapters that hold factors.
SCRIPT = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "datasets", "accelerate"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())

from pathlib import Path
from lora_lab import analysis, configs, figures, paper, spectra
from lora_lab.checkpoint import NativeFile, read_adapter, read_factors
from lora_lab.runs import list_runs
from lora_lab.runs.history import read_history

records = list_runs(sys.argv[1])
sigma, natives = {}, 0
for record in records:
    folder = record.folder
    file = read_adapter(folder / "adapter")
    if isinstance(file, NativeFile):
        natives += 1
        arrays = [tensor.numpy() for tensor in file.tensors.values()]
        assert file.parts or all(array.size for array in arrays)
    else:
        sites = read_factors(folder).sites
        sigma[record.id] = {s.site.name: s.update.triplets()[1].tolist() for s in sites}
        table = analysis.analyze_sites(sites)
        assert len(str(table).splitlines()) >= len(sites)
        ranks = analysis.rank_map(table.rows, {r.name: r.singular_values for r in table.rows})
        figures.effective_rank_figure(ranks).to_json()
        assert figures.map_summary(ranks)
        first = sites[0]
        W = first.update.B @ first.update.A + 1
        view = analysis.spectrum_view(first, W)
        figures.spectrum_against_base_figure(view).to_json()
        phi = analysis.compare_with_base(first, W)
        figures.phi_figure(phi).to_json()
        figures.amplification_figure(analysis.amplifications(sites[:1], lambda _: W)).to_json()
        figures.intruder_figure(analysis.find_intruders(sites[:1], lambda _: W)).to_json()
        figures.overlap_figure(analysis.site_view(first, W)).to_json()
    if (folder / "spectra.npy").exists():
        maps = analysis.step_maps(read_history(folder))
        figures.step_maps_figure(maps, 0).to_json()
        capacity = analysis.run_capacity(folder)
        figures.capacity_figure(capacity).to_json()
        assert figures.step_maps_summary(maps, 0) and figures.capacity_summary(capacity)
    figures.loss_figure(record.open().losses).to_json()
assert natives and sigma

scored = [r for r in records if "loss_after" in ((r.summary or {}).get("metrics") or {})]
for group in analysis.comparable_runs(scored):
    sweep = analysis.sweep_map(group)
    figures.sweep_figure(sweep).to_json()
    assert figures.sweep_summary(sweep)
for record in scored:
    comparison = analysis.compare_methods([record])
    figures.method_comparison(comparison).to_json()
    assert figures.method_comparison_summary(comparison)
assert scored and analysis.comparable_runs(scored)
assert configs.LoraConfig.from_dict(configs.LoraConfig(r=3).to_dict()).r == 3
assert not {"torch", "transformers"} & sys.modules.keys()
print(json.dumps(sigma))
"""


def test_recorded_runs_and_adapters_need_numpy_only() -> None:
    command = [sys.executable, "-c", SCRIPT, str(RECORDED)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    sigma = json.loads(result.stdout)
    compared = 0
    for run, sites in sigma.items():
        folder = RECORDED / run
        if not (folder / "spectra.npy").exists():
            continue
        history = read_history(folder)
        last = history.singular_values(len(history.steps) - 1)
        for name, values in sites.items():
            if name not in last:
                continue
            expected = last[name]
            got = np.zeros_like(expected)
            got[: len(values)] = values[: len(expected)]
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * expected[0])
            compared += 1
    assert compared > 20
