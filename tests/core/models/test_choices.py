"""Which models are on this machine: folders, the hub's cache, installed ones."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lora_lab.models import choices
from lora_lab.models.choices import ModelChoice, license_in, model_choices, weights_in
from lora_lab.models.entries import CATALOGUE

CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: other\n"


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(choices, "CATALOGUE", {})


def model(folder: Path, size: int = 10, card: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(size))
    if card:
        (folder / "README.md").write_text(card)
    return folder


def sharded(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {f"weight.{n}": name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        (folder / name).write_bytes(bytes(7))
    return folder


def test_folders_are_found_with_size_and_license(tmp_path: Path) -> None:
    top = tmp_path / "work"
    model(top / "mine", 10, CARD)
    model(top / "runs" / "merged", 20)
    model(top / "a" / "b" / "too_deep")
    model(top / ".hidden")
    (top / "adapter").mkdir()
    (top / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    found = [(each.name, each.source, each.license, each.size) for each in model_choices(top)]
    assert found == [
        ("./mine", "folder", "apache-2.0", 10),
        ("./runs/merged", "folder", None, 20),
    ]


def test_a_folder_that_is_not_ours_to_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(tmp_path / "lost+found")
    model(tmp_path / "mine")
    look = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if Path(path).parent.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert [each.name for each in model_choices(tmp_path)] == ["./mine"]


def test_a_name_is_the_folder_and_never_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_lab.models.places import find_model

    model(tmp_path / "work" / "owner" / "name")
    monkeypatch.chdir(tmp_path / "work")
    (choice,) = model_choices()
    assert find_model(choice.name).source == "folder"


def test_the_hubs_cache_is_read_as_it_lies(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--owner--tiny--name"
    model(repository / "snapshots" / "abc", 30, CARD)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    other = tmp_path / "hub" / "models--owner--tokenizer" / "refs"
    other.mkdir(parents=True)
    (other / "main").write_text("def")  # its config alone came
    (found,) = model_choices(tmp_path / "nothing")
    assert (found.name, found.source, found.size) == ("owner/tiny--name", "cached", 30)


def test_a_model_that_is_shipped_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "CATALOGUE", CATALOGUE)
    found = {each.name: each for each in model_choices(tmp_path)}
    shipped = [entry for entry in CATALOGUE.values() if entry.shipped is not None]
    assert shipped
    for entry in shipped:
        size = (entry.shipped / "model.safetensors").stat().st_size
        assert found[entry.name] == ModelChoice(entry.name, "embedded", entry.license, size)


def test_a_model_that_lacks_a_part_is_none(tmp_path: Path) -> None:
    whole = sharded(tmp_path / "whole", "model-1.safetensors", "model-2.safetensors")
    assert weights_in(whole) == {"model-1.safetensors": 7, "model-2.safetensors": 7}
    (whole / "model-2.safetensors").unlink()
    assert weights_in(whole) == {}


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none_makes_no_model(tmp_path: Path, index: str) -> None:
    folder = sharded(tmp_path / "odd", "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert weights_in(folder) == {}


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        (CARD, "apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "mit"),
        ("# no head\nlicense: mit\n", None),
        ("---\ntags: [license]\n---\n", None),
    ],
)
def test_the_license_is_the_cards(tmp_path: Path, card: str, license_: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert license_in(tmp_path) == license_


def test_looking_around_loads_no_library() -> None:
    code = (
        "import sys; from lora_lab.models.choices import model_choices; model_choices();"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
def test_a_strangers_folder_neither_hangs_nor_fills_the_list(tmp_path: Path) -> None:
    """A pipe for a card, a terabyte of zeros for an index: the page lists models as it opens."""
    pipe, sparse = model(tmp_path / "pipe"), model(tmp_path / "sparse")
    os.mkfifo(pipe / "README.md")
    with (sparse / "model.safetensors.index.json").open("wb") as file:
        file.truncate(2**40)
    model(tmp_path / "mine")
    assert [each.name for each in model_choices(tmp_path)] == ["./mine", "./pipe"]
