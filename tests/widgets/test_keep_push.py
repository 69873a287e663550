"""An adapter is pushed to the hub: a fake one, that answers as the real one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import lora_lab as ll
from lora_lab_widgets import Workbench
from tests.helpers.fake_hub import PushHub, serving
from tests.helpers.keep_bench import QUICK, do, send, settle, trained
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

TOKEN = "hf_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3h"


@pytest.fixture
def wb(tmp_path: Path) -> Any:
    return Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path / "runs", **QUICK)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[PushHub]:
    with serving(PushHub()) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def test_without_a_token_it_says_why_and_asks_nobody(
    wb: Any, hub: PushHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    trained(wb)
    send(wb, type="look")
    settle(wb)
    until(lambda: (settle(wb), wb.keep.hub.get("why"))[1])
    assert "not logged in to the hub" in wb.keep.hub["why"]
    assert "not logged in to the hub" in do(wb, "push", repo="me/mine", private=True)
    assert hub.asked == []


def test_what_is_pushed_is_what_was_read_back(wb: Any, hub: PushHub, tmp_path: Path) -> None:
    run = trained(wb)
    said = do(wb, "push", repo="me/mine", private=True)
    assert wb.keep.problem is None, wb.keep.problem
    assert said.splitlines()[0].startswith(f"{hub.url}/me/mine")
    assert "same answer" in said
    assert hub.made == [{"name": "me/mine", "private": True}]
    files = hub.repos["me/mine"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    twin = tiny_lm().model
    loaded = ll.load_adapter(twin, tmp_path)
    assert set(loaded.sites) == set(run.adapter.sites)


def test_a_repository_that_is_there_is_asked_about(wb: Any, hub: PushHub) -> None:
    trained(wb)
    hub.repos["me/mine"] = {}
    do(wb, "push", repo="me/mine", private=False)
    assert wb.keep.question["line"].startswith("me/mine is on the hub already. Push into it?")
    assert hub.repos["me/mine"] == {}
    asked = dict(wb.keep.question["asked"])
    do(wb, asked.pop("type"), **asked)
    assert wb.keep.problem is None
    assert "adapter_config.json" in hub.repos["me/mine"]
    assert hub.made == []


@pytest.mark.parametrize("repo", ["", "mine", "a/b/c", "../x", "me/mine?x"])
def test_a_name_that_is_none_is_refused_before_anybody_is_asked(
    wb: Any, hub: PushHub, repo: str
) -> None:
    trained(wb)
    assert "type the repository as owner/name" in do(wb, "push", repo=repo)
    assert hub.asked == []


def test_what_the_hub_refuses_is_a_line_without_the_token(wb: Any, hub: PushHub) -> None:
    trained(wb)
    hub.refuses = 403
    said = do(wb, "push", repo="me/mine")
    assert said.startswith("me/mine could not be pushed: ")
    assert TOKEN not in str(wb.keep.problem)
    assert wb.keep.done == {}


@pytest.mark.parametrize(
    ("base", "pushed"), [("/home/me/models/secret", None), ("models/tiny", None), ("me/base", 0)]
)
def test_no_folder_of_this_machine_is_pushed(
    wb: Any, hub: PushHub, tmp_path: Path, monkeypatch: Any, base: str, pushed: int | None
) -> None:
    trained(wb)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    wb.session.lm.model.config._name_or_path = base
    said = do(wb, "push", repo="me/mine", private=True)
    settings = json.loads(hub.repos["me/mine"]["adapter_config.json"])
    assert settings["base_model_name_or_path"] == (base if pushed == 0 else None)
    assert ("the base's folder here is not pushed" in said) == (pushed is None)
    if pushed is None:
        assert not any(base.encode() in data for data in hub.repos["me/mine"].values())
