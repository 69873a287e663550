"""Save, report and “Try it” have the model to themselves: no run begins in their midst."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab_widgets import Workbench, answers, keeping, session
from tests.helpers.keep_bench import QUICK, do, keep_bench, send, settle, trained
from tests.helpers.tiny_run import tiny_lm, tiny_task, until


@pytest.fixture
def wb(tmp_path: Path) -> Iterator[Any]:
    with keep_bench(tmp_path / "runs") as made:
        yield made


class Midst:
    """Holds a function up in its midst until it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.within, self.go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def held(*given: Any, **named: Any) -> Any:
            self.within.set()
            assert self.go.wait(60)
            return real(*given, **named)

        monkeypatch.setattr(owner, name, held)


def save(wb: Any, folder: Path) -> None:
    send(wb, type="save", form="peft", folder=str(folder))


def export(wb: Any, folder: Path) -> None:
    send(wb, type="save", form="merged", folder=str(folder))


def try_it(wb: Any, _: Path) -> None:
    assert wb.try_it.compare("a b c d >")


KEPT, ASKED = "an adapter is being kept", "the model is being asked"
BUTTONS: dict[str, tuple[Callable[[Any, Path], None], Any, str, str]] = {
    "save": (save, keeping, "_write", KEPT),
    "save, read back": (save, keeping, "loaded_back", KEPT),
    "export": (export, keeping, "_write", KEPT),
    "download": (lambda wb, _: send(wb, type="download", form="peft"), keeping, "_write", KEPT),
    "report": (
        lambda wb, _: send(wb, type="report"),
        session,
        "write_report",
        "a report is being written",
    ),
    "try it": (try_it, answers, "family_of", ASKED),
}


def pressed_start(wb: Any) -> str:
    """Press Start on the page; return what the page says of it."""
    wb.panel._handle({"type": "command", "name": "start", "settings": {}})
    return wb.panel._refused["message"] if wb.panel._refused else ""


@pytest.mark.parametrize("name", BUTTONS)
def test_start_says_what_the_model_is_in_use_for(
    name: str, wb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    press, owner, function, what = BUTTONS[name]
    run = trained(wb)
    wb.save(tmp_path / "kept")
    midst = Midst(monkeypatch, owner, function)
    press(wb, tmp_path / "out")
    try:
        assert midst.within.wait(60)
        assert pressed_start(wb) == f"{what}; start another run when that is over"
        assert wb.run is run
        assert wb.lm.model is run.model
        with pytest.raises(ll.LoraLabError, match=what):
            ll.detach(wb.lm.model)
    finally:
        midst.go.set()
    settle(wb)
    assert wb.keep.problem is None, wb.keep.problem
    until(lambda: not wb.try_it._job.works)
    assert pressed_start(wb) == ""
    assert wb.run is not run
    assert wb.run.result(60).losses


@pytest.mark.parametrize("beside", [False, True], ids=["a cell", "another bench's cell"])
def test_a_run_that_a_cell_starts_waits_and_what_is_saved_is_whole(
    beside: bool, wb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = trained(wb), tmp_path / "out"
    learned = {name: tensor.clone() for name, tensor in run.adapter.state().items()}
    other = wb
    if beside:
        other = Workbench(wb.lm, task=tiny_task(), output_dir=tmp_path / "others", **QUICK)
    midst, told = Midst(monkeypatch, keeping, "_write"), threading.Event()
    save(wb, out)
    assert midst.within.wait(60)
    begun: list[Any] = []

    def cell() -> None:
        told.set()
        begun.append(other.start())

    thread = threading.Thread(target=cell)
    thread.start()
    assert told.wait(60)
    ll.train(  # time goes by
        tiny_lm(), tiny_task(), ll.LoraConfig(r=2), output_dir=tmp_path / "far", max_steps=1,
        eval_examples=0,
    ).result(60)  # fmt: skip
    assert not begun
    assert ll.attached(wb.lm.model)["default"] is run.adapter
    midst.go.set()
    thread.join(60)
    settle(wb)
    assert wb.keep.problem is None, wb.keep.problem
    assert "read back: PEFT-format file" in "\n".join(wb.keep.done["lines"])
    assert begun[0].result(60).losses
    twin = ll.load_adapter(tiny_lm().model, out).state()
    assert twin.keys() == learned.keys()
    assert all(torch.equal(twin[name], tensor) for name, tensor in learned.items())


def test_a_run_that_rests_is_kept_and_goes_on_as_it_would(wb: Any, tmp_path: Path) -> None:
    run = wb.start()
    run.pause()
    until(lambda: run.state == "paused")
    if run.snapshot.step:
        assert "read back: PEFT-format file" in do(
            wb, "save", form="peft", folder=str(tmp_path / "a")
        )
    run.resume()
    assert run.result(60).losses
