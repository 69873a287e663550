"""Spectra over a run's steps: the file that grows, what is kept of it, and the maps over steps."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_lab import methods
from lora_lab.analysis import step_maps
from lora_lab.configs import LoraConfig
from lora_lab.errors import ModelError, RunError
from lora_lab.runs import read_history, spectra_log
from lora_lab.runs.records import list_runs
from lora_lab.runs.spectra_log import SpectraLog, read_log
from lora_lab.runs.store import RunStore
from lora_lab.training import recorder as recorder_module
from lora_lab.training.recorder import Recorder
from lora_lab.training.snapshot import Spectra
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, until


def row(step: int, width: int = 5) -> np.ndarray:
    return np.arange(width, dtype=np.float32) + step


def written(path: Path, steps, width: int = 5) -> Path:
    log = SpectraLog(path, width)
    for step in steps:
        log.append(step, row(step, width))
    log.close()
    return path


def assert_rows(path: Path, expected: list[int], width: int = 5) -> None:
    steps, values = read_log(path)
    assert steps.tolist() == expected
    assert steps.dtype == np.int32
    assert values.dtype == np.float32
    assert values.shape == (len(expected), width)
    for step, stored in zip(expected, values, strict=True):
        np.testing.assert_array_equal(stored, row(step, width))


# The file ----------------------------------------------------------------------------------------


def test_the_table_can_be_read_after_every_row_by_us_and_by_numpy(tmp_path):
    path = tmp_path / "spectra.npy"
    log = SpectraLog(path, 5)
    assert_rows_of_none(path)
    for step in range(120):  # the count in the header gets two more digits on the way
        log.append(step, row(step))
        steps, values = read_log(path)
        assert steps.tolist() == list(range(step + 1))
        np.testing.assert_array_equal(values[-1], row(step))
    numpys = np.load(path)
    assert numpys["step"].tolist() == list(range(120))
    np.testing.assert_array_equal(numpys["values"], [row(step) for step in range(120)])


def assert_rows_of_none(path: Path) -> None:
    steps, values = read_log(path)
    assert steps.shape == (0,)
    assert values.shape == (0, 5)


def test_a_file_cut_anywhere_gives_its_whole_rows(tmp_path):
    whole = written(tmp_path / "whole.npy", [0, 3, 7]).read_bytes()
    header = len(whole) - 3 * (4 + 5 * 4)
    cut = tmp_path / "cut.npy"
    for length in range(header, len(whole) + 1):
        cut.write_bytes(whole[:length])
        assert_rows(cut, [0, 3, 7][: (length - header) // 24])
    for length in range(0, header, 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"cannot read .*cut\.npy: .*; copy the run's folder"):
            read_log(cut)


def test_zeros_that_a_power_cut_left_at_the_end_are_no_rows(tmp_path):
    path = written(tmp_path / "spectra.npy", [0, 3, 7])
    with path.open("ab") as file:
        file.write(bytes(100))
    assert_rows(path, [0, 3, 7])


def test_every_other_row_goes_and_the_file_grows_on(tmp_path):
    path = tmp_path / "spectra.npy"
    log = SpectraLog(path, 5)
    for step in range(7):
        log.append(step, row(step))
    log.keep_every_other()
    assert_rows(path, [0, 2, 4, 6])
    log.append(9, row(9))
    assert_rows(path, [0, 2, 4, 6, 9])
    assert np.load(path)["step"].tolist() == [0, 2, 4, 6, 9]
    assert [p.name for p in tmp_path.iterdir()] == ["spectra.npy"]


def test_a_foreign_file_is_one_clear_line(tmp_path):
    for i, foreign in enumerate([np.zeros((3, 4)), np.zeros(3, [("step", "<i4")])]):
        path = tmp_path / f"{i}.npy"
        np.save(path, foreign)
        with pytest.raises(RunError, match="it is no table of spectra"):
            read_log(path)
    (tmp_path / "text.npy").write_text("not numpy at all")
    with pytest.raises(RunError, match="cannot read"):
        read_log(tmp_path / "text.npy")


def test_a_full_disk_is_one_line_and_leaves_the_rows_before(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = written(tmp_path / "spectra.npy", [0, 1])
    log = SpectraLog(tmp_path / "other.npy", 5)
    log.append(0, row(0))
    log.close()
    log.path = Path("/dev/full")
    monkeypatch.setattr(spectra_log, "open_own", os.open)  # which refuses devices
    with pytest.raises(RunError, match="cannot write /dev/full: No space left on device; free som"):
        log.append(1, row(1))
    log.close()
    assert_rows(tmp_path / "other.npy", [0])
    assert_rows(path, [0, 1])


def test_thinning_on_a_full_disk_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "spectra.npy"
    log = SpectraLog(path, 5)
    for step in range(4):
        log.append(step, row(step))

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"cannot write .*spectra\.npy: No space left on device"):
        log.keep_every_other()
    assert_rows(path, [0, 1, 2, 3])
    assert [p.name for p in tmp_path.iterdir()] == ["spectra.npy"]


def test_a_table_that_is_read_while_it_grows_and_is_thinned(tmp_path):
    path = tmp_path / "spectra.npy"
    log = SpectraLog(path, 3000)
    for step in range(20):
        log.append(step, np.full(3000, step, np.float32))
    over = threading.Event()

    def write() -> None:
        for step in range(20, 2000):
            log.append(step, np.full(3000, step, np.float32))
            if step % 64 == 63:
                log.keep_every_other()
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not over.is_set() or not reads:
        steps, values = read_log(path)
        assert len(steps) >= 16
        assert (np.diff(steps) > 0).all()
        np.testing.assert_array_equal(values, np.repeat(steps[:, None], 3000, 1))
        reads += 1
    writer.join(60)


KILLED = """\
import sys
sys.path.insert(0, sys.argv[1])
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from lora_lab.training import train
run = train(tiny_lm(), tiny_task(), CONFIG, output_dir=sys.argv[2], max_steps=10**6,
            eval_examples=0, save_steps=0)
