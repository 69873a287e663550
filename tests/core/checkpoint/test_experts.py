"""Files of models with routed experts, against PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import lora_lab as ll
from lora_lab.checkpoint.uniform import export_uniform
from tests.helpers.tiny_experts import EXPERTS, logits, tiny_experts

DENSE = ["deepseek-v2", "deepseek-v3", "glm4-moe", "ernie", "qwen2-moe"]  # a dense MLP in layer 0


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *((name, "all-linear") for name in EXPERTS if name != "qwen2-moe"),
        *((name, ["down_proj"]) for name in DENSE),
        *((name, ["gate_proj", "v"]) for name in DENSE[2:]),
        ("llama4", ["shared_expert.up_proj"]),
    ],
)
def test_peft_reads_what_stands_beside_the_experts(
    name: str, targets: list[str] | str, tmp_path: Path
) -> None:
    model = tiny_experts(name)
    before = logits(model)
    config = ll.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    if "down_proj" in targets:
        config = config.replace(
            rank_pattern={"mlp.down_proj": 3}, alpha_pattern={".*shared_expert.*": 3}
        )
    ll.attach(model, config)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    ll.save_adapter(model, tmp_path)
    peft = PeftModel.from_pretrained(tiny_experts(name), tmp_path).eval()
    torch.testing.assert_close(logits(peft), adapted, rtol=0, atol=2e-5)
    again = tiny_experts(name)
    ll.load_adapter(again, tmp_path)
    assert torch.equal(logits(again), adapted)


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"use_dora": True}, "has no DoRA"), ({"lora_dropout": 0.1}, "is written as 0")],
)
def test_the_save_says_what_peft_has_not(
    changes: dict[str, object], line: str, tmp_path: Path
) -> None:
    model = tiny_experts("deepseek-v3")
    config = ll.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    ll.attach(model, config.replace(**changes))
    with pytest.warns(UserWarning, match=line):
        ll.save_adapter(model, tmp_path)
    again = tiny_experts("deepseek-v3")
    ll.load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_the_uniform_export_says_what_peft_makes_of_it(tmp_path: Path) -> None:
    model = tiny_experts("deepseek-v3")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.warns(UserWarning, match="use save_adapter"):
        export_uniform(model, tmp_path / "folder")
