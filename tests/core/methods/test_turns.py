"""One lock a model: a run begins, and adapters are written, when nobody else has it."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.checkpoint import saving
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.checkpoint.saving import write_adapter
from lora_lab.checkpoint.uniform import export_uniform
from lora_lab.errors import AdapterError
from lora_lab.methods.turns import at_work, turn, turn_of
from lora_lab.training.run import runs_on
from lora_lab.training.snapshot import RunState
from tests.helpers.beside import outcome
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ll.LoraConfig(r=2, target_modules=["q", "v"])
LONG = {"max_steps": 100_000, "max_length": 32, "eval_examples": 0}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def somebody_has(model: Any, what: str = "an adapter is being kept") -> Iterator[None]:
    """Have another thread take a model's turn for the block."""
    there, go = threading.Event(), threading.Event()

    def have() -> None:
        with turn_of(model).taken_for(what):
            there.set()
            go.wait(60)

    thread = threading.Thread(target=have)
    thread.start()
    assert there.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join(60)


def run_of(lm: Any, folder: Path, **settings: Any) -> Any:
    return ll.train(lm, tiny_task(8, 2), CONFIG, output_dir=folder, **LONG | settings)


# ---------------------------------------------------------------- runs that begin


def test_a_run_begins_when_nobody_has_its_model_any_more(tmp_path: Path) -> None:
    lm, told = tiny_lm(), threading.Event()
    run = run_of(lm, tmp_path, start=False, max_steps=2)

    def start() -> None:
        told.set()
        run.start()

    thread = threading.Thread(target=start)
    with somebody_has(lm.model):
        thread.start()
        assert told.wait(60)
        other = run_of(tiny_lm(), tmp_path, max_steps=1)  # another model is nobody's
        other.result(60)
        assert run.state is RunState.IDLE
        assert not ll.attached(lm.model)
    thread.join(60)
    assert run.result(60).losses


def test_a_queued_run_rests_for_whoever_has_its_model_and_begins_then(tmp_path: Path) -> None:
    first = run_of(tiny_lm(), tmp_path)
    lm = tiny_lm()
    queued = run_of(lm, tmp_path, max_steps=2)
    assert queued.state is RunState.QUEUED
    with turn_of(lm.model).taken_for("a report is being written"):
        first.stop()
        until(lambda: queued.state is not RunState.QUEUED)
        with queued.paused() as model:  # it rests, though it cannot begin
            assert not ll.attached(model)
        assert not ll.attached(lm.model)
    assert queued.result(60).losses


def test_a_queued_run_that_is_stopped_meanwhile_ends(tmp_path: Path) -> None:
    first = run_of(tiny_lm(), tmp_path)
    lm = tiny_lm()
    queued = run_of(lm, tmp_path)
    with turn_of(lm.model).taken_for("a report is being written"):
        first.stop()
        until(lambda: queued.state is not RunState.QUEUED)
        queued.stop()
        with queued.paused():
            pass
    assert queued.wait(60)
    assert queued.state is RunState.DONE, queued.snapshot.failure


def test_a_run_at_work_switches_its_adapter_whoever_waits_for_its_next_step(tmp_path: Path) -> None:
    """Evaluations have the base answer: the model is the run's until it rests."""
    calm = outcome(tiny_lm(), tiny_task(8, 2), CONFIG, tmp_path)
    visits: list[threading.Thread] = []
    seen: list[str] = []

    def comes(model: Any) -> None:
        if visits and visits[-1].is_alive():
            return
        there = threading.Event()

        def visit() -> None:
            with turn_of(model).taken_for("an adapter is being kept"):
                there.set()
                for run in runs_on(model):
                    with run.paused():
                        seen.append(run.snapshot.phase)

        visits.append(threading.Thread(target=visit))
        visits[-1].start()
        assert there.wait(60)

    assert outcome(tiny_lm(), tiny_task(8, 2), CONFIG, tmp_path, comes) == calm
    for thread in visits:
        thread.join(60)
    assert seen
    model = tiny_lm().model
    ll.attach(model, CONFIG)
    with somebody_has(model), at_work():
        ll.activate(model, None)
    assert ll.active(model) is None


# ---------------------------------------------------------------- verbs

VERBS: dict[str, Callable[[Any, Path], object]] = {
    "attach": lambda model, _: ll.attach(model, CONFIG),
    "attach another": lambda model, _: ll.attach(model, CONFIG, "other"),
    "detach": lambda model, _: ll.detach(model),
    "activate": lambda model, _: ll.activate(model, None),
    "merge": lambda model, _: ll.merge(model),
    "merge_and_unload": lambda model, _: ll.merge_and_unload(model),
    "load_adapter": lambda model, folder: ll.load_adapter(model, folder / "saved"),
}


@pytest.mark.filterwarnings("ignore:adapter 'default' was attached already")
@pytest.mark.parametrize("verb", VERBS)
def test_what_changes_a_model_is_refused_to_all_but_who_has_it(verb: str, tmp_path: Path) -> None:
    lm = tiny_lm()
    adapter = ll.attach(lm.model, CONFIG)
    ll.save_adapter(lm.model, tmp_path / "saved")
    with somebody_has(lm.model):
        with pytest.raises(AdapterError, match=r"^an adapter is being kept; do it when that is ov"):
            VERBS[verb](lm.model, tmp_path)
        assert ll.attached(lm.model) == {"default": adapter}
        assert ll.active(lm.model) == "default"
        ll.attach(lm.model, CONFIG, "beside", activate=False)  # changes nothing that is in force
        ll.detach(lm.model, "beside")
    with turn_of(lm.model).taken_for("an adapter is being kept"):
        VERBS[verb](lm.model, tmp_path)


