"""A sweep on a local Ray cluster of two workers: a lost worker costs nothing but time."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time

import pytest
import yaml

from lora_lab.errors import RunError
from lora_lab.runs.lock import holder
from lora_lab.runs.records import list_runs
from lora_lab.sweeps import cluster as cluster_module
from lora_lab.sweeps.plan import SweepPlan
from tests.helpers.tiny_files import tiny_recipe

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lora-lab[ray]'")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    init = functools.partial(ray.init, num_cpus=2, include_dashboard=False)
    with monkeypatch.context() as patched:
        patched.setattr(ray, "init", init)
        cluster_module._connect(ray, None)  # a busy machine is no broken one
    yield
    ray.shutdown()


class FakeRay:
    """A Ray that does not come up at once."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.asked = []

    def init(self, **how):
        self.asked.append(how)
        if self.errors:
            raise self.errors.pop(0)

    def shutdown(self):
        self.asked.append("shutdown")


SLOW = "The current node timed out during startup. This could happen because some of the raylet"

LONGER = "a busy machine is given longer by RAY_raylet_start_wait_time_s=120 in the environment; "


def test_a_cluster_that_comes_up_slowly_is_tried_again():
    slow = FakeRay(Exception(SLOW), Exception(SLOW))
    cluster_module._connect(slow, None)
    start = {"address": None, "log_to_driver": False}
    assert slow.asked == [start, "shutdown", start, "shutdown", start]


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (None, Exception(SLOW), f"no Ray cluster on this machine: {SLOW}; {LONGER}"),
        (
            "auto",
            ConnectionError("Could not find\nany"),
            "no Ray cluster at auto: Could not find; ",
        ),
        ("node:1", ValueError("Malformed host."), "no Ray cluster at node:1: Malformed host; "),
    ],
)
def test_a_cluster_that_does_not_come_up_is_one_line_that_says_how_to_go_on(address, error, said):
    with pytest.raises(RunError) as caught:
        cluster_module._connect(FakeRay(*[error] * 3), address)
    assert str(caught.value) == said + "the same call goes on with what has not ended"


def plan_file(folder, **changes):
    values = {**tiny_recipe(folder), "name": "ranks", "grid": {"r": [1, 2, 3]}, **changes}
    values["training"] = {**values["training"], "max_steps": 60, "save_steps": 2}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.timeout(600)
def test_every_cell_is_there_at_the_end_and_none_twice_though_a_worker_is_killed(cluster, tmp_path):
    from lora_lab.sweeps.cluster import sweep_on_ray

    plan = SweepPlan.read(plan_file(tmp_path))
    killed: list[tuple[str, int]] = []

    def kill_one():
        while not killed:
            time.sleep(0.05)
            for record in list_runs(plan.folder):
                states = list(record.folder.glob("checkpoints/step-*/state.pt"))
                who = holder(record.folder)
                if states and who and who["pid"] != os.getpid():
                    os.kill(who["pid"], signal.SIGKILL)
                    killed.append((record.id, who["pid"]))
                    return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    results = sweep_on_ray(plan)
    assert killed, "no worker was killed: the test saw nothing"
    assert {result.state for result in results.values()} == {"done"}
    assert results.keys() == {cell.id for cell in plan.cells()}
    lines = (plan.folder / "cells.jsonl").read_text().splitlines()
    cells = [json.loads(line)["cell"] for line in lines]
    assert len(cells) == len(set(cells)) == 3
    assert len(list_runs(plan.folder)) == 3, "the killed cell went on in its own folder"
    (cut,) = [record for record in list_runs(plan.folder) if record.id == killed[0][0]]
    steps = [row["step"] for row in cut.open().rows]
    assert steps == list(range(1, 61)), "each step stands once"

    started = time.monotonic()
    assert sweep_on_ray(plan) == results
    assert time.monotonic() - started < 30, "what is finished is not trained again"
    assert len((plan.folder / "cells.jsonl").read_text().splitlines()) == 3
