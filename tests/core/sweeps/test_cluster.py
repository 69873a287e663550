"""A sweep on a local Ray cluster of two workers: a lost worker costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import yaml

from lora_lab.runs.lock import holder
from lora_lab.runs.records import list_runs
from lora_lab.sweeps.plan import SweepPlan
from tests.helpers.tiny_files import tiny_recipe

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lora-lab[ray]'")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "150")  # a busy machine is no broken one
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


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
