"""The first cell, in a real kernel: it says what it is at, can be interrupted, and raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel")

from lora_lab_widgets.cell_line import CellLine
from tests.helpers.tiny_files import tiny_model_folder, tiny_task_file
from tests.widgets.test_kernel_interrupt import Kernel

ROOT = Path(__file__).parents[2]
IMPORT = f"""\
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "widgets")!r}]
from lora_lab_widgets import Workbench"""
SMALL = "Workbench('./small', task='letters.csv', max_steps=2)"
SLOW = """\
import pathlib, time
from lora_lab_widgets import loading
own = loading.load_model
def slow(*names, **head):
    while not pathlib.Path("go-on").exists():
        time.sleep(0.02)
    return own(*names, **head)
loading.load_model = slow"""


class TypedKernel(Kernel):
    """A kernel whose cells' outputs are kept."""

    def outputs(self, code: str, seen: Callable[[list[Any]], None] = lambda _: None) -> Any:
        """Return the outputs of a cell, and its reply; `seen` is told of each output."""
        cell, outputs = self.begin(code), list[Any]()
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            shown = str(message["content"].get("data"))
            bar = "Loading weights:" in shown  # that of transformers before 5.4
            if message["msg_type"].endswith("display_data") and not bar:
                outputs.append((message["msg_type"], message["content"]))
                seen(outputs)
            mine = message["parent_header"].get("msg_id") == cell
            if mine and message["content"].get("execution_state") == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["parent_header"].get("msg_id") == cell:
                return outputs, reply["content"]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TypedKernel]:
    folder = tmp_path_factory.mktemp("work")
    tiny_model_folder(folder / "small")
    tiny_task_file(folder / "letters.csv")
    (folder / "go-on").touch()
    kernel = TypedKernel(folder)
    kernel.folder = folder  # type: ignore[attr-defined]
    yield kernel
    kernel.close()


def texts(outputs: list[Any]) -> list[str]:
    return [content["data"].get("text/plain", "") for _, content in outputs]


def one_line(outputs: list[Any]) -> None:
    """It is one output, changed in its place, with nothing left of it at the end."""
    kinds = [kind for kind, _ in outputs]
    assert kinds == ["display_data"] + ["update_display_data"] * (len(kinds) - 1)
    assert len({content["transient"]["display_id"] for _, content in outputs}) == 1
    assert outputs[-1][1]["data"] == {"text/plain": "", "text/html": ""}


def test_importing_is_told_of_once(kernel: TypedKernel) -> None:
    outputs, reply = kernel.outputs(IMPORT)
    assert reply["status"] == "ok", reply
    one_line(outputs)
    assert texts(outputs)[0].startswith("LoRA Lab: importing torch and what the workbench is made")
    assert kernel.outputs(IMPORT) == ([], reply | {"execution_count": reply["execution_count"] + 1})


def test_opening_says_what_it_is_at_and_leaves_nothing(kernel: TypedKernel) -> None:
    outputs, reply = kernel.outputs(f"{IMPORT}\nwb = {SMALL}")
    assert reply["status"] == "ok", reply
    one_line(outputs[-len([o for o in outputs if "import" not in str(o)]) :])
    said = [re.sub(r" · \d+ s.*", "", text) for text in texts(outputs)]
    told = [text for text in dict.fromkeys(said) if text and "importing" not in text]
    assert told[:2] == ["LoRA Lab: reading letters.csv", "LoRA Lab: looking what ./small takes"]
    assert re.fullmatch(r"LoRA Lab: reading the weights of ./small, [\d.]+ KiB", told[2])
    assert told[3:] == ["LoRA Lab: counting tokens"]
    assert "<progress max=" in outputs[0][1]["data"]["text/html"]


def test_the_seconds_go_on_while_a_library_keeps_the_cell(kernel: TypedKernel) -> None:
    go_on = kernel.folder / "go-on"  # type: ignore[attr-defined]
    go_on.unlink()

    def seen(outputs: list[Any]) -> None:
        counted = {text for text in texts(outputs) if "reading the weights" in text}
        if len(counted) >= 3:
            go_on.touch()

    outputs, reply = kernel.outputs(f"{IMPORT}\n{SLOW}\nwb = {SMALL}", seen)
    assert reply["status"] == "ok", reply
    waited = [text for text in texts(outputs) if "reading the weights" in text]
    assert all(text.endswith("· interrupt the kernel (■) to cancel") for text in waited)
    seconds = [int(re.search(r"· (\d+) s ·", text)[1]) for text in waited]  # type: ignore[index]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) >= 3


def test_it_can_be_interrupted(kernel: TypedKernel) -> None:
    go_on = kernel.folder / "go-on"  # type: ignore[attr-defined]
    go_on.unlink()

    def seen(outputs: list[Any]) -> None:
        if "reading the weights" in texts(outputs)[-1]:
            kernel.manager.interrupt_kernel()

    outputs, reply = kernel.outputs(f"{IMPORT}\n{SLOW}\nwb = None\nwb = {SMALL}", seen)
    go_on.touch()
    assert (reply["ename"], reply["evalue"]) == (
        "KeyboardInterrupt",
        "cancelled: nothing was opened",
    )
    assert outputs[-1][1]["data"]["text/plain"] == ""
    assert kernel.value("repr(wb)") == "'None'"


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        ("Workbench('no-model')", "ModelError", "no model is called 'no-model'"),
        ("Workbench('./small', task='none.csv')", "TaskError", "there is no file none.csv"),
        ("Workbench('./small', lr=1)", "ConfigError", "lr"),
    ],
)
def test_what_cannot_be_opened_is_raised_in_the_cell(
    kernel: TypedKernel, call: str, error: str, line: str
) -> None:
    outputs, reply = kernel.outputs(f"{IMPORT}\n{call}")
    assert reply["ename"] == error
    assert line in reply["evalue"]
    assert not outputs or outputs[-1][1]["data"]["text/plain"] == ""


def test_nothing_is_shown_where_no_kernel_is(capsys: pytest.CaptureFixture[str]) -> None:
    with CellLine() as line:
        line.tell("reading", 0.5)
        line.tell("counting")
    assert capsys.readouterr() == ("", "")


def test_no_secret_stands_in_it() -> None:
    line = CellLine()
    line.tell("reading https://me:s3cret-word@example.org/rows.csv")
    said = line._bundle()
    assert "s3cret-word" not in said["text/plain"] + said["text/html"]
    assert "example.org/rows.csv" in said["text/plain"]
