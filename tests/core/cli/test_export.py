"""`lora-lab export`: every form loads where it belongs, and bad input gets one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.cli import main
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import CONFIG, tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in bfloat16, an adapter for it, and a folder that is taken."""
    folder = tmp_path_factory.mktemp("export")
    model = tiny("llama").to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    ll.attach(model, everything(r=2, lora_alpha=6, target_modules=["q", "v"]))
    ll.save_adapter(model, folder / "adapter")
    tiny("gpt2").save_pretrained(folder / "other-base")
    (folder / "taken").mkdir()
    (folder / "taken" / "note.txt").write_text("mine")
    return folder


def lora_lab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    return status, *capsys.readouterr()


def export(place: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    arguments = ("export", place / "adapter", "--base", place / "base", *options, out, "--json")
    status, text, err = lora_lab(capsys, *arguments)
    assert (status, err) == (0, "")
    found = json.loads(text)
    assert set(found) == {
        *("format", "out", "adapter", "base"),
        *("files", "bytes", "lora_alpha", "note"),
    }
    assert found["out"] == str(out)
    sizes = {p.name: p.stat().st_size for p in (out.iterdir() if out.is_dir() else [out])}
    assert found["files"] == sizes
    assert found["bytes"] == sum(sizes.values())
    return found


def bare(place: Path) -> torch.nn.Module:
    """The base in float32; not `.float()`, which leaves the rotary frequencies rounded."""
    return type(tiny("llama")).from_pretrained(place / "base", dtype=torch.float32)


@pytest.fixture
def expected(place: Path) -> torch.Tensor:
    model = bare(place)
    ll.load_adapter(model, place / "adapter")
    return outputs(model, tiny_inputs(model))


@pytest.mark.parametrize("form", ["peft", "uniform"])
def test_an_adapters_folder_is_loaded_by_peft(
    form: str, place: Path, expected: torch.Tensor, tmp_path: Path, capsys
) -> None:
    from peft import PeftModel

    export(place, tmp_path / "out", capsys, "--format", form)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8").startswith("---\n")
    theirs = PeftModel.from_pretrained(bare(place), tmp_path / "out")
    torch.testing.assert_close(outputs(theirs, tiny_inputs(tiny("llama"))), expected)


def test_a_merged_model_is_in_the_bases_dtype_unless_told(place: Path, tmp_path: Path, capsys):
    export(place, tmp_path / "own", capsys, "--format", "merged")
    export(place, tmp_path / "wide", capsys, "--format", "merged", "--dtype", "float32")
    own = load_file(tmp_path / "own" / "model.safetensors")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert {t.dtype for t in own.values()} == {torch.bfloat16}
    assert {t.dtype for t in wide.values()} == {torch.float32}
    assert all(torch.equal(wide[key].bfloat16(), own[key]) for key in own)
    assert "library_name: transformers" in (tmp_path / "own" / "README.md").read_text()


def test_the_widely_summed_model_has_the_adapters_outputs(
    place: Path, expected: torch.Tensor, tmp_path: Path, capsys
) -> None:
    export(place, tmp_path / "out", capsys, "--format", "merged", "--dtype", "float32")
    loaded = type(tiny("llama")).from_pretrained(tmp_path / "out")
    found = outputs(loaded, tiny_inputs(loaded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_loralibs_file_comes_with_its_alpha(
    name: str, place: Path, expected: torch.Tensor, tmp_path: Path, capsys
) -> None:
    found = export(place, tmp_path / name, capsys, "--format", "loralib")
    assert found["lora_alpha"] == 6
    model = bare(place)
    alpha = found["lora_alpha"]
    ll.load_loralib(model, tmp_path / name, lora_alpha=alpha, allow_pickle=True)
    torch.testing.assert_close(outputs(model, tiny_inputs(model)), expected)


def test_a_runs_folder_is_exported_with_what_it_measured(tmp_path: Path, capsys) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = ll.load_model(str(tmp_path / "base"))
    made = ll.train(lm, tiny_task(), CONFIG, output_dir=tmp_path, max_steps=2, eval_examples=2)
    folder = made.result(60).folder
    arguments = ("export", folder, "--base", tmp_path / "base", tmp_path / "out")
    status, text, _ = lora_lab(capsys, *arguments)
    assert status == 0
    assert text.startswith(f"peft  {tmp_path / 'out'}  (3 files, ")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Results" in card
    assert "| data | letters (synthetic) |" in card
    assert str(tmp_path) not in card

    # Cut off: its last checkpoint is exported, and that is said.
    (folder / "checkpoints").mkdir()
    (folder / "adapter").rename(folder / "checkpoints" / "step-1")
    (folder / "summary.json").unlink()
    status, text, _ = lora_lab(capsys, *arguments[:-1], tmp_path / "cut")
    assert status == 0
    assert text.strip().endswith("the run has no end yet: this is step 1")
    assert "## Results" not in (tmp_path / "cut" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing --base base out", "there is no folder missing"),
        ("base --base base out", "has no adapter_config.json"),
        ("adapter --base nowhere out", "no model is called 'nowhere'"),
        ("adapter --base other-base out", "the adapter is for another base"),
        ("adapter --base base taken", "taken holds files already; name a new or empty folder"),
        ("adapter --base base taken/note.txt", "is a file already"),
        ("adapter --base base --format loralib taken/note.txt", "is there already; name a new"),
        ("adapter --base base --format loralib out", "end it in .safetensors or .pt"),
        ("adapter --base base --dtype float32 out", "a dtype is for merged models"),
        ("adapter --base base taken/note.txt/out", "cannot write"),
        ("adapter --base base --format gguf out", "invalid choice: 'gguf'"),
        ("adapter out", "the following arguments are required: --base"),
        ("adapter --base base", "the following arguments are required: out"),
        ("nan --base base out", "is not a finite matrix"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    place: Path, arguments: str, message: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    if arguments.startswith("nan") and not Path("nan").exists():
        Path("nan").mkdir()
        Path("nan/adapter_config.json").write_bytes(
            Path("adapter/adapter_config.json").read_bytes()
        )
        tensors = load_file("adapter/adapter_model.safetensors")
        broken = {key: torch.full_like(tensor, torch.nan) for key, tensor in tensors.items()}
        save_file(broken, "nan/adapter_model.safetensors")
    status, out, err = lora_lab(capsys, "export", *arguments.split())
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("out").exists()
    assert [p.name for p in Path("taken").iterdir()] == ["note.txt"]
