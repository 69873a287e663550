"""What a launcher says; torchrun sets both names in every process that it starts
(https://docs.pytorch.org/docs/stable/elastic/run.html)."""

from __future__ import annotations

import pytest

from lora_lab._util.launcher import launched_processes, local_rank


@pytest.mark.parametrize(("said", "count"), [(None, 1), ("1", 1), ("4", 4), ("", 1), ("x", 1)])
def test_how_many_processes_were_launched(monkeypatch, said, count):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if said is not None:
        monkeypatch.setenv("WORLD_SIZE", said)
    assert launched_processes() == count


@pytest.mark.parametrize(("said", "number"), [(None, 0), ("3", 3), ("", 0)])
def test_which_of_this_machines(monkeypatch, said, number):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if said is not None:
        monkeypatch.setenv("LOCAL_RANK", said)
    assert local_rank() == number
