"""Whatever a power loss may leave, by construction: nothing is lost in silence.

Some of the states; `python -m tests.helpers.crash_kinds` tries all of them (docs/crashes.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import lora_lab as ll
from lora_lab._util import files
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.reports.page import Page
from tests.helpers.crash_kinds import KINDS, model_with, tried
from tests.helpers.crash_states import Recorder, seen_of, states

SOME = {"a run": 8, "a resumed run": 4, "a queued run": 4, "a sweep": 4}
SOME["a resumed run, names cannot be exchanged"] = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_crash_may_leave_is_gone_on_with(tmp_path, kind):
    count, differing, _ = tried(KINDS[kind](), tmp_path, SOME.get(kind, 12))
    assert count >= differing >= 3


VERBS = {
    "a report": lambda _, place: Page().write(place / "page.html", "a run", ["x"]),
    "loralib": lambda model, place: save_loralib(model, place / "file.safetensors"),
    "loralib, pickled": lambda model, place: save_loralib(model, place / "file.pt"),
    "an adapter": lambda model, place: ll.save_adapter(model, place),
    "for the hub": lambda model, place: ll.push_ready(model, place),
    "one rank": lambda model, place: ll.export_uniform(model, place),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_has_written_in_new_folders_is_on_the_disk_when_it_returns(tmp_path, verb):
    model, place = model_with(ll.LoraConfig(r=2, target_modules=["q"])), Path("new", "below")
    with Recorder(tmp_path) as recorder:
        VERBS[verb](model, tmp_path / place)
        recorder.mark("told")
    files_ = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = {str(path.relative_to(tmp_path)): path.read_bytes() for path in files_}
    found = [seen_of(tree) for tree, marks in states(recorder.moments) if "told" in marks]
    assert whole
    assert found
    assert all(whole.items() <= tree.items() for tree in found)


def left(folder: Path, work) -> list[dict[str, bytes | None]]:
    folder.mkdir(exist_ok=True)
    with Recorder(folder) as recorder:
        work(folder)
    return [tree for tree, _ in states(recorder.moments)]


def test_a_name_without_its_data_is_among_the_states_of_a_writer_that_does_not_flush(tmp_path):
    def careless(folder: Path) -> None:
        (folder / "draft").write_bytes(b"12345678")
        (folder / "draft").rename(folder / "file")

    found = {tree.get("file") for tree in left(tmp_path / "careless", careless)}
    assert found == {None, b"", b"1234", b"1234" + bytes(4), bytes(8), b"12345678"}
    careful = left(tmp_path / "careful", lambda f: files.write_text_atomic(f / "file", "12345678"))
    assert {tree.get("file") for tree in careful} == {None, b"12345678"}


def test_names_reach_the_disk_in_any_order_until_their_folder_is_flushed(tmp_path):
    def two(folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()

    found = {frozenset(tree) for tree in left(tmp_path / "any", two)}
    assert found == {frozenset(), frozenset({"one"}), frozenset({"two"}), frozenset({"one", "two"})}

    def in_order(folder: Path) -> None:
        for name in ("one", "two"):
            files.make_dirs(folder / name)

    found = {frozenset(tree) for tree in left(tmp_path / "order", in_order)}
    assert found == {frozenset(), frozenset({"one"}), frozenset({"one", "two"})}


def test_what_is_appended_may_be_torn_and_what_was_flushed_is_there(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "file").write_bytes(b"first;")

    def append(folder: Path) -> None:
        with (folder / "file").open("ab", buffering=0) as file:
            file.write(b"second")
            os.fsync(file.fileno())
            file.write(b"third.")

    found = {tree["file"] for tree in left(tmp_path / "log", append)}
    flushed = b"first;second"
    assert found == {
        *(b"first;", b"first;sec", b"first;sec" + bytes(3), b"first;" + bytes(6), flushed),
        *(flushed + new for new in (b"thi", b"thi" + bytes(3), bytes(6), b"third.")),
    }