WRITES: dict[str, Callable[..., object]] = {
    "save_adapter": lambda model, folder, name=None: ll.save_adapter(model, folder / "a", name),
    "export_merged": lambda model, folder, name=None: ll.export_merged(model, folder / "b", name),
    "export_uniform": lambda model, folder, name=None: export_uniform(model, folder / "c", name),
    "save_loralib": lambda model, folder, name=None: save_loralib(
        model, folder / "d.safetensors", name
    ),
}


@pytest.mark.parametrize("verb", WRITES)
def test_what_a_run_trains_is_written_as_it_is_after_one_step(verb: str, tmp_path: Path) -> None:
    """In the midst of one, half of its factors would be of that step, and half of the last."""
    write, lm = WRITES[verb], tiny_lm()
    ll.attach(lm.model, CONFIG, "other")
    run = run_of(lm, tmp_path / "runs", start=False)
    asked, written = threading.Event(), threading.Event()
    midst: list[bool] = []

    def cell() -> None:
        asked.set()
        write(lm.model, folder("midst"))
        written.set()

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    def meanwhile(*_: Any) -> None:
        if not midst and run.snapshot.step >= 2:
            thread.start()
            assert asked.wait(60)
            write(lm.model, folder("another"), "other")  # by the run's own thread, for which
            write(lm.model, folder("own"))  # nobody waits
            midst.append(written.is_set())

    thread = threading.Thread(target=cell)
    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    run.start()
    assert written.wait(60)
    assert midst == [False]
    with run.paused() as model:
        write(model, folder("paused"))
    run.stop()
    assert run.wait(60)
    assert run.state is RunState.DONE, run.snapshot.failure
    write(lm.model, folder("over"))


def test_a_file_that_is_written_beside_a_run_is_what_the_run_had_learned_then(
    tmp_path: Path,
) -> None:
    """The same steps alone come to the same factors, all of them."""
    lm, step = tiny_lm(), []
    run = run_of(lm, tmp_path / "runs", start=False)

    def noted(adapter: Any, folder: Path) -> None:
        write_adapter(adapter, folder, None)
        step.append(run.snapshot.step)

    run.start()
    until(lambda: run.snapshot.step > 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_adapter", lambda model, draft, _: noted(model, draft))
        ll.save_adapter(lm.model, tmp_path / "saved")
    run.stop()
    run.wait(60)
    twin = tiny_lm()
    alone = run_of(twin, tmp_path / "runs", start=False)
    log = alone.store.log

    def stopping(row: Any) -> None:
        log(row)
        if row["step"] == step[0]:
            alone.stop()

    alone.store.log = stopping
    alone.start().result(60)
    found = ll.load_adapter(tiny_lm().model, tmp_path / "saved").state()
    expected = alone.adapter.state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_that_begins_while_its_file_waits_for_the_model_rests_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had the model before may have begun one."""
    lm, at_rest = tiny_lm(), []
    run = run_of(lm, tmp_path / "runs", start=False)
    write = saving.write_adapter

    def after_whoever_begins_it(model: Any) -> Any:
        run.start()
        until(lambda: run.snapshot.step > 1)
        return turn(model)

    def noted(model: Any, draft: Path, name: str | None) -> None:
        at_rest.append(not run.adapter.trains())
        write(model, draft, name)

    monkeypatch.setattr(saving, "turn", after_whoever_begins_it)
    monkeypatch.setattr(saving, "write_adapter", noted)
    ll.save_adapter(lm.model, tmp_path / "saved")
    assert at_rest == [True]
    assert run.state is RunState.RUNNING
    run.stop()
    assert run.wait(60)


@pytest.mark.parametrize("verb", WRITES)
def test_what_is_written_waits_for_whoever_has_the_model(verb: str, tmp_path: Path) -> None:
    lm, told = tiny_lm(), threading.Event()
    ll.attach(lm.model, CONFIG)

    def write() -> None:
        told.set()
        WRITES[verb](lm.model, tmp_path)

    thread = threading.Thread(target=write)
    with somebody_has(lm.model):
        thread.start()
        assert told.wait(60)
        run_of(tiny_lm(), tmp_path / "runs", max_steps=1).result(60)  # time goes by
        assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    thread.join(60)
    assert len([*tmp_path.iterdir()]) == 2


# ---------------------------------------------------------------- the lock itself


def test_turns_nest_and_the_first_words_stay() -> None:
    model = tiny_lm().model
    with turn_of(model).taken_for("one"), turn(model), turn_of(model).taken_for("two"):
        assert turn_of(model).what == "one"
    assert turn_of(model).what == ""


def test_a_wrapped_model_is_the_same_model() -> None:
    model = tiny_lm().model
    assert turn_of(torch.nn.DataParallel(model)) is turn_of(model)


def test_a_copy_of_a_model_is_another_one() -> None:
    model = tiny_lm().model
    ll.attach(model, CONFIG)
    with somebody_has(model):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            ll.activate(twin, None)
            ll.detach(twin)
    assert ll.active(model) == "default"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_in_a_forked_child_nobody_has_a_model() -> None:
    model = tiny_lm().model
    ll.attach(model, CONFIG)
    with somebody_has(model):
        child = os.fork()
        if child == 0:
            try:
                ll.activate(model, None)
                os._exit(0 if turn_of(model).lock.acquire(blocking=False) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
