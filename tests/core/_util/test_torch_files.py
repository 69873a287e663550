"""What torch.load would make more of than a file holds is refused before it, or right behind it."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from lora_lab._util.torch_files import load_plain
from lora_lab.checkpoint.files import read_tensors
from lora_lab.errors import AdapterError, RunError
from lora_lab.runs import checkpoints

STATE = {
    "format": 1, "step": 3, "adapter": {"a": torch.arange(4.0)}, "method": {}, "scheduler": {},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]},
    "random": {}, "metrics": {"loss_before": 1.0}, "samples": [], "seconds": 1.0, "log_bytes": 10,
}  # fmt: skip


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def repacked(path: Path, way: int) -> None:
    """Write an archive anew, its parts compressed or not."""
    with zipfile.ZipFile(path) as before:
        parts = [(part.filename, before.read(part)) for part in before.infolist()]
    with zipfile.ZipFile(path, "w", way) as after:
        for name, data in parts:
            after.writestr(name, data)


def nested(depth: int, wide: int = 10) -> list:
    """Lists that hold each other: wide ** depth values, and depth * wide places."""
    value: list = [0]
    for _ in range(depth):
        value = [value] * wide
    return value


def test_what_torch_writes_is_read_as_it_is(tmp_path):
    value = {**STATE, "views": torch.arange(6.0).view(2, 3).T, "none": (None, {1, 2}, "x", True)}
    for zipped in (True, False):
        torch.save(value, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
        read = load_plain(tmp_path / "state.pt")
        assert torch.equal(read["views"], value["views"])
        assert read["none"] == value["none"]
    (tmp_path / "link.pt").symlink_to("state.pt")
    assert load_plain(tmp_path / "link.pt", follow=True)["step"] == 3
    with pytest.raises(OSError, match="it is a link"):
        load_plain(tmp_path / "link.pt")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = saved(tmp_path / "bomb.pt", {"a": torch.zeros(1_000_000)})
    repacked(path, zipfile.ZIP_STORED)
    assert load_plain(path)["a"].shape == (1_000_000,)
    repacked(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"it is compressed, as torch\.save writes none"):
        load_plain(path)
    with pytest.raises(AdapterError, match=r"is damaged \(it is compressed"):
        read_tensors(path, allow_pickle=True)


def test_parts_that_lie_in_each_other_are_refused(tmp_path):
    path = saved(tmp_path / "bomb.pt", {"a": torch.zeros(10_000)})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    end = data.index(b"PK\x05\x06") if b"PK\x06\x06" not in data else data.index(b"PK\x06\x06")
    directory = data[start:end]
    out = data[:start] + directory * 3 + data[end:]
    many = (len(directory) * 3).to_bytes(8, "little")
    out = out.replace(len(directory).to_bytes(8, "little"), many)
    at = out.rindex(b"PK\x05\x06")
    count = 3 * int.from_bytes(out[at + 10 : at + 12], "little")
    sizes = count.to_bytes(2, "little") * 2 + (len(directory) * 3).to_bytes(4, "little")
    out = out[: at + 8] + sizes + out[at + 16 :]
    path.write_bytes(out)
    with pytest.raises(Exception, match=r"compressed|zip"):
        load_plain(path)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (torch.zeros(1).expand(10**9), "larger than the file"),
        (torch.empty(10**12, device="meta"), "not dense"),
        (torch.eye(3).to_sparse(), "not dense"),
        (nested(7), "hold each other"),
        ({1: nested(30, 2)}, "hold each other"),
    ],
)
def test_tensors_and_containers_beyond_the_file_are_refused(tmp_path, odd, said):
    path = saved(tmp_path / "state.pt", {"a": [odd]})
    with pytest.raises(ValueError, match=said):
        load_plain(path)


def test_a_list_that_holds_itself_is_refused(tmp_path):
    ring: list = []
    ring.append(ring)
    with pytest.raises(ValueError, match="hold each other"):
        load_plain(saved(tmp_path / "ring.pt", ring))


def test_a_pickle_that_calls_something_calls_nothing(tmp_path):
    class Calls:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "called"),)

    path = saved(tmp_path / "state.pt", {"a": Calls()})
    with pytest.raises(pickle.UnpicklingError):
        load_plain(path)
    assert not (tmp_path / "called").exists()


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="no regular file"):
            load_plain(tmp_path / f"{name}.pt", follow=True)


# A run's checkpoint ------------------------------------------------------------------------------


def checkpoint(folder: Path, state: object, step: int = 3) -> Path:
    path = folder / "checkpoints" / f"step-{step}" / "state.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return saved(path, state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "1"}, "format: Expected `int`, got `str`"),
        ({"format": 2}, "it is of format 2 and step 3"),
        ({"step": 4}, "it is of format 1 and step 4"),
        ({"step": [3]}, "step: Expected `int`, got `array`"),
        ({"step": 10**400}, "step: Expected `int` <= 9007199254740992"),
        ({"adapter": [1]}, "adapter: Expected `object`, got `array`"),
        ({"adapter": {1: torch.zeros(1)}}, "Expected `str`"),
        ({"log_bytes": -1}, "log_bytes: Expected `int` >= 0"),
        ({"seconds": float("nan")}, "seconds: Expected `float` >= 0"),
        ({"metrics": {"loss_before": "low"}}, "Expected `float`, got `str`"),
        ({"samples": [{"prompt": "a"}]}, "missing required field"),
        ({"loss_scale": {"scale": None}}, "Expected `float`, got `null`"),
    ],
)
def test_a_state_of_other_types_is_refused_in_one_line(tmp_path, change, said):
    checkpoint(tmp_path, STATE)
    assert checkpoints.newest(tmp_path).step == 3
    checkpoint(tmp_path, STATE | change)
    with pytest.raises(RunError, match=r"is not a state that this version goes on from") as error:
        checkpoints.newest(tmp_path)
    assert said in str(error.value), error.value
    assert "\n" not in str(error.value)
    checkpoint(tmp_path, STATE | {"step": 2}, step=2)
    assert checkpoints.newest(tmp_path).step == 2, "the one before it is whole"


def test_where_checksums_are_switched_off_none_is_asked_for(tmp_path):
    own = {key: value for key, value in STATE.items() if key not in ("format", "step")}
    torch.serialization.set_crc32_options(False)
    try:
        checkpoints.save(tmp_path, 3, lambda _: None, own, "{}")
    finally:
        torch.serialization.set_crc32_options(True)
    found = checkpoints.newest(tmp_path)
    assert found.step == 3
    assert checkpoints.passed_over(tmp_path, found) == []
