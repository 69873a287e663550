"""Files written with transformers 4, where every expert was a module, against PEFT's conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.tiny_experts import logits, tiny_experts
from tests.helpers.versions import skip_unless_peft_reads_experts

MIXTRAL = ("block_sparse_moe", ("w1", "w3", "w2"))
QWEN = ("mlp", ("gate_proj", "up_proj", "down_proj"))


def write(
    folder: Path, name: str, form: tuple[str, tuple[str, ...]], **changes: Any
) -> dict[str, Tensor]:
    """Write a file as transformers 4 and PEFT did; return its tensors."""
    block, leaves = form
    model = tiny_experts(name)
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}

    def add(path: str, out: int, in_: int) -> None:
        for part, shape in (("A", (2, in_)), ("B", (out, 2))):
            key = f"base_model.model.{path}.lora_{part}.weight"
            tensors[key] = 0.2 * torch.randn(shape, generator=generator)

    for site in ll.anatomy(model).sites:
        path = site.module.replace(".mlp.", f".{block}.")
        if site.kind == "experts":
            down = site.parameter == "down_proj"
            for number in range(site.experts):
                for leaf in leaves[2:] if down else leaves[:2]:
                    out = site.out_features // (1 if down else 2)
                    add(f"{path}.{number}.{leaf}", out, site.in_features)
        elif site.role == "o":
            add(site.module, site.out_features, site.in_features)
    if "gate" in changes.get("target_modules", ()):
        for layer in range(2):
            add(f"model.layers.{layer}.{block}.gate", 4, 32)
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["o_proj", *leaves],
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize(
    ("name", "form", "changes"),
    [
        ("mixtral", MIXTRAL, {}),
        ("mixtral", MIXTRAL, {"target_modules": ["o_proj", "w1", "w2", "w3", "gate"]}),
        ("qwen3-moe", QWEN, {"use_rslora": False}),
        ("olmoe", QWEN, {}),
    ],
)
def test_single_experts_are_put_together_as_peft_does(
    name: str, form: tuple[str, tuple[str, ...]], changes: dict[str, Any], tmp_path: Path
) -> None:
    skip_unless_peft_reads_experts()
    write(tmp_path, name, form, **changes)
    theirs = PeftModel.from_pretrained(tiny_experts(name), tmp_path).eval()
    model = tiny_experts(name)
    before = logits(model)
    ll.load_adapter(model, tmp_path)
    assert (logits(model) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(model), logits(theirs), rtol=0, atol=2e-5)
    ll.save_adapter(model, tmp_path / "anew")
    again = PeftModel.from_pretrained(tiny_experts(name), tmp_path / "anew").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=2e-5)


def test_other_ranks_and_missing_experts_are_filled_up_with_zeros(tmp_path: Path) -> None:
    tensors = write(tmp_path, "mixtral", MIXTRAL)
    path = "base_model.model.model.layers.1.block_sparse_moe.experts"
    left = {key: t for key, t in tensors.items() if f"{path}.2." not in key}
    left |= {f"{path}.3.w1.lora_A.weight": torch.randn(5, 32) / 5}
    left |= {f"{path}.3.w1.lora_B.weight": torch.randn(48, 5) / 5}
    for part in "AB":
        del left[f"{path}.1.w3.lora_{part}.weight"]
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings |= {"rank_pattern": {"layers.1.block_sparse_moe.experts.3.w1": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(left, tmp_path / "adapter_model.safetensors")
    model, base = tiny_experts("mixtral"), tiny_experts("mixtral")
    ll.load_adapter(model, tmp_path)
    ll.merge(model)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    change = (model.get_parameter(name) - base.get_parameter(name)).detach()
    for number in range(4):
        for rows, leaf in ((slice(48), "w1"), (slice(48, 96), "w3")):
            key = f"{path}.{number}.{leaf}.lora_"
            A, B = (left.get(f"{key}{part}.weight") for part in "AB")
            wanted = torch.zeros(48, 32) if A is None or B is None else 6 / len(A) * B @ A
            torch.testing.assert_close(change[number, rows], wanted, rtol=0, atol=1e-5)


def test_of_another_base_or_order_they_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "mixtral", MIXTRAL)
    model = tiny_experts("mixtral", num_local_experts=3)
    with pytest.raises(AdapterError, match=r"has 3 experts of 96 × 32 here; expert 3 is 48 × 32"):
        ll.load_adapter(model, tmp_path)
    assert not ll.attached(model)
    with pytest.raises(AdapterError, match="in another order"):
        ll.load_adapter(tiny_experts("gpt-oss"), tmp_path)
