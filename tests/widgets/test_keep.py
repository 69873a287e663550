"""What a run has learned is kept: saved, exported, packed, each read back before it is said so."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError, RunError
from lora_lab.runs.records import list_runs
from lora_lab_widgets import Workbench, keep, keeping, loaded_back
from lora_lab_widgets.keep import NOTHING
from lora_lab_widgets.kept import kept_folder
from lora_lab_widgets.panel import Tick
from tests.helpers.keep_bench import QUICK, do, keep_bench, send, settle, trained
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task, until


@pytest.fixture
def wb(tmp_path: Path) -> Iterator[Any]:
    with keep_bench(tmp_path / "runs") as made:
        yield made


def downloaded(wb: Any) -> bytes:
    """Fetch what is ready, as the page does."""
    offer, found, sent = wb.keep.offer, b"", []
    wb.keep.send = lambda content, buffers=None: sent.append(content)
    while len(found) < offer["size"]:
        send(wb, type="piece", token=offer["token"], at=len(found), seq="1")
        piece = next(each for each in sent if each["type"] == "piece")
        found += base64.b64decode(piece["data"])
        sent.clear()
    return found


def test_before_the_first_run_it_says_what_will_be_here(wb: Any) -> None:
    assert wb.keep.form["waits"] == NOTHING
    assert do(wb, "save", form="peft", folder="x") == (
        "there is nothing to keep yet; start a run first"
    )


def test_a_run_is_saved_read_back_and_open_to_others(wb: Any, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run = trained(wb)
        said = do(wb, "save", form="peft", folder=str(tmp_path / "a" / "mine"))
    finally:
        os.umask(before)
    folder = tmp_path / "a" / "mine"
    assert said.splitlines()[0].startswith(f"{folder} (3 files, ")
    assert said.splitlines()[1] == (
        f"read back: PEFT-format file, {len(run.adapter.sites)} matrices, same answer"
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(
        ("README.md", "adapter_config.json", "adapter_model.safetensors"), 0o644
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    card = (folder / "README.md").read_text()
    assert f"| data | {wb.task.name}" in card
    with run.paused() as model:
        expected = logits(model)
    twin = tiny_lm().model
    ll.load_adapter(twin, folder)
    assert torch.equal(logits(twin), expected)
    assert ll.active(wb.lm.model) == "default"
    assert set(ll.attached(wb.lm.model)) == {"default"}, "nothing is left on the model"


def test_a_folder_that_holds_something_is_asked_about(wb: Any, tmp_path: Path) -> None:
    trained(wb)
    folder = tmp_path / "mine"
    do(wb, "save", form="peft", folder=str(folder))
    (folder / "notes.txt").write_text("mine")
    first = (folder / "adapter_model.safetensors").read_bytes()
    trained(wb)
    do(wb, "save", form="peft", folder=str(folder))
    assert wb.keep.done == {}
    assert wb.keep.question["line"] == (
        f"{folder} holds an adapter already. Replace that adapter and README.md in it? All else "
        "in it stays."
    )
    assert (folder / "adapter_model.safetensors").read_bytes() == first
    send(wb, type="no")
    assert wb.keep.question == {}
    do(wb, "save", form="peft", folder=str(folder))
    said = do(wb, **{"kind" if k == "type" else k: v for k, v in wb.keep.question["asked"].items()})
    assert said.startswith(f"{folder} (3 files, ")  # the note is not of what was written
    assert "read back: PEFT-format file" in said
    assert (folder / "notes.txt").read_text() == "mine"
    assert wb.keep.question == {}


def test_a_setting_that_is_half_typed_keeps_nobody_from_saving(wb: Any, tmp_path: Path) -> None:
    trained(wb)
    wb.plan.merge({"max_length": "12x"})
    assert "same answer" in do(wb, "save", form="peft", folder=str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match=r"max_length is '12x'; it must be a number"):
        wb.session.answer("hello", 2)


def test_nothing_else_is_opened_before_a_save_has_said_how_it_ended(
    wb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(wb)
    begun, go_on, write = threading.Event(), threading.Event(), keep.write

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return write(*args)

    monkeypatch.setattr(keep, "write", slow)
    send(wb, type="save", form="peft", folder=str(tmp_path / "mine"))
    assert begun.wait(60)
    shown = wb.keep
    with pytest.raises(RunError, match=r"still being kept \(.*open another model when it is over"):
        wb.open(tiny_lm(), task=tiny_task())
    assert wb.keep is shown
    go_on.set()
    settle(wb)
    assert wb.keep.done["title"] == "Saved"
    wb.open(tiny_lm(), task=tiny_task())
    assert wb.keep is not shown


@pytest.mark.parametrize("form", ["uniform", "loralib", "merged"])
def test_other_forms_answer_as_the_run_does(wb: Any, tmp_path: Path, form: str) -> None:
    run = trained(wb)
    with run.paused() as model:
        expected = logits(model)
    said = do(wb, "save", form=form, folder=str(tmp_path / form))
    assert "same answer" in said
    if form == "merged":
        again = ll.load_model(str(tmp_path / form), device="cpu", dtype="float32").model
    else:
        again = tiny_lm().model
        if form == "uniform":
            ll.load_adapter(again, tmp_path / form)
        else:
            ll.load_loralib(again, tmp_path / "loralib.safetensors")
    # W₀ + ΔW is rounded once to float32, and logits are up to 7.
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_loralib_s_pickle_is_read_back_too(wb: Any, tmp_path: Path) -> None:
    trained(wb)
    said = do(wb, "save", form="loralib", folder=str(tmp_path / "a.pt"))
    assert "read back: loralib file" in said
    assert wb.keep.problem is None
    assert (tmp_path / "a.pt").is_file()


def test_a_yes_is_to_the_adapter_that_was_asked_about(wb: Any, tmp_path: Path) -> None:
    trained(wb)
    folder = tmp_path / "mine"
    do(wb, "save", form="peft", folder=str(folder))
    before = (folder / "adapter_model.safetensors").read_bytes()
    do(wb, "save", form="peft", folder=str(folder))
    asked = dict(wb.keep.question["asked"])
    trained(wb)
    assert wb.keep.question == {}
    said = do(wb, asked.pop("type"), **asked)
    assert said == "another adapter is on show than the one asked about; press again"
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_a_download_is_a_zip_of_what_was_read_back(wb: Any, tmp_path: Path) -> None:
    run = trained(wb)
    said = do(wb, "download", form="peft", folder="")
    assert "same answer" in said
    assert wb.keep.offer["name"] == f"{run.id}.zip"
    with zipfile.ZipFile(io.BytesIO(downloaded(wb))) as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / run.id
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    ]
    with run.paused() as model:
        expected = logits(model)
    twin = tiny_lm().model
    ll.load_adapter(twin, folder)
    assert torch.equal(logits(twin), expected)
    token = wb.keep.offer["token"]
    do(wb, "download", form="uniform", folder="")
    send(wb, type="piece", token=token, at=0)
    assert "is not there any more" in wb.keep.problem["message"]


def test_what_is_too_large_for_a_page_is_not_packed(wb: Any, monkeypatch: Any) -> None:
    trained(wb)
    monkeypatch.setattr(keeping, "MOST_DOWNLOAD", 1000)
    assert "at most; save it to a folder, and copy it from there" in do(wb, "download", form="peft")
    assert wb.keep.offer == {}


def test_a_paused_run_is_kept_as_it_is_and_goes_on(wb: Any, tmp_path: Path) -> None:
    wb.plan.merge({"max_steps": 100_000})
    run = wb.start()
    deadline = time.monotonic() + 60
    while run.snapshot.step < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    settle(wb)
    assert wb.keep.form["waits"] == (
        f"run {run.id} is running: pause or stop it to keep what it has learned"
    )
    assert wb.keep.form["waits"] == do(wb, "save", form="peft", folder=str(tmp_path / "a"))
    run.pause()
    with run.paused():
        step = run.snapshot.step
    settle(wb)
    assert "same answer" in do(wb, "save", form="peft", folder=str(tmp_path / "a"))
    assert run.snapshot.step == step
    assert str(run.state) == "paused"
    run.resume()


def test_a_run_on_disk_is_kept_without_changing_the_bench(wb: Any, tmp_path: Path) -> None:
    old = trained(wb)
    with old.paused() as model:
        expected = logits(model)
    wb.plan.merge({"seed": 1})
    new = trained(wb)
    with new.paused() as model:
        now = logits(model)
    record = next(each for each in list_runs(tmp_path / "runs") if each.id == old.id)
    wb.session.keep(record)
    assert old.id in wb.keep.form["words"]
    assert wb.keep.form["latest"] is False
    assert "same answer" in do(wb, "save", form="peft", folder=str(tmp_path / "old"))
    twin = tiny_lm().model
    ll.load_adapter(twin, tmp_path / "old")
    assert torch.equal(logits(twin), expected)
    with new.paused() as model:
        assert torch.equal(logits(model), now)
    assert not torch.equal(expected, now)
    send(wb, type="latest")
    assert new.id in wb.keep.form["words"]


def test_a_run_of_another_base_is_told_by_its_weights(wb: Any, tmp_path: Path) -> None:
    trained(wb)
    other = Workbench(tiny_lm(1), task=tiny_task(), output_dir=tmp_path / "runs", **QUICK)
    (record,) = list_runs(tmp_path / "runs")
    other.session.keep(record)
    said = do(other, "save", form="peft", folder=str(tmp_path / "a"))
    assert "is on the bench, with other weights; open that model first" in said
    assert not (tmp_path / "a").exists()


def test_what_was_damaged_on_its_way_is_noticed(wb: Any, tmp_path: Path, monkeypatch: Any) -> None:
    trained(wb)
    real = keeping.save_adapter

    def damaged(model: Any, folder: Path, name: str | None = None) -> Path:
        real(model, folder, name)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        key = next(iter(tensors))
        tensors[key] = tensors[key] * 1.001
        config = json.loads((folder / "adapter_config.json").read_text())
        config.pop("lora_lab_checksum", None)
        save_file(tensors, file, metadata={"format": "pt"})  # without the checksum
        return folder

    monkeypatch.setattr(keeping, "save_adapter", damaged)
    said = do(wb, "save", form="peft", folder=str(tmp_path / "a"))
    assert "what was read back is not what was written, at" in said
    assert wb.keep.done == {}


def test_a_length_of_dora_s_that_is_another_one_is_noticed() -> None:
    one, other = (
        ll.attach(tiny_lm().model, ll.LoraConfig(r=2, use_dora=True, target_modules=["q"]))
        for _ in range(2)
    )
    other_state = dict(other.state())
    with torch.no_grad():
        for key, tensor in one.state().items():
            other_state[key].copy_(tensor)
    assert loaded_back._compare(one, other)[1]
    with torch.no_grad():
        next(iter(other.sites.values())).magnitude[0] += 1e-3
    with pytest.raises(AdapterError, match=r"is not what was written, at .*\.magnitude"):
        loaded_back._compare(one, other)


@pytest.mark.parametrize(
    "config",
    [
        ll.BitFitConfig(new_biases=True),
        ll.IA3Config(target_modules=["k", "v", "down"]),
        ll.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q", "v"]),
        ll.AdaLoraConfig(init_r=4, target_r=2, target_modules=["q", "v"]),
    ],
    ids=["BitFit", "IA3", "PiSSA", "AdaLoRA"],
)
def test_every_method_is_saved_with_a_card_and_read_back(
    wb: Any, tmp_path: Path, config: Any
) -> None:
    wb.config = config
    run = trained(wb)
    said = do(wb, "save", form="peft", folder=str(tmp_path / "a"))
    assert "same answer" in said
    assert config.method in (tmp_path / "a" / "README.md").read_text()
    lora = config.method in ("LoRA", "AdaLoRA")
    refused = [form["name"] for form in wb.keep.form["forms"] if form["why"]]
    assert refused == ([] if lora else ["uniform", "merged", "loralib"])
    assert run.is_attached


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"use_dora": True}, "of factors alone, and this is DoRA"),
        ({"modules_to_save": ["norm"]}, "of factors alone, and this trains norm whole"),
    ],
)
def test_a_form_that_cannot_hold_it_is_not_offered(
    wb: Any, more: dict[str, Any], words: str
) -> None:
    """Of the latest run, and of the same run once it is one on the disk."""
    wb.config = ll.LoraConfig(r=2, target_modules=["q"], **more)
    trained(wb)
    settle(wb)
    wanted = {"peft": "", "uniform": words, "merged": "", "loralib": words}
    assert {form["name"]: form["why"] for form in wb.keep.form["forms"]} == wanted
    kept = kept_folder(wb.run.folder)
    assert keeping.forms_for(wb.session, kept) == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"form": "peft", "folder": "  "}, "type a folder to save to"),
        ({"form": "zip", "folder": "a"}, "there is no form 'zip'"),
        ({"form": "peft", "folder": "a\0b"}, "type a folder to save to"),
        ({"form": "peft", "folder": "~nobody-here"}, "home folder of a user"),
        ({"form": "loralib", "folder": "/"}, "type a file to save to"),
        ({"form": "peft", "folder": "FILE"}, "is no folder; name another one"),
        ({"form": "merged", "folder": "FULL"}, "holds files already; name a new or empty folder"),
        ({"form": "peft", "folder": "FILE/a"}, "cannot write"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(
    wb: Any, tmp_path: Path, content: dict[str, str], words: str
) -> None:
    trained(wb)
    (tmp_path / "FILE").write_text("x")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "x").write_text("x")
    if content["folder"].strip().isupper() or "/" in content["folder"][1:]:
        content = {**content, "folder": str(tmp_path / content["folder"])}
    assert words in do(wb, "save", **content)
    assert "\n" not in wb.keep.problem["message"]
    assert (tmp_path / "FILE").read_text() == "x"


def test_nothing_is_sent_without_news(wb: Any, sent: list[Any]) -> None:
    trained(wb)
    settle(wb)
    until(lambda: (wb.keep.update(Tick()), wb.keep.hub)[1])  # it looks whether one can push
    del sent[:]
    for _ in range(5):
        wb.keep.update(Tick())
    assert sent == []
