"""What is chosen where nobody has chosen: by how much memory there is."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from lora_lab_widgets import Workbench, defaults
from tests.helpers.tiny_files import tiny_model_folder, tiny_task_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_task_file(tmp_path / "letters.csv")
    tiny_model_folder(tmp_path / "small")
    monkeypatch.chdir(tmp_path)


def free(monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    monkeypatch.setattr(defaults, "available_memory", lambda: memory)


def test_where_memory_is_short_the_small_model_is_chosen_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 800_000_000)
    why = (
        "mini-llama is chosen, as 763 MiB of memory are free; smollm2-135m takes about 858 MiB "
        "to train"
    )
    with pytest.warns(UserWarning, match="gradient_checkpointing=True"):
        bench = Workbench()
    assert bench.chooser.chosen["model"] == "mini-llama"
    assert bench.chooser.notes == [why]
    with pytest.warns(UserWarning, match=re.escape(why)):
        bench = Workbench(task="letters.csv")
    assert bench.lm.card.name == "mini-llama"
    for enough in (None, defaults.ROOM):
        free(monkeypatch, enough)
        assert defaults.first_model() == ("smollm2-135m", "")


def test_where_memory_is_short_blocks_are_computed_again_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 1_600_000_000)
    with pytest.warns(UserWarning, match=re.escape("gradient_checkpointing=True: 1.49 GiB of")):
        bench = Workbench("./small", task="letters.csv")
    assert bench.plan.training()["gradient_checkpointing"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bench = Workbench("./small", task="letters.csv", gradient_checkpointing=False)
        assert bench.plan.training().get("gradient_checkpointing", False) is False
        free(monkeypatch, defaults.RECOMPUTES)
        bench = Workbench("./small", task="letters.csv")
        assert bench.plan.training().get("gradient_checkpointing", False) is False
