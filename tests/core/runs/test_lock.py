"""Who is at work on a run: whoever looks is in nobody's way, and is never taken for a holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lora_lab.errors import RunError
from lora_lab.runs import lock as lock_module
from lora_lab.runs.lock import LOCK_FILE, RunLock, holder, is_here
from lora_lab.runs.records import RecordState, RunRecord

fcntl = pytest.importorskip("fcntl", reason="Windows locks otherwise")


def looks_at(folder, how=fcntl.LOCK_SH):
    """An open lock file, as somebody has it who looks just now."""
    file = (folder / LOCK_FILE).open("a+")
    fcntl.flock(file, how)
    return file


def state(folder):
    return RunRecord("a", folder, {"an": "entry"}, None).state


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_start_waits_for_who_looks_as_this_version_or_an_earlier_one_does(
    tmp_path, monkeypatch, how
):
    looking = looks_at(tmp_path, how)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: looking.close())
    monkeypatch.setattr(lock_module, "time", clock)
    held = RunLock(tmp_path)
    held.acquire()
    assert looking.closed
    assert holder(tmp_path)["pid"] == os.getpid()
    held.release()


def test_who_looks_is_not_taken_for_a_holder(tmp_path):
    with looks_at(tmp_path):
        assert holder(tmp_path) is None
        assert state(tmp_path) is RecordState.CUT_OFF


def test_starts_are_never_refused_and_the_dead_never_running_however_many_look(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "gone"}))
    over, wrong = threading.Event(), []

    def look():
        while not over.is_set():
            who = holder(tmp_path)
            if who is not None and not busy:
                wrong.append(who)

    busy = []
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            assert holder(tmp_path) is None
            busy.append(1)
            held = RunLock(tmp_path)
            held.acquire()
            held.release()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_holder_is_told_though_some_look(tmp_path):
    held = RunLock(tmp_path)
    held.acquire()
    with pytest.raises(RunError, match=rf"is running in process {os.getpid()} on .*stop it there"):
        RunLock(tmp_path).acquire()
    held.release()
    assert holder(tmp_path) is None


@pytest.mark.parametrize("more", [{}, {"process": "of another machine"}])
def test_the_same_pid_elsewhere_is_not_this_process(tmp_path, more):
    """On a shared disk every container has a process 1, and pids come again."""
    held = RunLock(tmp_path)
    held.acquire()
    assert state(tmp_path) is RecordState.RUNNING
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": os.getpid(), "host": "node-7", **more}))
    assert state(tmp_path) is RecordState.ELSEWHERE
    held.release()
    assert state(tmp_path) is RecordState.CUT_OFF


def test_a_dead_holder_is_gone_whoever_has_its_pid_now(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom lora_lab.runs.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.acquire(); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=60)
    left = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps({**left, "pid": os.getpid()}))
    assert state(tmp_path) is RecordState.CUT_OFF
    RunLock(tmp_path).acquire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_is_another_process(tmp_path):
    held = RunLock(tmp_path)
    held.acquire()
    child = os.fork()
    if child == 0:
        who = holder(tmp_path)
        os._exit(0 if who and not is_here(who) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert is_here(holder(tmp_path))
    held.release()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe{", b"[" * 50_000, b"null", b'{"pid": {}}'])
def test_what_is_no_lock_file_costs_nothing(tmp_path, text):
    held = RunLock(tmp_path)
    held.acquire()
    (tmp_path / LOCK_FILE).write_bytes(text)
    assert state(tmp_path) is RecordState.ELSEWHERE
    held.release()
    assert state(tmp_path) is RecordState.CUT_OFF


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("what", ["look", "take"])
def test_a_child_forked_while_somebody_looks_or_takes_keeps_nothing(tmp_path, monkeypatch, what):
    """As a DataLoader's worker that is begun while another thread lists the runs."""
    (tmp_path / LOCK_FILE).touch()
    children, asks = [], threading.Event()
    until_told, told = os.pipe()
    until_ready, ready = os.pipe()

    def fork():
        asks.set()
        child = os.fork()
        if child == 0:
            os.close(told)
            os.write(ready, b"!")
            os.read(until_told, 1)
            os._exit(0)
        children.append(child)

    forks = threading.Thread(target=fork)
    name = {"look": "_is_held", "take": "_take"}[what]
    real = getattr(lock_module, name)

    def beside(*given):
        if not asks.is_set():
            forks.start()
            forks.join(0.1)  # where it waits for us, it is for good
        return real(*given)

    monkeypatch.setattr(lock_module, name, beside)
    if what == "look":
        assert holder(tmp_path) is None
    else:
        held = RunLock(tmp_path)
        held.acquire()
        held.release()
    forks.join()
    os.read(until_ready, 1)
    try:
        looks_at(tmp_path, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    finally:
        for end in (told, until_told, ready, until_ready):
            os.close(end)
        os.waitpid(children[0], 0)


def test_a_lock_that_is_another_file_too_holds_and_is_not_written_into(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my thesis")
    folder = tmp_path / "run"
    folder.mkdir()
    os.link(mine, folder / LOCK_FILE)
    held = RunLock(folder)
    held.acquire()
    assert not RunLock(folder).take()
    assert is_here(holder(folder))
    held.release()
    assert holder(folder) is None
    assert mine.read_text() == "my thesis"
