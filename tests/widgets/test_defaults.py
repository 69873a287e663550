"""What is chosen where nobody has chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab_widgets import Workbench, defaults
from tests.helpers.tiny_files import tiny_task_file


def test_where_memory_is_short_the_small_model_is_chosen_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_task_file(tmp_path / "letters.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defaults, "available_memory", lambda: 1_000_000_000)
    why = (
        "mini-llama is chosen, as 953.7 MiB of memory are free; smollm2-135m takes about 1.1 GiB "
        "to train"
    )
    bench = Workbench(output_dir=tmp_path / "runs")
    assert bench.chooser.chosen["model"] == "mini-llama"
    assert bench.chooser.notes == [why]
    with pytest.warns(UserWarning, match=why.replace(".", "[.]")):
        bench = Workbench(task="letters.csv", output_dir=tmp_path / "runs")
    assert bench.lm.card.name == "mini-llama"
    for enough in (None, defaults.ROOM):
        monkeypatch.setattr(defaults, "available_memory", lambda enough=enough: enough)
        assert defaults.first_model() == ("smollm2-135m", "")
