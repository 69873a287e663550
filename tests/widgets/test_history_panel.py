"""The history of runs without a browser: messages go to the handler as the comm brings them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import RunError
from lora_lab.runs.lock import RunLock
from lora_lab.training.snapshot import RunState, Snapshot
from lora_lab_widgets import history, run_rows
from lora_lab_widgets.history import History
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.run_rows import MOST_ROWS, delete, look

LORA = {"class": "LoraConfig", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}


def write_run(folder: Path, id_: str, state: str | None = "done", **changes: Any) -> Path:
    """Write a run's files by hand: three steps of six, losses 3, 2, 1."""
    run = folder / id_
    run.mkdir(parents=True)
    config = {
        "id": id_,
        "model": {"name": "a-model", "dtype": "float32", "parameters": 10},
        "task": {"name": "a-task", "synthetic": True},
        "method": "LoRA",
        "lora": {"r": 4},
        "configs": [LORA],
        "training": {"max_steps": 6, "learning_rate": 1e-3, "seed": 0},
        **changes,
    }
    (run / "config.json").write_text(json.dumps(config))
    rows = [{"step": i, "loss": 4.0 - i, "seconds": float(i)} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state is not None:
        summary = {
            "state": state,
            "steps": 3,
            "seconds": 3.2,
            "trainable": 1234,
            "peak_memory": 3 << 20,
            "checkpoint_bytes": 5,
            "metrics": {"loss_before": 4.0, "loss_after": 1.25},
        }
        (run / "summary.json").write_text(json.dumps(summary))
    return run


class Desk:
    """A history over a folder, and what it asked for."""

    def __init__(self, folder: Path) -> None:
        self.begun: list[Any] = []
        self.error: Exception | None = None
        self.output_dir, self.run = folder, None
        self.go_on, self.report = self.begun.append, Path
        self.panel = History(self)  # type: ignore[arg-type]

    def resume(self, record: Any) -> Any:
        if self.error:
            raise self.error
        return f"idle {record.id}"

    def send(self, **content: Any) -> None:
        self.panel._handle_custom_msg(content, [])

    def settle(self, snapshot: Snapshot | None = None) -> None:
        """Tick until nothing is under way."""
        deadline = time.monotonic() + 20
        self.panel.update(Tick(snapshot))
        while self.panel.busy:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            self.panel.update(Tick(snapshot))

    def opened(self) -> Desk:
        self.send(type="open", value=True)
        self.settle()
        return self

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.panel.form["rows"]]


def test_nothing_is_read_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "list_runs", lambda _: pytest.fail("it read the disk"))
    desk = Desk(tmp_path)
    desk.settle()
    desk.settle(Snapshot("run-1", RunState.RUNNING))
    assert desk.panel.form["open"] is False


def test_the_runs_are_listed_newest_first_as_they_stand(tmp_path):
    write_run(tmp_path, "20260102-030405-aaaa")
    write_run(tmp_path, "20260203-030405-bbbb", state=None)
    write_run(tmp_path, "20260304-030405-cccc", state="stopped")
    held = RunLock(write_run(tmp_path, "20260405-030405-dddd", state=None))
    held.acquire()
    desk = Desk(tmp_path).opened()
    held.release()
    rows = desk.panel.form["rows"]
    assert [(row["id"][-4:], row["state"], row["resumable"], row["deletable"]) for row in rows] == [
        ("dddd", "running", False, False),
        ("cccc", "stopped", True, True),
        ("bbbb", "cut off", True, True),
        ("aaaa", "done", False, True),
    ]
    last = rows[-1]
    assert last["label"] == "r=4 · lr 0.001 · seed 0"
    assert (last["step"], last["steps"], last["loss"]) == (3, 6, 1.0)
    assert last["metrics"] == "held-out loss 4.00 → 1.25"
    assert last["when"] == "2026-01-02 03:04"


