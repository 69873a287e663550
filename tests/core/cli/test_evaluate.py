"""`lora-lab evaluate`: a run's scores on another part, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lora_lab.cli import main
from tests.helpers.tiny_files import tiny_recipe


def test_a_run_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    assert main(["train", str(path), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["folder"]
    asked = ["evaluate", folder, "--part", "validation", "--max-examples", "1"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["part"], found["examples"]) == ("validation", 1)
    assert found["scores"]["loss"] > 0
    assert len(Path(found["file"]).read_text().splitlines()) == 1
    assert main(asked) == 0
    assert "validation: 1 of" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
