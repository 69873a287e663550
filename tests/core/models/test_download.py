"""A model's files come from the hub in a process of their own; here from a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lora_lab.errors import ModelError
from lora_lab.models.choices import in_hub_cache, weights_in
from lora_lab.models.download import download, hub_files
from tests.helpers.fake_hub import FakeHub, serving

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(300_000),
    "pytorch_model.bin": bytes(999),
    "README.md": b"---\nlicense: mit\n---\n",
    "consolidated.safetensors": bytes(777),
}
WANTED = len(FILES["config.json"]) + 300_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub(FILES, "owner/tiny", "mit")) as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def test_what_is_read_comes_and_nothing_else(hub: FakeHub) -> None:
    told: list[int] = []
    download("owner/tiny", told.append, threading.Event())
    folder = in_hub_cache("owner/tiny")
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert weights_in(folder) == {"model.safetensors": 300_000}
    assert told == sorted(told)
    assert all(0 <= each <= WANTED for each in told)


def test_it_ends_when_nobody_wants_it_any_more(hub: FakeHub) -> None:
    hub.let.clear()
    ended = threading.Event()
    threading.Thread(target=lambda: (hub.half.wait(60), ended.set()), daemon=True).start()
    download("owner/tiny", lambda _: None, ended)  # returns though the hub sends no more
    folder = in_hub_cache("owner/tiny")
    assert folder is None or weights_in(folder) == {}


def test_it_ends_with_the_process_that_asked() -> None:
    """A kernel that is restarted is killed, and nobody ends its downloads."""
    fetch = "import os, time; print(os.getpid(), flush=True); time.sleep(20); print('late')"
    code = f"""
import subprocess, sys, threading
import lora_lab.models.download as download
Popen = subprocess.Popen
download._FETCH = {fetch!r}
subprocess.Popen = lambda *args, **options: Popen(*args, **{{**options, "stdout": None}})
download.download("owner/tiny", lambda _: None, threading.Event())
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        assert int(asked.stdout.readline())
        asked.kill()
        assert asked.stdout.read() == b"", "it has gone on"


def test_what_does_not_come_is_one_line(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match=r"^owner/other cannot be downloaded: .+") as refused:
        download("owner/other", lambda _: None, threading.Event())
    assert "\n" not in str(refused.value)


def test_sizes_and_license_are_known_before(hub: FakeHub) -> None:
    found = hub_files("owner/tiny")
    assert found is not None
    assert (found.weights, found.size, found.license) == (
        {"model.safetensors": 300_000},
        WANTED,
        "mit",
    )


def test_a_hub_that_says_nothing_is_no_error(hub: FakeHub) -> None:
    assert hub_files("owner/other") is None


def test_nothing_is_imported_from_the_working_folder(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("threading", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    download("owner/tiny", lambda _: None, threading.Event())
    assert not (tmp_path / "RAN").exists()
    assert in_hub_cache("owner/tiny") is not None
