"""Adapter files of the version before load, answer as they did, and are written alike."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import lora_lab as ll
from tests.helpers.recorded_before import (
    RECORDED,
    assert_same,
    bare,
    logits,
    one_thread,  # noqa: F401 (a fixture)
    read,
    settings_in,
    tensors_in,
)

BASES = read("adapters/bases.json")
LORALIB = {"lora": "llama", "fused": "gpt2", "tied-embedding": "gpt2"}
# Of float64; what differs by more was computed otherwise.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def answers():
    return load_file(RECORDED / "adapters" / "logits.safetensors")


@pytest.mark.parametrize("name", BASES)
def test_a_recorded_adapter_answers_as_it_did(name, answers):
    base = BASES[name]
    model = bare(base).double()
    before = logits(model)
    ll.load_adapter(model, RECORDED / "adapters" / name)
    found = logits(model)
    torch.testing.assert_close(found, answers[name], **CLOSE)
    assert (found - before).abs().max() > 1e-3, "it does something"
    ll.detach(model, "default")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", BASES)
def test_it_is_written_again_as_it_was(name, tmp_path):
    """What reads these files elsewhere finds the same tensors and settings in new ones."""
    folder = RECORDED / "adapters" / name
    model = bare(BASES[name])
    ll.load_adapter(model, folder)
    again = ll.save_adapter(model, tmp_path / "again")
    found, recorded = tensors_in(again), tensors_in(folder)
    assert found.keys() == recorded.keys()
    assert [key for key in found if not torch.equal(found[key], recorded[key])] == []
    assert {key: t.dtype for key, t in found.items()} == {
        key: t.dtype for key, t in recorded.items()
    }
    assert_same(settings_in(again), settings_in(folder))


def test_a_changed_tensor_is_noticed_by_the_recorded_checksum(tmp_path):
    folder = shutil.copytree(RECORDED / "adapters" / "bitfit", tmp_path / "bitfit")
    path = folder / "lora_lab_adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(ll.LoraLabError, match="were changed after"):
        ll.load_adapter(bare("gpt2"), folder)


@pytest.mark.parametrize("name", LORALIB)
@pytest.mark.parametrize("end", ["safetensors", "pt"])
def test_loralibs_files_answer_as_they_did(name, end, answers):
    model = bare(LORALIB[name]).double()
    path = RECORDED / "loralib" / f"{name}.{end}"
    told = {} if end == "safetensors" else {**read(f"loralib/{name}.json"), "allow_pickle": True}
    if name == "fused" and end == "pt":
        told["slices"] = ["q", "v"]
    ll.load_loralib(model, path, **told)
    torch.testing.assert_close(logits(model), answers[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LORALIB)
def test_loralibs_files_are_written_as_they_were(name, tmp_path):
    model = bare(LORALIB[name])
    ll.load_adapter(model, RECORDED / "adapters" / name)
    alpha = ll.save_loralib(model, tmp_path / "own.safetensors")
    ll.save_loralib(model, tmp_path / "own.pt")
    assert {"lora_alpha": alpha} == read(f"loralib/{name}.json")
    recorded = load_file(RECORDED / "loralib" / f"{name}.safetensors")
    for found in (load_file(tmp_path / "own.safetensors"), torch.load(tmp_path / "own.pt")):
        assert found.keys() == recorded.keys()
        assert [key for key in found if not torch.equal(found[key], recorded[key])] == []


def test_the_uniform_export_is_written_as_it_was(tmp_path):
    model = bare("llama")
    ll.load_adapter(model, RECORDED / "adapters" / "lora")
    folder = ll.export_uniform(model, tmp_path / "uniform")
    found, recorded = tensors_in(folder), tensors_in(RECORDED / "adapters" / "uniform")
    assert found.keys() == recorded.keys()
    assert [key for key in found if not torch.equal(found[key], recorded[key])] == []
    assert_same(settings_in(folder), settings_in(RECORDED / "adapters" / "uniform"))


def test_recorded_adapters_combine_and_switch_on_one_model(answers):
    """Several of them on one model at a time, as the version before had them."""
    model = bare("llama").double()
    names = ["lora", "adapter-h", "lora-pre-embed", "pre-layer", "dora"]
    for name in names:
        ll.load_adapter(model, RECORDED / "adapters" / name, name, activate=False)
    for name in [*names, *reversed(names)]:
        ll.activate(model, name)
        torch.testing.assert_close(logits(model), answers[name], **CLOSE)
