"""Models are read one after another: torch's default dtype is the whole process's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_lab._util import building
from lora_lab.errors import ModelError
from lora_lab.models import from_gguf, load_model
from tests.helpers.tiny_gguf import KINDS, write_tiny_gguf
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


@pytest.fixture
def half(tmp_path: Path) -> Path:
    tiny_llama(0).half().save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    return tmp_path / "half"


class Watched:
    """A lock that tells who has come to it; `real` None: it holds nobody up."""

    def __init__(self, real: Any) -> None:
        self.real, self.second_came = real, threading.Event()
        self._came: list[int] = []

    def __enter__(self) -> None:
        self._came.append(threading.get_ident())
        if len(self._came) == 2:
            self.second_came.set()
        if self.real is not None:
            self.real.acquire()

    def __exit__(self, *_: object) -> None:
        if self.real is not None:
            self.real.release()


def loads(folder: Path) -> None:
    with contextlib.suppress(ModelError):
        load_model(folder, device="cpu")


def reads_gguf(folder: Path) -> None:
    with contextlib.suppress(OSError):
        from_gguf._write_by_transformers(folder.parent / "tiny.gguf", folder)


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("second", [loads, reads_gguf])
def test_two_loads_at_once_leave_the_process_its_default_dtype(
    half: Path, monkeypatch: pytest.MonkeyPatch, second: Callable[[Path], None], holds: bool
) -> None:
    write_tiny_gguf(half.parent / "tiny.gguf", KINDS.Q8_0)
    watched = Watched(threading.Lock() if holds else None)
    one_within, both_within, one_done = (threading.Event() for _ in range(3))

    def slow(*_given: Any, **_named: Any) -> Any:
        """Set a default and put back the one before, as transformers does while it builds."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        if one_within.is_set():
            both_within.set()
            one_done.wait(60)
        else:
            one_within.set()
            assert watched.second_came.wait(60)
            assert holds or both_within.wait(60)
        torch.set_default_dtype(before)
        one_done.set()
        raise OSError("that is enough of it")

    monkeypatch.setattr(building, "_building", watched)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", slow)
    one, other = (threading.Thread(target=load, args=(half,)) for load in (loads, second))
    try:
        one.start()
        assert one_within.wait(60)
        other.start()
        one.join(60)
        other.join(60)
        assert one_done.is_set()
        left = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
    assert not one.is_alive()
    assert not other.is_alive()
    assert left == (torch.float32 if holds else torch.float64)
