"""What tests of the recordings in tests/recorded/before_methods share; see the README there."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import lora_lab as ll
from lora_lab.cli import main

RECORDED = Path(__file__).parents[1] / "recorded" / "before_methods"
PIXELS = torch.arange(384, dtype=torch.float64).view(2, 3, 8, 8) / 192 - 1
PROBED = ("llama", "bert", "t5")
PROSE = {"note", "notes", "what", "formula", "problem", "settings"}  # may be worded better


def read(name: str) -> Any:
    return json.loads((RECORDED / name).read_text(encoding="utf-8"))


# Models -------------------------------------------------------------------------------------------


def loaded(base: str) -> tuple[ll.LoadedModel, Any]:
    """A recorded model and the task that it was trained on."""
    if base == "bert":
        task: Any = ll.load_task(RECORDED / "data" / "halves.csv", text="text", label="label")
        return ll.load_model(RECORDED / "models" / base, "cpu", labels=task.labels), task
    data = RECORDED / "data" / "letters.csv"
    task = ll.load_task(data, prompt="prompt", completion="completion")
    return ll.load_model(RECORDED / "models" / base, "cpu"), task


def bare(base: str) -> Any:
    """A recorded model as transformers loads it, in eval mode."""
    folder = RECORDED / "models" / base
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, architecture).from_pretrained(folder)
    model.config._name_or_path = f"models/{base}"
    return model.eval()


def logits(model: Any) -> Tensor:
    """What a model answers in float64, which it is turned to."""
    model.double()
    rows = torch.tensor([[5, 9, 13, 30, 7, 21], [11, 4, 40, 17, 0, 0]])
    inputs: dict[str, Tensor] = {"input_ids": rows, "attention_mask": (rows != 0).long()}
    if model.config.model_type == "vit":
        inputs = {"pixel_values": PIXELS}
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = rows[:, :4]
    with torch.no_grad():
        return model(**inputs).logits


# Bits ---------------------------------------------------------------------------------------------


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def probe(base: str) -> str:
    """Return a hash of what this machine makes of a recorded model, without LoRA Lab.

    Logits, loss, gradients, a step of AdamW; products of low rank, norms, SVDs and random numbers:
    where any bit of these is another one, a run's bits cannot be expected to be the recorded ones.
    """
    torch.manual_seed(0)
    model = bare(base).train()
    ids = torch.arange(4 * 21).view(4, 21) * 7 % 37 + 3
    mask = (torch.arange(21) < torch.tensor([[21], [17], [12], [20]])).long()
    labels = torch.tensor([0, 1, 1, 0]) if base == "bert" else ids.where(mask == 1, -100)
    answer = model(input_ids=ids, attention_mask=mask, labels=labels)
    answer.loss.backward()
    found = {"logits": answer.logits, "loss": answer.loss}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for name, weight in model.named_parameters():
        found[f"gradient of {name}"] = weight.grad
        if weight.dim() == 2:
            x = torch.randn(4, 21, weight.shape[1])
            A, B = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
            dropped = nn.functional.dropout(x, 0.2)
            found[f"product at {name}"] = nn.functional.linear(dropped @ A.T, B) * 1.5
            found[f"rows of {name}"] = torch.linalg.vector_norm(weight + B @ A, dim=1)
            found[f"directions of {name}"] = torch.linalg.svd(weight, full_matrices=False)[0]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return digest(found | {f"next {name}": w for name, w in model.named_parameters()})


@functools.cache
def same_bits() -> bool:
    """Whether this machine computes as the one of the recordings does."""
    return {base: probe(base) for base in PROBED} == read("probe.json")


# Comparing ----------------------------------------------------------------------------------------


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of a saved adapter, a combination's parts too."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def settings_in(folder: Path) -> dict[str, Any]:
    """All settings of a saved adapter, a combination's parts too."""
    return {
        str(path.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("*.json"))
    }


def assert_same(found: Any, recorded: Any, *, rel: float = 0.0, where: str = "") -> None:
    """Every key that was recorded is there still, with the same value; there may be more keys.

    Args:
        rel: how far a number may be off, as a share of it; 0: not at all.
    """
    if isinstance(recorded, dict):
        assert recorded.keys() <= found.keys(), f"{where}: {recorded.keys() - found.keys()} is gone"
        for key, value in recorded.items():
            if key in PROSE and key in found:
                assert type(found[key]) is type(value), f"{where} {key}"
                assert bool(found[key]) is bool(value), f"{where} {key}"
            else:
                assert_same(found[key], value, rel=rel, where=f"{where} {key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for number, (one, other) in enumerate(zip(found, recorded, strict=True)):
            assert_same(one, other, rel=rel, where=f"{where}[{number}]")
    elif isinstance(recorded, float) and math.isnan(recorded):
        assert math.isnan(found), where
    elif isinstance(recorded, float) and rel:
        assert found == pytest.approx(recorded, rel=rel, abs=rel / 10), where
    else:
        assert (type(found), found) == (type(recorded), recorded), where


def told(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> Any:
    """Return the JSON that the command line prints."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over several threads have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
