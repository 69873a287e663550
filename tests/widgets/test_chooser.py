"""The pickers of model and data, and the bench that opens in place. No browser."""

from __future__ import annotations

import base64
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lora_lab.errors import ConfigError, ModelError
from lora_lab.tasks import ClassificationTask
from lora_lab.tasks.embedded.registry import EMBEDDED
from lora_lab_widgets import Workbench, defaults, loading, opening
from lora_lab_widgets.opening import OWN
from tests.helpers.tiny_files import tiny_model_folder, tiny_task_file
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 256, "eval_examples": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a model and data."""
    folder = tmp_path_factory.mktemp("work")
    tiny_model_folder(folder / "small")
    tiny_task_file(folder / "letters.csv")
    tiny_task_file(folder / "more.csv")
    return folder


@pytest.fixture(autouse=True)
def only_what_is_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Workbench]:
    bench = Workbench(output_dir=tmp_path / "runs", **QUICK)
    yield bench
    if bench.run is not None:
        bench.run.stop()
        bench.run.wait(60)


def say(bench: Workbench, kind: str, **content: Any) -> None:
    bench.chooser._receive(None, {"type": kind, "seq": "s", **content}, [])


def news(bench: Workbench) -> None:
    """Ask as the page does, until there will be no more."""

    def quiet() -> bool:
        say(bench, "tick")
        return not bench.chooser.busy

    until(quiet)


def open_small(bench: Workbench, data: str = "letters.csv", **more: Any) -> None:
    say(bench, "choose", model="./small", device="cpu", dtype="float32", data=data, **more)
    say(bench, "open")
    news(bench)


def test_with_nothing_it_shows_the_pickers_and_loads_nothing(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bare.box.children == (bare._top,)
    assert bare._top.children == (bare.chooser,)
    assert bare.chooser.shown
    assert repr(bare) == "<Workbench: nothing is open yet>"
    assert "choose a model" in bare.fallback_html()
    assert bare.run is None
    assert bare.sweep is None
    assert bare.chooser.busy, "the page is to ask for what is found"
    news(bare)
    assert {"name": "./small", "text": "folder · license not stated · 113 KiB"} in [
        {**each, "text": each["text"].rpartition(" · ")[0] + " · 113 KiB"}
        for each in bare.chooser.models
    ]
    told = {each["name"]: each for each in bare.chooser.tasks}
    assert list(told) == list(EMBEDDED)
    for name, entry in EMBEDDED.items():
        assert told[name]["text"] == entry.card.about
        lines = told[name]["card"]
        assert [f"{entry.card.about}; {lines[0]}", *lines[1:]] == str(entry.card).splitlines()


def test_what_needs_a_model_says_that_there_is_none(bare: Workbench) -> None:
    for name in ("config", "grid", "lm", "plan", "start"):
        with pytest.raises(ConfigError, match="nothing is open yet"):
            getattr(bare, name)() if name == "start" else getattr(bare, name)
    with pytest.raises(AttributeError, match="has no attribute 'gird'"):
        bare.gird  # noqa: B018
    assert not hasattr(bare, "_repr_png_")


def test_a_folder_and_a_file_open_and_train(bare: Workbench) -> None:
    open_small(bare)
    assert bare.chooser.problem is None
    assert not bare.chooser.shown
    assert bare.lm.card.name == "./small"
    assert bare.task.name == "letters.csv"
    assert bare.plan.training()["max_steps"] == 2
    assert bare._top.children == (bare.header, bare.chooser)
    bare.panel._handle({"type": "tick", "seq": "a", "theme": "light", "width": 900})
    assert not bare.errors
    run = bare.start()
    run.wait(60)
    assert run.snapshot.step == 2


def test_other_data_join_the_plan_on_show(bare: Workbench) -> None:
    open_small(bare)
    session, grid = bare.session, dict(bare.grid.ranks)
    say(bare, "show")
    assert bare.chooser.chosen["model"] == "./small"
    assert bare.chooser.chosen["data"] == "letters.csv"
    say(bare, "choose", data="more.csv")
    say(bare, "open")
    news(bare)
    assert bare.session is session
    assert bare.task.name == "more.csv"
    assert bare.panel.settings["task"] == "more.csv"
    assert bare.header.chips[2] == "more.csv"
    assert bare.grid.ranks == grid
    say(bare, "show")
    say(bare, "choose", data="letters.csv")  # by the name that it has there, wherever the file is
    say(bare, "open")
    news(bare)
    assert bare.task.name == "letters.csv"


def test_classes_reload_the_model_with_their_head(bare: Workbench) -> None:
    open_small(bare)
    before = bare.lm
    say(bare, "choose", data="mini-nli")
    say(bare, "open")
    news(bare)
    assert bare.chooser.problem is None, bare.chooser.problem
    assert isinstance(bare.task, ClassificationTask)
    assert bare.lm is not before
    assert bare.lm.model.config.num_labels == len(bare.task.labels)
    # What loading had to say is to be read.
    assert bare.chooser.shown is bool(bare.chooser.notes)


def test_another_model_takes_the_place_and_the_old_one_goes(bare: Workbench) -> None:
    open_small(bare)
    old = weakref.ref(bare.lm.model), weakref.ref(bare.grid), weakref.ref(bare.delta_w)
    say(bare, "choose", dtype="bfloat16")
    say(bare, "open")
    news(bare)
    assert bare.lm.card.dtype == "bfloat16"
    assert len(bare.box.children) == 1 + 1 + len(bare.panels) - 4
    gc.collect()
    assert [each() for each in old] == [None, None, None]


def test_while_it_trains_nothing_is_opened(bare: Workbench) -> None:
    open_small(bare)
    run = bare.start()
    with run.paused():
        session = bare.session
        say(bare, "choose", data="more.csv")
        say(bare, "open")
        assert bare.chooser.problem["message"] == (
            f"run {run.id} is {run.state}; stop it to open another model or other data"
        )
        assert bare.chooser.doing == {}
        assert bare.session is session
    run.wait(60)
    with pytest.raises(ConfigError):
        bare.open("./small", task="more.csv", config="no config")  # type: ignore[arg-type]
    assert bare.session is session


def test_a_run_that_began_meanwhile_keeps_its_bench(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_small(bare)
    let = threading.Event()
    load = opening.load_task
    monkeypatch.setattr(opening, "load_task", lambda *a, **k: let.wait(60) and load(*a, **k))
    session = bare.session
    say(bare, "choose", data="more.csv")
    say(bare, "open")
    run = bare.start()
    with run.paused():
        let.set()
        news(bare)
        assert "stop it to open another model" in bare.chooser.problem["message"]
    assert bare.session is session
    assert bare.task.name == "letters.csv"


def test_it_says_what_it_is_at_and_can_be_given_up(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, reading = threading.Event(), threading.Event()

    def load(*_: Any, **__: Any) -> Any:
        reading.set()
        let.wait(60)
        return tiny_lm()

    monkeypatch.setattr(loading, "load_model", load)
    say(bare, "choose", model="./small", device="cpu", dtype="float32", data="letters.csv")
    say(bare, "open")
    assert reading.wait(60)
    say(bare, "tick")
    assert bare.chooser.doing["text"].startswith("reading the weights of ./small, ")
    say(bare, "open")
    assert "being opened already" in bare.chooser.problem["message"]
    say(bare, "cancel")
    assert bare.chooser.doing == {}
    assert bare.chooser.notes == ["cancelled: nothing was opened"]
    assert bare.chooser.problem is None
    let.set()
    news(bare)
    assert repr(bare) == "<Workbench: nothing is open yet>"
    monkeypatch.undo()


def test_a_download_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float | None]] = []
    given = threading.Event()

    def tell(text: str, share: float | None = None) -> None:
        told.append((text, share))

    def download(hub_id: str, told_of: Any, ended: threading.Event) -> None:
        assert (hub_id, ended) == ("owner/tiny", given)
        for come in (0, 2**30, 5 * 2**30):
            told_of(come)

    monkeypatch.setattr(loading, "download", download)
    loading.fetch("owner/tiny", 4 * 2**30, tell, given)
    assert told == [
        ("downloading owner/tiny: 0 B of 4 GiB", 0.0),
        ("downloading owner/tiny: 1 GiB of 4 GiB", 0.25),
        ("downloading owner/tiny: 5 GiB of 4 GiB", 1.0),
        ("downloaded", None),
    ]
    told.clear()
    loading.fetch("owner/tiny", None, tell, given)
    assert told[1] == ("downloading owner/tiny: 1 GiB", None)


def test_what_does_not_fit_is_refused_before_it_loads(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_lab.models import needs

    monkeypatch.setattr(needs, "available_memory", lambda: 1000)
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    open_small(bare)
    assert "and you have 1000 B free in memory" in bare.chooser.problem["message"]
    assert "you have 1000 B free in memory" in bare.chooser.card["lines"][1]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("./none", "letters.csv", "there is no folder ./none"),
        ("no-model", "letters.csv", "no model is called 'no-model'"),
        ("./small", "none.csv", "there is no file none.csv"),
        ("./small", "mini-e3e", "did you mean 'mini-e2e'"),
        ("", "letters.csv", "choose a model and data first"),
    ],
)
def test_what_cannot_be_opened_says_why_and_changes_nothing(
    bare: Workbench, model: str, data: str, message: str
) -> None:
    say(bare, "choose", model=model, data=data)
    say(bare, "open")
    news(bare)
    assert message in bare.chooser.problem["message"]
    assert repr(bare) == "<Workbench: nothing is open yet>"
    open_small(bare)
    assert bare.lm.card.name == "./small"


def test_a_file_of_ones_own_is_proposed_and_read_so(bare: Workbench, place: Path) -> None:
    lines = [f"what is {n} times two,it is {2 * n} of course" for n in range(40)]
    (place / "own.csv").write_text("\n".join(["Frage,Antwort", *lines]))
    say(bare, "choose", data="own.csv")
    news(bare)
    assert bare.chooser.data["columns"] == ("Frage", "Antwort")
    assert bare.chooser.chosen["options"] == {"prompt": "Frage", "completion": "Antwort"}
    say(bare, "choose", options={"prompt": "Antwort", "completion": "Frage", "seed": "3"})
    news(bare)
    assert bare.chooser.chosen["options"] == {"prompt": "Antwort", "completion": "Frage"}
    open_small(bare, "own.csv", options={"prompt": "Antwort", "completion": "Frage"})
    assert bare.task.train[0].completion.startswith("what is")


def test_an_upload_comes_in_pieces_and_is_proposed(
    bare: Workbench, tmp_path: Path, place: Path
) -> None:
    data = (place / "letters.csv").read_bytes()
    for start, end in [(0, 50), (50, 90), (90, len(data))]:
        piece = base64.b64encode(data[start:end]).decode()
        say(bare, "upload", name="mine.csv", data=piece, first=not start, last=end == len(data))
        assert bare.chooser.problem is None
    assert bare.chooser.chosen["data"] == str(tmp_path / "runs" / "uploads" / "mine.csv")
    news(bare)
    assert bare.chooser.data["line"].startswith("read as prompts with completions")
    say(bare, "upload", name="program.exe", data="eA==", first=True, last=True)
    assert "program.exe is not of a known format" in bare.chooser.problem["message"]


def test_a_model_of_ones_own_stays_for_other_data(tmp_path: Path) -> None:
    bench = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path / "runs", **QUICK)
    assert not bench.chooser.shown
    bench.header._receive(None, {"type": "choose", "seq": "1"}, [])
    assert bench.chooser.shown
    assert bench.chooser.chosen["model"] == OWN
    lm = bench.lm
    say(bench, "choose", data="letters.csv")
    say(bench, "open")
    news(bench)
    assert (bench.lm, bench.task.name) == (lm, "letters.csv")
    say(bench, "choose", data="mini-nli")
    say(bench, "open")
    news(bench)
    assert (
        "needs a model with another head than the one on show" in bench.chooser.problem["message"]
    )
    assert bench.task.name == "letters.csv"


def test_from_python_it_opens_in_place_too(bare: Workbench) -> None:
    bare.open("./small", task="letters.csv")
    box, first = bare.box, bare.lm
    bare.open(task="more.csv")
    assert (bare.box, bare.lm, bare.task.name) == (box, first, "more.csv")
    with pytest.raises(ModelError, match="there is no folder"):
        bare.open("./none")
    assert bare.lm is first


def test_the_header_puts_the_pickers_away_again(bare: Workbench) -> None:
    say(bare, "close")
    assert bare.chooser.shown  # there is nothing else to show
    open_small(bare)
    for shown in (True, False):
        bare.header._receive(None, {"type": "choose", "seq": "1"}, [])
        assert bare.chooser.shown is shown
        assert bare.chooser.layout.display == (None if shown else "none")


def test_marimo_is_told_that_a_cell_opens_it(bare: Workbench) -> None:
    bare._display_()
    assert not bare.chooser.here
    say(bare, "open")
    assert "in marimo a cell opens it" in bare.chooser.problem["message"]


def test_an_unknown_message_is_one_line(bare: Workbench) -> None:
    say(bare, "no such")
    assert "unknown message 'no such'" in bare.chooser.problem["message"]
    assert defaults.MODEL in bare.chooser.summary()


def test_model_and_data_are_looked_at_beside_each_other(place: Path) -> None:
    """In a fresh interpreter, where both are the first that need transformers."""
    code = """
import sys, threading, time
from lora_lab_widgets import Workbench
bench = Workbench()
assert "transformers" in sys.modules
for wish in ({"model": "./small"}, {"data": "letters.csv"}):
    bench.chooser._receive(None, {"type": "choose", "seq": "1", **wish}, [])
end = time.monotonic() + 60
while bench.chooser.busy and time.monotonic() < end:
    bench.chooser._receive(None, {"type": "tick", "seq": "1"}, [])
    time.sleep(0.01)
assert len(bench.chooser.card["lines"]) == 2, bench.chooser.card
assert bench.chooser.data["rows"] == 64, bench.chooser.data
for thread in threading.enumerate():  # what nobody waits for any more ends before the interpreter
    if thread.daemon:
        thread.join(30)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
