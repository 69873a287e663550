"""A run's folder: whole files or none, and the disk's refusals in one line."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_lab.errors import RunError
from lora_lab.runs import store as store_module
from lora_lab.runs.metrics import read_metrics
from lora_lab.runs.records import find_run
from lora_lab.runs.store import RunStore, list_runs
from tests.helpers.crash_states import Recorder, states


class Clock:
    @staticmethod
    def now() -> datetime:
        return datetime(2031, 5, 6, 7, 8, 9)


def test_ids_are_unique_and_carry_the_name(tmp_path):
    stores = [RunStore.create(tmp_path, "my run/1") for _ in range(50)]
    assert len({store.id for store in stores}) == 50
    for store in stores:
        assert store.folder == tmp_path / store.id
        assert "-my-run-1-" in store.id
        assert store.folder.is_dir()


def test_a_drawn_id_that_exists_is_drawn_again(tmp_path, monkeypatch):
    drawn = iter(["aa", "aa", "aa", "bb"])
    monkeypatch.setattr(store_module.secrets, "token_hex", lambda _: next(drawn))

    monkeypatch.setattr(store_module, "datetime", Clock)
    assert RunStore.create(tmp_path).id == "20310506-070809-00aa"
    assert RunStore.create(tmp_path).id == "20310506-070809-00bb"


def test_runs_of_one_second_are_listed_in_their_order(tmp_path, monkeypatch):
    moments = iter(datetime(2031, 5, 6, 7, 8, 9, 50_000 * at) for at in range(20))
    monkeypatch.setattr(store_module, "datetime", SimpleNamespace(now=lambda: next(moments)))
    made = [RunStore.create(tmp_path).id for _ in range(20)]
    assert made == sorted(made)


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    store = RunStore.create(tmp_path)
    store.write_json("config.json", {"α": 1})
    assert json.loads((store.folder / "config.json").read_text("utf-8")) == {"α": 1}
    before = sorted(store.folder.iterdir())

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*config\.json: No space left on device"):
        store.write_json("config.json", {"α": 2})
    assert sorted(store.folder.iterdir()) == before
    assert json.loads((store.folder / "config.json").read_text("utf-8")) == {"α": 1}


def test_every_metrics_line_is_on_disk_at_once(tmp_path):
    store = RunStore.create(tmp_path)
    for step in (1, 2):
        store.log({"step": step, "loss": 0.5 / step})
        lines = (store.folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == {"step": step, "loss": 0.5 / step}
        assert len(lines) == step
    store.close()
    store.log({"step": 3})
    assert len((store.folder / "metrics.jsonl").read_text().splitlines()) == 3


def _adapter(text: str):
    return lambda folder: (folder / "adapter_model.safetensors").write_text(text)


def test_a_checkpoint_is_whole_and_only_the_newest_two_have_the_optimizer(tmp_path):
    store = RunStore.create(tmp_path)
    for step in (50, 60, 100, 150):
        store.save_checkpoint(
            step, _adapter(f"at {step}"), {"step": step, "x": torch.ones(2)}, passing=step == 60
        )
    checkpoints = store.folder / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-100", "step-150", "step-50"]
    assert (checkpoints / "step-50" / "adapter_model.safetensors").read_text() == "at 50"
    assert not (checkpoints / "step-50" / "state.pt").exists()
    assert (checkpoints / "step-150" / "state.pt").exists()
    state = torch.load(checkpoints / "step-100" / "state.pt", weights_only=True)
    assert state["step"] == 100
    assert torch.equal(state["x"], torch.ones(2))


def test_a_failed_save_leaves_what_was_there(tmp_path):
    store = RunStore.create(tmp_path)
    store.save_adapter(_adapter("first"))

    def fails_half_way(folder: Path) -> None:
        _adapter("second")(folder)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(RunError, match="Read-only file system; free some space or choose another"):
        store.save_adapter(fails_half_way)
    assert [p.name for p in store.folder.iterdir()] == ["adapter"]
    assert (store.folder / "adapter" / "adapter_model.safetensors").read_text() == "first"
    store.save_adapter(_adapter("third"))
    assert (store.folder / "adapter" / "adapter_model.safetensors").read_text() == "third"


def test_errors_that_are_not_the_disks_pass_unchanged(tmp_path):
    store = RunStore.create(tmp_path)

    def broken(folder: Path) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch") as caught:
        store.save_adapter(broken)
    assert not isinstance(caught.value, RunError)


def test_what_torch_says_of_a_full_disk_names_the_mend(tmp_path):
    store = RunStore.create(tmp_path)

    def full(folder: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with pytest.raises(RunError, match="free some space"):
        store.save_adapter(full)


def test_an_output_folder_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*runs: .*choose another output_dir"):
        RunStore.create(tmp_path / "runs")


def test_list_runs_newest_first_and_skips_what_is_no_run(tmp_path):
    (tmp_path / "20300101-000000-aaaa").mkdir()
    (tmp_path / "20300101-000000-aaaa" / "config.json").write_text('{"id": 1}')
    (tmp_path / "20310101-000000-bbbb").mkdir()
    (tmp_path / "20310101-000000-bbbb" / "config.json").write_text('{"id": 2}')
    (tmp_path / "20310101-000000-bbbb" / "summary.json").write_text('{"state": "done"}')
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    runs = list_runs(tmp_path)
    assert [run.id for run in runs] == ["20310101-000000-bbbb", "20300101-000000-aaaa"]
    assert runs[0].summary == {"state": "done"}
    assert runs[1].summary is None
    assert list_runs(tmp_path / "nowhere") == []


def _put(folder: Path, file: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{}")
    return folder


def test_a_sweeps_runs_are_listed_with_the_others_under_ids_of_their_own(tmp_path):
    runs = tmp_path / "runs"
    _put(runs / "20300102-000000-aaaa")
    for sweep in ("grid-1", "grid-2"):  # a copied folder has the same names
        _put(_put(runs / sweep, "sweep.json") / "20300103-000000-cell-bbbb")
    _put(runs / "grid-1" / "20300101-000000-cell-cccc")
    _put(_put(runs / "grid-1" / "inner", "sweep.json") / "20300109-000000-dddd")
    _put(runs / "no sweep" / "20300109-000000-eeee")
    found = list_runs(runs)
    assert [(run.id, run.sweep) for run in found] == [
        ("grid-2/20300103-000000-cell-bbbb", "grid-2"),
        ("grid-1/20300103-000000-cell-bbbb", "grid-1"),
        ("20300102-000000-aaaa", ""),
        ("grid-1/20300101-000000-cell-cccc", "grid-1"),
    ]
    for run in found:
        assert find_run(run.id, runs).folder == run.folder == runs / run.id
    ids = [run.id for run in list_runs(runs / "grid-1")]
    assert ids == ["20300103-000000-cell-bbbb", "20300101-000000-cell-cccc"]


def test_no_link_leads_into_a_sweep_or_out_of_it(tmp_path):
    outside = _put(_put(tmp_path / "outside", "sweep.json") / "20300101-000000-aaaa")
    runs = tmp_path / "runs"
    own = _put(runs / "grid", "sweep.json")
    (runs / "link").symlink_to(outside.parent)
    (own / "link").symlink_to(outside)
    assert list_runs(runs) == []


@pytest.mark.parametrize("id_", ["..", "../outside", "grid/..", "grid/../../outside", "/", ""])
def test_an_id_cannot_climb(tmp_path, id_):
    _put(tmp_path / "outside")
    _put(_put(tmp_path / "runs" / "grid", "sweep.json") / "20300101-000000-aaaa")
    with pytest.raises(RunError, match="there is no run in"):
        find_run(id_, tmp_path / "runs")


def test_what_a_killed_process_left_half_done_is_undone_or_finished(tmp_path):
    store = RunStore.create(tmp_path)
    store.save_adapter(_adapter("first"))
    # Killed between the two renames: the old one is aside, the new one not yet in its place.
    (store.folder / "adapter").rename(store.folder / ".adapter.old")
    (store.folder / ".adapter.tmp").mkdir()
    (store.folder / ".config.json.tmp").write_text("{")
    store.reopen(0)
    store.close()
    assert (store.folder / "adapter" / "adapter_model.safetensors").read_text() == "first"
    assert list(store.folder.glob(".*")) == []


def test_reopening_drops_the_lines_after_the_checkpoint_and_half_a_line(tmp_path):
    store = RunStore.create(tmp_path)
    for step in range(1, 6):
        store.log({"step": step, "loss": float(step)})
        if step == 3:
            size = store.flush_log()
    store.write_json("summary.json", {"state": "stopped"})
    store.close()
    assert store.reopen(size).pairs() == ((1, 1.0), (2, 2.0), (3, 3.0))
    assert not (store.folder / "summary.json").exists()
    store.close()
    # The power went: less is on the disk than had been written.
    assert store.reopen(size - 5).pairs() == ((1, 1.0), (2, 2.0))
    store.log({"step": 3, "loss": 3.0})
    assert [row["step"] for row in read_metrics(store.folder)] == [1, 2, 3]
    store.close()


def test_tokens_do_not_reach_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-value")
    store = RunStore.create(tmp_path)
    shaped = "hf_" + "aB3" * 11
    store.write_json("summary.json", {"notes": [f"401 for a-very-secret-value, {shaped}"]})
    text = (store.folder / "summary.json").read_text()
    assert json.loads(text) == {"notes": ["401 for [redacted], [redacted]"]}


def test_the_lock_is_held_once_and_given_back(tmp_path):
    first, second = RunStore.create(tmp_path), None
    first.begin()
    first.begin()
    second = RunStore(first.folder)
    with pytest.raises(RunError, match=rf"is running in process {os.getpid()} on "):
        second.begin()
    first.close()
    second.begin()
    second.close()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["lock.json", "metrics.jsonl"])
def test_a_link_in_a_received_run_is_not_written_through(tmp_path, name):
    store = RunStore.create(tmp_path / "runs")
    mine = tmp_path / "mine"
    mine.write_text("my thesis")
    (store.folder / name).symlink_to(mine)
    write = store.begin if name == "lock.json" else lambda: store.log({"step": 1})
    with pytest.raises((OSError, RunError), match="is a link"):
        write()
    assert mine.read_text() == "my thesis"


def test_a_run_is_over_on_the_disk_only_behind_all_that_it_recorded(tmp_path):
    store = RunStore.create(tmp_path / "runs")
    store.begin()
    with Recorder(store.folder) as recorder:
        for step in (1, 2):
            store.log({"step": step, "loss": 1.0})
        store.write_summary({"state": "done"})
    store.close()
    whole = (store.folder / "metrics.jsonl").read_bytes()
    left = [tree for tree, _ in states(recorder.moments)]
    assert {tree["metrics.jsonl"] for tree in left if tree.get("summary.json")} == {whole}
    assert {tree.get("metrics.jsonl") for tree in left} > {None, whole}