print(run.folder, flush=True)
run.wait()
"""


def test_a_killed_run_can_be_read_to_its_last_kept_step(tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[3]), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        until(lambda: (folder / "spectra.npy").is_file() and len(read_history(folder).steps) > 3)
        alive = read_history(folder)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
    history = read_history(folder)
    assert history.steps.tolist()[: len(alive.steps)] == alive.steps.tolist()
    assert (history.values[0] == 0).all(), "B is zero before the first step"
    assert history.values[-1].sum() > 0
    (record,) = list_runs(tmp_path)
    assert record.summary is None
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["tokens"] > 0


# What a run keeps --------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    """A recorder that has begun, over an adapter whose B is not zero."""
    model = tiny_lm().model
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"v": 2},
        init_lora_weights=False,
    )
    adapter = methods.attach(model, config)
    store = RunStore.create(tmp_path)
    recorder = Recorder(store, adapter)
    recorder.begin()
    yield recorder, adapter, store.folder
    recorder.close()


def at(step: int, adapter) -> Spectra:
    return Spectra(step, {n: np.full(s.r, step, np.float32) for n, s in adapter.sites.items()})


def test_sites_and_spectra_are_those_of_the_built_matrices(scene):
    _, adapter, folder = scene
    history = read_history(folder)
    assert history.steps.tolist() == [0]
    assert [site.name for site in history.sites] == list(adapter.sites)
    σ = history.singular_values(0)
    for recorded in history.sites:
        site = adapter.sites[recorded.name]
        W = adapter.base_weight(recorded.name).double().numpy()
        assert recorded.weight_norm == pytest.approx(np.sqrt((W * W).sum()), rel=1e-6)
        assert (recorded.out_features, recorded.in_features) == W.shape
        assert (recorded.stack, recorded.layer) == (site.site.stack, site.site.layer)
        assert recorded.role == site.site.role
        assert recorded.r == recorded.singular_values == (2 if recorded.role == "v" else 4)
        assert recorded.trainable == recorded.r * sum(W.shape)
        delta = site.scale * site.B.detach().double().numpy() @ site.A.detach().double().numpy()
        expected = np.linalg.svd(delta, compute_uv=False)[: recorded.r]
        np.testing.assert_allclose(σ[recorded.name], expected, rtol=1e-4)
        assert history.weight_norms[recorded.name] == recorded.weight_norm
    stored = json.loads((folder / "sites.json").read_text("utf-8"))
    assert stored["trainable"] == sum(p.numel() for p in adapter.parameters())


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_fused_slices_and_two_stacks_are_kept_as_sites_of_their_own(tmp_path, name):
    config = LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)
    adapter = methods.attach(tiny(name), config)
    store = RunStore.create(tmp_path)
    Recorder(store, adapter).begin()
    history = read_history(store.folder)
    for site in history.sites:
        W = adapter.base_weight(site.name).double().numpy()
        assert site.weight_norm == pytest.approx(np.linalg.norm(W), rel=1e-6)
    maps = step_maps(history)
    assert maps.roles[:2] == ("q", "v")
    layers = {"gpt2": ("0", "1"), "t5": ("enc 0", "enc 1", "dec 0", "dec 1", "dec 2")}[name]
    assert maps.layers == layers
    assert np.isfinite(maps.effective_ranks[0, :2]).all()


def test_a_weight_of_millions_has_its_norm_exactly():
    W = torch.randn(3000, 4000, generator=torch.Generator().manual_seed(0))
    expected = np.sqrt((W.numpy().astype(np.float64) ** 2).sum())
    assert recorder_module._norm(W, "w") == pytest.approx(expected, rel=1e-6)
    assert recorder_module._norm(W.T, "w") == pytest.approx(expected, rel=1e-6)


def test_nan_in_the_base_is_named(tmp_path):
    model = tiny_lm().model
    adapter = methods.attach(model, CONFIG)
    name = next(iter(adapter.sites))
    with torch.no_grad():
        adapter.base_weight(name)[0, 0] = torch.nan
    with pytest.raises(ModelError, match=rf"W₀ of {name} holds NaN or infinite values; load the"):
        Recorder(RunStore.create(tmp_path), adapter).begin()


def drive(recorder, adapter, steps) -> None:
    for step in steps:
        if recorder.due(step):
            recorder.keep(at(step, adapter))


def test_every_step_is_kept_until_there_are_too_many(scene, monkeypatch):
    recorder, adapter, folder = scene
    monkeypatch.setattr(recorder_module, "MOST_ROWS", 8)
    drive(recorder, adapter, range(1, 8))
    assert read_history(folder).steps.tolist() == list(range(8))
    drive(recorder, adapter, range(8, 16))
    assert read_history(folder).steps.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    drive(recorder, adapter, range(16, 1000))
    steps = read_history(folder).steps
    assert 4 < len(steps) <= 8
    assert len(set(np.diff(steps))) == 1
    assert steps[0] == 0
    assert 1000 - steps[-1] <= np.diff(steps)[0]
    # The last step, due or not, and once.
    recorder.keep(at(999, adapter))
    recorder.keep(at(999, adapter))
    history = read_history(folder)
    assert history.steps.tolist() == [*steps, 999]
    assert all((s == 999).all() for s in history.singular_values(-1).values())


def test_steps_that_come_seldom_are_thinned_evenly_too(scene, monkeypatch):
    recorder, adapter, folder = scene
    monkeypatch.setattr(recorder_module, "MOST_ROWS", 32)
    # Looks are dear: only every seventh step could be kept.
    drive(recorder, adapter, range(1, 7 * 500, 7))
    steps = read_history(folder).steps
    gaps = np.diff(steps)
    assert 16 <= len(steps) <= 32
    assert gaps.max() <= 2 * np.median(gaps)


# Reading -----------------------------------------------------------------------------------------


def test_a_folder_without_spectra_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="holds no spectra: it is no run's folder, or the run has"):
        read_history(tmp_path)


def test_broken_sites_are_one_clear_line(scene):
    _, _, folder = scene
    sites = folder / "sites.json"
    good = json.loads(sites.read_text("utf-8"))
    for broken in ("{", "[]", '{"sites": [{"name": 1}]}', '{"sites": 3}'):
        sites.write_text(broken)
        with pytest.raises(RunError, match=r"cannot read .*sites\.json: .*; copy the run's folder"):
            read_history(folder)
    sites.write_text(json.dumps({"sites": good["sites"][1:]}))
    with pytest.raises(RunError, match=r"spectra\.npy and sites\.json do not belong together"):
        read_history(folder)


def test_the_maps_are_the_formulas_at_every_step_and_cell(tmp_path):
    σ = np.random.default_rng(0).random((3, 10)).astype(np.float32)
    σ[0] = 0
    norms = {"l0.q": 2.0, "l0.v": 4.0, "l1.q": 0.0, "head": 1.0}
    ranks = {"l0.q": 4, "l0.v": 2, "l1.q": 3, "head": 1}
    sites = [
        {
            "name": name,
            "stack": "",
            "layer": None if name == "head" else int(name[1]),
            "role": name.split(".")[-1],
            "out_features": 8,
            "in_features": 8,
            "r": ranks[name],
            "singular_values": ranks[name],
            "weight_norm": norm,
            "trainable": 16,
        }
        for name, norm in norms.items()
    ]
    (tmp_path / "sites.json").write_text(json.dumps({"trainable": 64, "sites": sites}))
    log = SpectraLog(tmp_path / "spectra.npy", 10)
    for step, values in zip([0, 5, 6], σ, strict=True):
        log.append(step, values)

    maps = step_maps(read_history(tmp_path))
    assert (maps.roles, maps.layers) == (("q", "v"), ("0", "1"))
    assert maps.steps.tolist() == [0, 5, 6]
    np.testing.assert_array_equal(maps.ranks, [[4, 3], [2, 0]])
    assert maps.effective_ranks.dtype == maps.relative_sizes.dtype == np.float32
    cells = {(0, 0): (slice(0, 4), 2.0), (1, 0): (slice(4, 6), 4.0), (0, 1): (slice(6, 9), None)}
    for (role, layer), (columns, norm) in cells.items():
        for i in range(3):
            s = σ[i, columns].astype(np.float64)
            p = s / s.sum() if s.any() else s
            expected = np.exp(-(p * np.log(p)).sum()) if s.any() else 0.0
            assert maps.effective_ranks[i, role, layer] == pytest.approx(expected, rel=1e-5)
            size = maps.relative_sizes[i, role, layer]
            if norm is None:
                assert np.isnan(size), "a zero W₀ has no relative size"
            else:
                assert size == pytest.approx(np.sqrt((s * s).sum()) / norm, rel=1e-5)
    assert np.isnan(maps.effective_ranks[:, 1, 1]).all()
    assert np.isnan(maps.relative_sizes[:, 1, 1]).all()
