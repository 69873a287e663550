"""An adapter that is saved over another one: at every instant the older is read, or the new."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab._util import files
from lora_lab.checkpoint import replacing
from lora_lab.checkpoint.native import NativeFile
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.errors import AdapterError
from tests.helpers.crash_kinds import model_with
from tests.helpers.tiny_text import tiny_llama

LORA = ll.LoraConfig(r=2, target_modules=["q", "v"])
WIDER = ll.LoraConfig(r=4, target_modules=["q", "k", "v"])
FORMS = {
    "LoRA": WIDER,
    "BitFit": ll.BitFitConfig(new_biases=True),
    "IA3": ll.IA3Config(),
    "two": (LORA, ll.PrefixEmbedConfig()),
    "two others": (ll.BitFitConfig(new_biases=True), WIDER),
}
OPERATIONS = "rename", "replace", "unlink", "rmdir", "mkdir", "link", "open", "fsync"


def held(folder: Path):
    """What a folder's adapter is, to the byte."""
    file = read_adapter(folder)
    if isinstance(file, NativeFile):
        own = {key: tensor.data.tobytes() for key, tensor in file.tensors.items()}
        return file.method, own, [held(part) for part in file.parts]
    tensors = getattr(file, "modules", None) or file.tensors
    return str(file.settings), repr(tensors)


@pytest.fixture
def watched(monkeypatch):
    """Call with a look, which is taken before every operation on files that our code makes."""

    def watch(look):
        looking = []
        for name in OPERATIONS:
            real = getattr(os, name)

            def seen(*given, real=real, **named):
                if not looking:
                    looking.append(True)
                    look()
                    looking.clear()
                return real(*given, **named)

            monkeypatch.setattr(os, name, seen)

    yield watch
    monkeypatch.undo()


def beside(folder: Path, what: str, monkeypatch) -> None:
    if what == "other things":
        (folder / "README.md").write_text("mine")
        (folder / "checkpoint-5").mkdir()
        (folder / "checkpoint-5" / "notes").write_text("mine, too")
    if what == "no swap":
        monkeypatch.setattr(files, "swap", lambda *_: False)
    if what == "no links":

        def refuse(*_, **__):
            raise OSError(errno.EPERM, "no links here")

        (folder / "README.md").write_text("mine")
        monkeypatch.setattr(os, "link", refuse)
    if what == "the working directory":
        monkeypatch.chdir(folder)


PAIRS = [
    *(("LoRA", "LoRA"), ("BitFit", "LoRA"), ("IA3", "two")),
    *(("two", "two others"), ("two others", "LoRA")),
]
PLACES = [
    *[(place, *pair) for place in ("alone", "other things") for pair in PAIRS],
    *[(place, "two", "two others") for place in ("no swap", "no links", "the working directory")],
]


@pytest.mark.parametrize(("place", "old", "new"), PLACES)
def test_either_the_older_or_the_new_one_is_read_at_every_instant(
    tmp_path, monkeypatch, watched, place, old, new
):
    folder, there, states = tmp_path / "adapter", tmp_path / "there", []
    ll.save_adapter(model_with(FORMS[old], seed=1), folder)
    model = model_with(FORMS[new], seed=2)
    ll.save_adapter(model, there)
    before, after = held(folder), held(there)
    beside(folder, place, monkeypatch)
    others = {p for p in folder.rglob("*") if "README" in p.name or "checkpoint-5" in str(p)}
    same = folder.stat().st_ino
    watched(lambda: states.append(held(folder)))
    ll.save_adapter(model, folder)
    monkeypatch.undo()
    assert held(folder) == after
    changes = [state == after for state in states]
    assert all(state in (before, after) for state in states)
    assert changes == sorted(changes), "the older one, then the new one"
    assert changes[0] is False
    assert {p.relative_to(folder) for p in folder.rglob("*")} - {
        p.relative_to(folder) for p in others
    } == {p.relative_to(there) for p in there.rglob("*")}
    assert all(p.exists() for p in others)
    if place in ("other things", "the working directory"):
        assert folder.stat().st_ino == same


@pytest.mark.parametrize("at", [0, 4, 7, 11])
@pytest.mark.parametrize("place", ["alone", "other things"])
def test_a_disk_that_refuses_leaves_the_older_adapter_and_says_so(tmp_path, monkeypatch, place, at):
    folder = tmp_path / "adapter"
    ll.save_adapter(model_with(FORMS["two"]), folder)
    beside(folder, place, monkeypatch)
    before, real, calls = held(folder), files.sync, []

    def refusing(path):
        calls.append(path)
        if len(calls) == at + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    for module in (files, replacing):
        monkeypatch.setattr(module, "sync", refusing)
    model = model_with(WIDER, seed=2)
    said = ""
    try:
        ll.save_adapter(model, folder)
    except AdapterError as error:
        said = str(error)
    full = f"cannot write {folder}: No space left on device; free some space or choose another"
    assert said == f"{full} folder" if len(calls) > at else said == ""
    assert held(folder) in (before, held_of(model, tmp_path))
    monkeypatch.undo()
    ll.save_adapter(model, folder)
    assert held(folder) == held_of(model, tmp_path)
    assert not list(folder.rglob(".*"))


def held_of(model, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda _: None)
        ll.save_adapter(model, folder / "apart")
    return held(folder / "apart")


def test_what_a_killed_writer_left_is_gone_on_with(tmp_path):
    folder = tmp_path / "adapter"
    ll.save_adapter(model_with(FORMS["two"]), folder)
    before = held(folder)
    shutil.copytree(folder, tmp_path / ".adapter.old")
    shutil.rmtree(folder)
    assert held(folder) == before, "put aside, and nothing in its place yet"
    assert ll.load_adapter(tiny_llama(0), folder).method == "LoRA+PE"
    shutil.copytree(tmp_path / ".adapter.old", folder / ".adapter-before")
    (folder / "adapter_model.safetensors").write_bytes(b"half of")
    shutil.rmtree(tmp_path / ".adapter.old")
    assert held(folder) == before
    model = model_with(WIDER, seed=2)
    ll.save_adapter(model, folder)
    assert held(folder) == held_of(model, tmp_path)
    assert not list(folder.rglob(".*"))


def test_a_link_to_a_folder_stays_one(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    ll.save_adapter(model_with(LORA), real)
    link.symlink_to(real)
    ll.save_adapter(model_with(WIDER), link)
    assert link.is_symlink()
    assert held(real) == held(link)
    assert len(list(tmp_path.iterdir())) == 2