def test_the_list_has_an_end_and_says_how_many_there_are(tmp_path):
    for i in range(MOST_ROWS + 3):
        write_run(tmp_path, f"20260101-{i:06d}-aaaa")
    form = Desk(tmp_path).opened().panel.form
    assert (len(form["rows"]), form["total"]) == (MOST_ROWS, MOST_ROWS + 3)
    assert len(json.dumps(form)) < 64 * 1024


def test_picked_runs_are_compared_and_six_are_the_most(tmp_path):
    for i in range(8):
        write_run(tmp_path, f"20260101-00000{i}-aaaa")
    desk = Desk(tmp_path).opened()
    for id_ in desk.ids[:7]:
        desk.send(type="pick", id=id_, value=True)
    assert "6 runs are compared at most" in desk.panel.problem["message"]
    desk.settle()
    found = desk.panel.compared
    assert [row["id"] for row in found["rows"]] == desk.panel.form["picked"] == desk.ids[:6]
    assert [point[:2] for point in found["curves"][0]["points"]] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    cells = dict(zip(found["columns"], found["rows"][0]["cells"], strict=True))
    assert cells["loss"] == "1.00"
    assert cells["trainable"] == "1,234"
    assert cells["peak memory"] == "3 MiB"
    assert cells["ranks"] == "–", "it has kept no spectra"
    assert found["note"].startswith("all of one setting: held-out loss 1.25 ± 0, mean")
    for id_ in desk.ids[:6]:
        desk.send(type="pick", id=id_, value=False)
    desk.settle()
    assert desk.panel.compared == {}


