"""Run and sweep folders with one thing changed, type by type: only the project's errors, and lists.

A few of each kind; thousands by `LORA_LAB_FUZZ=1000 pytest tests/stories/test_fuzzed_runs.py`.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lora_lab as ll
from lora_lab.errors import LoraLabError
from lora_lab.runs.records import list_runs
from lora_lab.runs.run_file import RunConfig
from lora_lab.sweeps.plan import SweepPlan
from lora_lab.sweeps.store import SweepStore
from lora_lab.tasks import load_task
from lora_lab.training.api import make_run
from lora_lab.training.resume import resume
from tests.helpers.fuzzed_runs import (
    READERS,
    VALUES,
    Change,
    byte_changes,
    kind_changes,
    places,
    users,
    value_changes,
)
from tests.helpers.tiny_files import tiny_recipe

EXAMPLES = int(os.environ.get("LORA_LAB_FUZZ", "0"))
LONGEST = 30  # seconds of one verb; a pipe that is opened would take all that there are
HEALTH = list(HealthCheck)


def examples(few: int) -> Any:
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,  # the same few each time; others by the thousand
        database=None,
        phases=[Phase.generate],
        suppress_health_check=HEALTH,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, data, a stopped run and one that is done."""
    top = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LAB_CACHE", str(top / "cache"))
        recipe = tiny_recipe(top)
        recipe["training"] |= {"max_steps": 6, "warmup_steps": 1}
        for name, until in (("stopped", 5), ("done", 6)):
            run = make_run(RunConfig.from_dict(recipe | {"output_dir": str(top / name)})).start()
            while run.snapshot.step < until:
                run.wait(0.005)
            run.stop()
            run.result(60)
            run.folder.rename(top / "template" if name == "stopped" else top / "finished")
        yield top


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def changes(folder: Path, kind: str) -> st.SearchStrategy[Change]:
    """What may be changed in a folder, of one kind; its own files more often than the rest."""
    files = [name for name in names(folder) if (folder / name).is_file()]
    if kind == "files":
        return kind_changes(names(folder))
    if kind == "bytes":
        return byte_changes(folder, files)
    texts = [n for n in files if n.endswith((".json", ".jsonl")) and (folder / n).stat().st_size]
    own = [name for name in texts if "/" not in name]
    return value_changes(folder, own * 3 + texts, kind)


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Let a verb raise the project's errors alone, each a line, and within its time."""

    def ring(*_: object) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        yield
    except LoraLabError as error:
        said = str(error)
        assert said.isprintable(), (what, said)
        assert len(said) < 1_500, (what, said)
    except Exception as error:
        raise AssertionError(what) from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(
    template: Path, change: Change, verbs: dict[str, Callable[[Path], object]], listed: int = 2
) -> None:
    """Make a folder of a good run and one that is changed, and call each verb on it."""
    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        top = Path(folder)
        for name in ("good", "run"):
            shutil.copytree(template, top / name)
        change[1](top / "run")
        for name, verb in verbs.items():
            with patience(f"{name} after {change[0]}"):
                verb(top)
        if listed:
            assert "good" in {record.id for record in list_runs(top)}, change[0]


