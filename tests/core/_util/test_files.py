"""The one writer: whole or absent, on the disk, and never through somebody's link."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab._util import files
from lora_lab._util.swapping import swap
from lora_lab.errors import AdapterError, LoraLabError
from tests.helpers.crash_states import Recorder, states
from tests.helpers.tiny_run import tiny_lm, tiny_task

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


def put(folder, text):
    (folder / "a").write_text(text)


def seen(root):
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_two_paths_change_places_in_one_step(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        place.mkdir()
        put(place, place.name)
    if not swap(one, other):
        pytest.skip("this file system swaps nothing")
    assert seen(tmp_path) == {"one/a": "other", "other/a": "one"}
    assert not swap(one, tmp_path / "nothing")


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_that_is_written_again_is_old_or_new_and_nothing_is_left_beside(
    tmp_path, monkeypatch, swaps
):
    if not swaps:
        monkeypatch.setattr(files, "swap", lambda *_: False)
    path = tmp_path / "new" / "adapter"
    for text in ("first", "second"):
        files.write_dir_atomic(path, lambda folder, text=text: put(folder, text))
        assert seen(tmp_path) == {"new/adapter/a": text}

    def fails(folder):
        put(folder, "third")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        files.write_dir_atomic(path, fails)
    assert seen(tmp_path) == {"new/adapter/a": "second"}
    assert [p.name for p in path.parent.iterdir()] == ["adapter"]


def test_a_folder_can_be_read_at_every_instant_of_being_written_again(tmp_path, monkeypatch):
    path = tmp_path / "adapter"
    files.write_dir_atomic(path, lambda folder: put(folder, "old"))
    if not swap(path, path):
        pytest.skip("this file system swaps nothing")
    states = []
    for name in ("rename", "replace", "rmdir", "unlink", "fsync"):
        real = getattr(os, name)

        def watched(*given, real=real, **named):
            states.append((path / "a").read_text() if (path / "a").exists() else None)
            return real(*given, **named)

        monkeypatch.setattr(os, name, watched)
    files.write_dir_atomic(path, lambda folder: put(folder, "new"))
    assert set(states) == {"old", "new"}


def test_names_reach_the_disk_with_what_they_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.relative_to(tmp_path)))
    files.make_dirs(tmp_path / "a" / "b")
    files.write_text_atomic(tmp_path / "a" / "b" / "text", "x")
    assert [str(path) for path in synced[:2]] == ["a", "."]  # that have b's name, and a's
    assert str(synced[-1]) == "a/b"  # behind the rename
    with files.new_dir(tmp_path / "out") as draft:
        put(draft, "x")
    assert str(synced[-1]) == "."


@needs_links
def test_a_folder_that_is_written_again_keeps_its_rights(tmp_path):
    path = tmp_path / "adapter"
    files.write_dir_atomic(path, lambda folder: put(folder, "first"))
    path.chmod(0o2770)
    files.write_dir_atomic(path, lambda folder: put(folder, "second"))
    assert path.stat().st_mode & 0o7777 == 0o2770
    assert seen(path) == {"a": "second"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of this kind")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_a_library_wrote_for_its_user_alone_follows_the_umask(tmp_path, umask):
    """safetensors' files are 0600 whatever the umask; any other new file is 0666 & ~umask."""

    def private(path):
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(umask)
    try:
        files.write_dir_atomic(tmp_path / "a", lambda folder: private(folder / "file"))
        with files.new_dir(tmp_path / "b") as folder:
            (folder / "below").mkdir()
            private(folder / "below" / "file")
        with files.write_file_atomic(tmp_path / "c") as draft:
            private(draft)
    finally:
        os.umask(before)
    for path in ("a/file", "b/below/file", "c"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o666 & ~umask


@needs_links
def test_a_link_in_the_way_of_a_draft_is_not_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my thesis")
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in (".report.html.tmp", ".report.html.old", "report.html"):
        (runs / name).symlink_to(mine)
    files.write_text_atomic(runs / "report.html", "<html>")
    assert mine.read_text() == "my thesis"
    assert (runs / "report.html").read_text() == "<html>"
    assert not (runs / "report.html").is_symlink()


@needs_links
def test_what_grows_in_place_is_no_link_and_no_pipe(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my thesis")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "nowhere").symlink_to(tmp_path / "made through a link")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere", "pipe"):
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
            with pytest.raises(OSError, match="it is a link or no regular file; remove it"):
                os.close(files.open_own(tmp_path / name, flags))
    with pytest.raises(OSError, match=r"Is a directory|no regular file"):
        files.open_own(tmp_path, os.O_RDWR)
    assert mine.read_text() == "my thesis"
    assert not (tmp_path / "made through a link").exists()


def test_a_file_in_the_way_of_a_folder_goes_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "adapter"
    path.write_text("in the way")
    files.write_dir_atomic(path, lambda folder: put(folder, "new"))
    assert seen(tmp_path) == {"adapter/a": "new"}
    assert path.stat().st_mode & 0o111, "it can be entered"


@needs_links
def test_a_drive_that_flushes_no_folder_is_written_to(tmp_path, monkeypatch):
    real = os.fsync

    def unable(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", unable)
    files.write_dir_atomic(tmp_path / "new" / "adapter", lambda folder: put(folder, "x"))
    files.write_text_atomic(tmp_path / "new" / "text", "y")
    assert seen(tmp_path) == {"new/adapter/a": "x", "new/text": "y"}

    def full(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_text_atomic(tmp_path / "new" / "text", "z")
    assert seen(tmp_path)["new/text"] == "y"


def test_drafts_of_the_killed_are_swept_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "model"
    old, young = tmp_path / ".model.0a1b.tmp", tmp_path / ".model.2c3d.tmp"
    other = tmp_path / ".other.4e5f.tmp"
    for place in (old, young, other):
        place.mkdir()
        put(place, "half")
    for place in (old, other):
        os.utime(place, (time.time() - 7200,) * 2)
    files.write_dir_atomic(path, lambda folder: put(folder, "whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, other.name, "model"]


def test_an_empty_folder_that_somebody_works_in_is_filled_and_stays(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    same = folder.stat().st_ino
    with files.new_dir(folder) as draft:
        put(draft, "x")
    assert folder.stat().st_ino == same
    assert seen(tmp_path) == {"here/a": "x"}
    with pytest.raises(AdapterError, match="holds files already"), files.new_dir(folder):
        pass


def test_a_folder_that_is_removed_is_whole_or_gone_after_any_crash(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    with Recorder(tmp_path) as recorder:
        files.remove_dir(folder)
    left = [frozenset(tree) for tree, _ in states(recorder.moments)]
    named = {frozenset(path for path in paths if path.startswith("run")) for paths in left}
    assert named == {frozenset(), frozenset({"run", "run/a", "run/b", "run/c"})}


def test_a_folder_that_was_put_aside_is_read_there(tmp_path):
    path, old = tmp_path / "adapter", tmp_path / ".adapter.old"
    assert files.present(path) == path
    old.mkdir()
    assert files.present(path) == old
    path.mkdir()
    assert files.present(path) == path


BAD_PATHS = {
    "~nobody-here/file.csv": "begins with the home folder of a user that this computer does not kn",
    "x" * 300: r"'x{60}'… \(300 letters\) is longer than a path may be; look at what was given",
    "a\0b.csv": "is no path: it has a character that none may have",
    "\ud800.csv": "is no path: it has a character that none may have",
}
TAKERS = {
    "load_task": ll.tasks.load_task,
    "load_model": ll.load_model,
    "list_runs": ll.list_runs,
    "resume": ll.resume,
    "load_adapter": lambda path: ll.load_adapter(tiny_lm().model, path),
    "evaluate": ll.evaluate,
    "held out": lambda path: ll.tasks.load_task([("a", "b"), ("c", "d")], validation=path),
    "several": lambda path: ll.tasks.load_task([path, path], prompt="a", completion="b"),
    "output_dir": lambda path: ll.train(
        tiny_lm(), tiny_task(8, 2), ll.LoraConfig(r=1), output_dir=path, max_steps=1
    ),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("path", BAD_PATHS)
def test_what_can_be_no_path_is_one_line_wherever_it_is_given(taker, path):
    with pytest.raises(LoraLabError) as refused:
        TAKERS[taker](path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert re.search(BAD_PATHS[path], str(refused.value))


def test_home_folders_are_those_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/a") == tmp_path / "a"
    assert files.user_path("a~b") == Path("a~b")


def test_nobody_makes_parents_that_are_not_flushed():
    """But for the drafts of adapters, which are flushed whole."""
    root, made = Path(__file__).parents[3], re.compile(r"mkdir\([^)]*parents=|makedirs\(")
    sources = [path for place in ("lora_lab", "widgets") for path in (root / place).rglob("*.py")]
    found = {path.name for path in sources if made.search(path.read_text("utf-8"))}
    assert len(sources) > 300
    assert found == {"files.py", "replacing.py"}


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 240])
def test_a_name_as_long_as_any_may_be_is_written_and_removed(tmp_path, name):
    files.write_text_atomic(tmp_path / name, "a")
    files.write_text_atomic(tmp_path / name, "b")
    assert (tmp_path / name).read_text() == "b"
    (tmp_path / name).unlink()
    files.write_dir_atomic(tmp_path / name, lambda folder: put(folder, "c"))
    assert seen(tmp_path) == {f"{name}/a": "c"}
    files.remove_dir(tmp_path / name)
    assert [*tmp_path.iterdir()] == []