def test_the_best_of_several_settings_is_named(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", configs=[{**LORA, "r": 2}])
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    summary["metrics"]["loss_after"] = 1.125
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    note = look(_records(tmp_path), ["a", "b"], "").compared["note"]
    assert note == "lowest held-out loss: LoRA r = 2, q, lr 0.001 (1.12)"


def test_runs_that_cannot_be_held_against_each_other_say_why(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", task={"name": "another"})
    records = _records(tmp_path)
    note = look(records, ["a", "b"], "").compared["note"]
    assert 'not comparable: task is "a-task", "another"' in note


def test_one_run_in_detail(tmp_path):
    run = write_run(tmp_path, "20260102-030405-aaaa")
    sample = {"prompt": "p", "references": ["r"], "base": "b", "adapted": "c" * 9999}
    (run / "samples.json").write_text(json.dumps([sample] * 20))
    (run / "report.html").write_text("x")
    desk = Desk(tmp_path).opened()
    desk.send(type="show", id=run.name, value=True)
    desk.settle()
    shown = desk.panel.details
    assert "ll.LoraConfig(r=4, target_modules=('q',))" in shown["config"]
    assert "ll.TrainingConfig(" in shown["config"]
    facts = dict(shown["facts"])
    assert facts["report"] == str(run / "report.html")
    assert facts["folder"] == str(run)
    assert (shown["samples"][0]["prompt"], shown["samples"][0]["base"]) == ("p", "b")
    assert shown["reportable"] is False, "it left no adapter"
    assert len(json.dumps(shown)) < 64 * 1024
    desk.send(type="show", id=run.name, value=False)
    desk.settle()
    assert desk.panel.details == {}


def test_the_disk_is_read_again_when_a_run_begins_or_ends(tmp_path, monkeypatch):
    reads = []
    real = history.list_runs
    monkeypatch.setattr(history, "list_runs", lambda folder: reads.append(1) or real(folder))
    desk = Desk(tmp_path).opened()
    assert len(reads) == 1
    running = Snapshot("run-1", RunState.RUNNING)
    desk.settle(running)
    assert len(reads) == 2
    for step in range(5):
        desk.settle(Snapshot("run-1", RunState.RUNNING, step=step))
    desk.settle(Snapshot("run-1", RunState.PAUSED))
    assert len(reads) == 2, "steps and pauses change no file that the list shows"
    desk.settle(Snapshot("run-1", RunState.DONE))
    assert len(reads) == 3
    desk.send(type="refresh")
    desk.settle(Snapshot("run-1", RunState.DONE))
    assert len(reads) == 4
    desk.send(type="open", value=False)
    desk.settle(Snapshot("run-2", RunState.DONE))
    assert len(reads) == 4


def test_the_heartbeat_waits_for_no_disk(tmp_path, monkeypatch):
    write_run(tmp_path, "a")
    entered, leave = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert leave.wait(20)
        return look(*arguments)

    monkeypatch.setattr(history, "look", slow)
    desk = Desk(tmp_path)
    desk.send(type="open", value=True)
    assert entered.wait(20)
    desk.panel.update(Tick())  # returns while the disk is read
    assert desk.panel.busy == "reading the runs…"
    assert desk.ids == []
    leave.set()
    desk.settle()
    assert desk.ids == ["a"]


def test_nothing_is_sent_without_news(tmp_path, sent):
    write_run(tmp_path, "a")
    desk = Desk(tmp_path).opened()
    del sent[:]
    for _ in range(5):
        desk.panel.update(Tick())
    assert sent == []


def test_resuming_reads_on_a_thread_and_begins_on_the_heartbeat(tmp_path):
    write_run(tmp_path, "a", state="stopped")
    desk = Desk(tmp_path).opened()
    desk.send(type="resume", id="a")
    assert desk.begun == []
    desk.settle()
    assert desk.begun == ["idle a"]
    desk.error = RunError("the training examples are not those of run a any more")
    desk.send(type="resume", id="a")
    desk.settle()
    assert desk.panel.problem["message"] == str(desk.error)
    assert desk.begun == ["idle a"]


def test_a_deleted_run_is_gone_and_nothing_else(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b")
    desk = Desk(tmp_path).opened()
    desk.send(type="delete", id="a")
    desk.settle()
    assert desk.ids == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("id_", ["..", "../outside", "/etc", "", "b/../../outside"])
def test_only_what_is_on_the_list_can_be_deleted(tmp_path, id_):
    runs = tmp_path / "runs"
    write_run(runs, "a")
    write_run(tmp_path, "outside")
    desk = Desk(runs).opened()
    desk.send(type="delete", id=id_)
    assert "is not on the list" in desk.panel.problem["message"]
    desk.settle()
    assert (tmp_path / "outside" / "config.json").exists()
    assert desk.ids == ["a"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    runs, outside = tmp_path / "runs", write_run(tmp_path, "outside")
    runs.mkdir()
    (runs / "link").symlink_to(outside)
    (record,) = _records(runs)
    with pytest.raises(RunError, match="or a link; delete it by hand"):
        delete(record, runs, lambda _: False)
    assert (outside / "config.json").exists()


def test_a_run_at_work_is_not_deleted(tmp_path, monkeypatch):
    run = write_run(tmp_path, "a")
    (record,) = _records(tmp_path)
    with pytest.raises(RunError, match="run a is at work or waits in the queue; stop it first"):
        delete(record, tmp_path, lambda folder: folder == run)
    lock = RunLock(run)
    lock.acquire()
    with pytest.raises(RunError, match="run a is running in process"):
        delete(record, tmp_path, lambda _: False)
    lock.release()
    monkeypatch.setattr(run_rows.queue, "is_queued", lambda folder: folder == run)
    with pytest.raises(RunError, match="waits in the queue"):
        delete(record, tmp_path, lambda _: False)
    assert sorted(path.name for path in run.iterdir()) >= ["config.json"]
    assert (run / "metrics.jsonl").exists()


def test_a_run_says_to_which_sweep_it_belongs_and_is_worked_on_there(tmp_path):
    write_run(tmp_path, "20260101-000000-aaaa")
    sweep = tmp_path / "<b>grid-1"
    for id_, state in (("20260102-000000-cell-bbbb", "done"), ("20260103-000000-cell-cccc", None)):
        write_run(sweep, id_, state)
    (sweep / "sweep.json").write_text("{}")
    desk = Desk(tmp_path).opened()
    assert desk.ids == [
        "<b>grid-1/20260103-000000-cell-cccc",
        "<b>grid-1/20260102-000000-cell-bbbb",
        "20260101-000000-aaaa",
    ]
    rows = desk.panel.form["rows"]
    assert [(row["label"], row["when"]) for row in rows] == [
        ("<b>grid-1 / r=4 · lr 0.001 · seed 0", "2026-01-03 00:00"),
        ("<b>grid-1 / r=4 · lr 0.001 · seed 0", "2026-01-02 00:00"),
        ("r=4 · lr 0.001 · seed 0", "2026-01-01 00:00"),
    ]
    cut, done, other = desk.ids
    desk.send(type="resume", id=cut)
    desk.settle()
    assert desk.begun == [f"idle {cut}"]
    for id_ in (done, other):
        desk.send(type="pick", id=id_, value=True)
    desk.send(type="show", id=done, value=True)
    desk.settle()
    assert [row["id"] for row in desk.panel.compared["rows"]] == [done, other]
    assert dict(desk.panel.details["facts"])["folder"] == str(tmp_path / done)
    desk.send(type="delete", id=done)
    desk.settle()
    assert desk.panel.problem is None
    assert desk.ids == [cut, other]
    assert sorted(path.name for path in sweep.iterdir()) == [Path(cut).name, "sweep.json"]


def test_a_run_two_folders_down_is_only_deleted_from_a_sweep(tmp_path):
    run = write_run(tmp_path / "mine", "a")
    (record,) = _records(tmp_path / "mine")
    with pytest.raises(RunError, match="or a link; delete it by hand"):
        delete(record, tmp_path, lambda _: False)
    assert (run / "config.json").exists()


def test_damaged_files_do_not_keep_the_others_from_the_list(tmp_path):
    write_run(tmp_path, "a", training=[1], lora="x", configs=7, model=None, method=3)
    bad = write_run(tmp_path, "b")
    (bad / "metrics.jsonl").write_bytes(b"\xff\x00 no line")
    (bad / "summary.json").write_text('{"state": 7, "metrics": [1], "steps": "many"}')
    write_run(tmp_path, "c")
    desk = Desk(tmp_path).opened()
    assert desk.ids == ["c", "b", "a"]
    for id_ in desk.ids:
        desk.send(type="pick", id=id_, value=True)
        desk.send(type="show", id=id_, value=True)
        desk.settle()
        assert desk.panel.problem is None
        assert desk.panel.details["id"] == id_


def _records(folder: Path) -> Any:
    return history.list_runs(folder)


def test_runs_that_differ_do_not_look_the_same(tmp_path):
    """In the list and in the comparison: α, targets, and another data set of the same name."""
    changed = ({}, {"lora_alpha": 128}, {"target_modules": ["q"]}, {})
    for number, own in enumerate(changed):
        folder = write_run(tmp_path, f"2026010{number}-000000-aaaa")
        config = json.loads((folder / "config.json").read_text())
        lora = {"r": 4, "lora_alpha": 16, "target_modules": ["q", "v"]} | own
        config |= {"method": "LoRA", "lora": lora, "configs": [{"class": "LoraConfig", **lora}]}
        config["fingerprints"] = {"data": "abcdefgh" if number < 3 else "ijklmnop"}
        (folder / "config.json").write_text(json.dumps(config))
    desk = Desk(tmp_path).opened()
    rows = desk.panel.form["rows"][::-1]
    assert [row["label"].split(" · ")[3:] for row in rows] == [
        ["α = 16, targets = q v"],
        ["α = 128, targets = q v"],
        ["α = 16, targets = q"],
        ["α = 16, targets = q v"],
    ]
    assert [row["what"].partition(" (")[2] for row in rows] == [
        *["rows abcdef)"] * 3, "rows ijklmn)"
    ]  # fmt: skip
    for id_ in desk.ids[2:]:
        desk.send(type="pick", id=id_, value=True)
        desk.settle()
    found = [row["label"].rpartition(" · ")[2] for row in desk.panel.compared["rows"]]
    assert sorted(found) == ["α = 128", "α = 16"]