KINDS = ["files", "bytes", *VALUES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_what_reads_runs_raises_nothing_else(place, kind):
    @examples(8)
    @given(changes(place / "finished", kind))
    def check(change: Change) -> None:
        tried(place / "finished", change, READERS)

    check()


@pytest.mark.filterwarnings("ignore")
def test_what_goes_on_with_a_run_or_deletes_it_raises_nothing_else(place):
    lm = ll.load_model(place / "model", device="cpu")
    task = load_task(place / "task.csv", prompt="prompt", completion="completion")

    @examples(12)
    @given(st.sampled_from(KINDS).flatmap(lambda kind: changes(place / "template", kind)))
    def check(change: Change) -> None:
        tried(place / "template", change, users(lm, task))

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_sweeps_folder_raises_nothing_else(place):
    sweep = place / "sweep"
    task = load_task(place / "task.csv", prompt="prompt", completion="completion")
    lm = ll.load_model(place / "model", device="cpu")
    shared = {"max_steps": 2, "eval_examples": 0, "max_length": 32}
    ll.sweep(lm, task, grid={"r": [1, 2]}, output_dir=place, **shared).results(60)
    told = {"model": {}, "task": {}}
    verbs: dict[str, Callable[[Path], object]] = {
        "begin": lambda top: SweepStore(top / "run").begin(told, []),
        "ended": lambda top: SweepStore(top / "run").ended(),
        "made": lambda top: ll.sweep(
            lm, task, grid={"r": [1, 2]}, output_dir=top, name="run", start=False, **shared
        ),
        "list": lambda top: [record.open() for record in list_runs(top)],
    }

    @examples(12)
    @given(st.sampled_from(KINDS).flatmap(lambda kind: changes(sweep, kind)))
    def check(change: Change) -> None:
        tried(sweep, change, verbs, listed=0)

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoints_state_of_any_type_trains_or_is_refused(place):
    template = place / "template"
    (path, *_) = sorted(template.glob("checkpoints/*/state.pt"), reverse=True)
    whole = torch.load(path, weights_only=True)
    lm = ll.load_model(place / "model", device="cpu")
    task = load_task(place / "task.csv", prompt="prompt", completion="completion")
    odd = [torch.zeros(3), torch.ones(()), torch.full((4, 4), torch.nan), torch.ones(2).bool()]
    anything = st.one_of(st.sampled_from(odd), *(v for k, v in VALUES.items() if k != "deep"))

    @examples(10)
    @given(st.sampled_from([p for p in places(whole) if p]), anything)
    def check(where: tuple, value: Any) -> None:
        state = copy.deepcopy(whole)
        into = state
        for key in where[:-1]:
            into = into[key]
        into[where[-1]] = value

        def change(run: Path) -> None:
            torch.save(state, run / path.relative_to(template))
            for other in run.glob("checkpoints/*/state.pt"):
                if other != run / path.relative_to(template):
                    other.unlink()

        verbs = {"resume": lambda top: resume(top / "run", lm, task).result(60)}
        try:
            tried(template, (f"{str(value)[:60]!r} at {where}", change), verbs)
        finally:
            for adapter in ll.attached(lm.model):
                ll.detach(lm.model, adapter)

    check()


RUN_FILE = {
    "model": {"name": "smollm2-135m", "dtype": "float32"},
    "task": {"name": "mini-e2e", "seed": 0},
    "configs": [{"class": "LoraConfig", "r": 4, "target_modules": ["q"], "rank_pattern": {"q": 2}}],
    "training": {"max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0, "report_to": None},
    "output_dir": "runs",
    "name": "e2e",
}
SWEEP_FILE = RUN_FILE | {
    "grid": {"r": [1, 2], "seed": [0, 1]},
    "random": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
    "samples": 2,
    "early_stopping": {"grace_steps": 2, "reduction": 2},
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_file_that_people_write_raises_nothing_else(tmp_path, kind):
    files: dict[str, Callable[[Path], object]] = {
        "run.json": lambda path: RunConfig.read(path).to_yaml(),
        "sweep.json": SweepPlan.read,
    }
    for name, value in (("run.json", RUN_FILE), ("sweep.json", SWEEP_FILE)):
        (tmp_path / name).write_text(json.dumps(value))
        files[name](tmp_path / name)

    @examples(20)
    @given(value_changes(tmp_path, list(files), kind))
    def check(change: Change) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(tmp_path, folder, dirs_exist_ok=True)
            change[1](Path(folder))
            for name, read in files.items():
                with patience(f"{name} after {change[0]}"):
                    read(Path(folder) / name)

    check()
