"""`lora-lab inspect`: its JSON contract, its report, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lora_lab as ll
from lora_lab.cli import main
from lora_lab.reports.inspect import inspect_adapter
from tests.helpers.lora_outputs import everything
from tests.helpers.tiny_models import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two adapters for it, one of them also as loralib writes it."""
    folder = tmp_path_factory.mktemp("inspect")
    for name, seed in (("adapter", 0), ("other", 1)):
        model = tiny("llama")
        torch.manual_seed(seed)
        ll.attach(model, everything(r=2, lora_alpha=6, target_modules=["q", "v"]))
        ll.save_adapter(model, folder / name)
    tiny("llama").save_pretrained(folder / "base")
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    renamed = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): value
        for key, value in tensors.items()
    }
    torch.save(renamed, folder / "loralib.pt")
    return folder


CONTRACT = {
    *("name", "layer", "role", "r", "singular_values"),
    *("effective_rank", "stable_rank", "frobenius_norm"),
}


def lora_lab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    return status, *capsys.readouterr()


def test_json_is_the_contract(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = lora_lab(capsys, "inspect", place / "adapter", "--json")
    assert (status, err) == (0, "")
    assert [set(row) for row in json.loads(out)["sites"]] == [CONTRACT] * 4
    options = ("--base", place / "base", "--against", place / "other", "--json")
    status, out, err = lora_lab(capsys, "inspect", place / "adapter", *options)
    assert (status, err) == (0, "")
    for row in json.loads(out)["sites"]:
        assert {*CONTRACT, "amplification", "random_amplification", "overlap"} <= set(row)


def test_loralibs_file_with_its_alpha_is_the_same_adapter(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = lora_lab(capsys, "inspect", place / "adapter", "--json")
    options = ("--loralib", "--alpha", "6", "--against", place / "other", "--json")
    _, same, _ = lora_lab(capsys, "inspect", place / "loralib.pt", *options)
    rows = json.loads(same)["sites"]
    assert [row.pop("overlap")["random"] for row in rows] == [2 / 32] * 4
    assert rows == json.loads(out)["sites"]


def test_for_people_it_is_the_table_and_what_the_figures_show(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    name = "model.layers.1.self_attn.v_proj"
    options = ("--base", place / "base", "--site", name, "--report", page)
    status, out, _ = lora_lab(capsys, "inspect", place / "adapter", *options)
    assert status == 0
    found = inspect_adapter(place / "adapter", base=place / "base", site=name)
    assert str(found.analysis) in out
    assert all(summary in out for summary in found.summaries())
    assert out.strip().endswith(f"report  {page}")
    assert name in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing", "there is no folder"),
        ("base", "has no adapter_config.json"),
        (".", "it holds adapter, other: name one of them"),
        ("adapter --site q", "the adapter has no matrix 'q'; near: model.layers."),
        ("adapter --alpha 3", "--alpha is for loralib's files; add --loralib"),
        ("loralib.pt --loralib", "add --alpha with the one of its training"),
        ("adapter --loralib --alpha 3", "name loralib's own"),
        ("loralib.pt", "do not hold α; give the one of its training (--alpha)"),
        ("loralib.pt --loralib --alpha 3 --slices q,v", "adapts no MergedLinear"),
        ("adapter --slices q,v", "slices are for loralib's files"),
        ("adapter --task mini-e2e", "needs the base model; name it too (--base)"),
        ("adapter --report loralib.pt/page.html", "cannot write"),
        ("", "the following arguments are required: adapter"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    place: Path,
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    status, out, err = lora_lab(capsys, "inspect", *arguments.split())
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
