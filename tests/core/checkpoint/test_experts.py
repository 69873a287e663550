"""Files of models with routed experts, against PEFT."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel

import lora_lab as ll
from lora_lab.checkpoint.factors import read_factors
from lora_lab.checkpoint.uniform import export_uniform
from lora_lab.errors import AdapterError
from tests.helpers.tiny_experts import EXPERTS, logits, tiny_experts
from tests.helpers.tiny_models import tiny
from tests.helpers.versions import skip_unless_peft_reads_experts, skip_unless_stacked

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
    again = tiny_experts(name)
    ll.load_adapter(again, tmp_path)
    assert torch.equal(logits(again), adapted)
    skip_unless_peft_reads_experts()
    theirs = PeftModel.from_pretrained(tiny_experts(name), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), adapted, rtol=0, atol=2e-5)


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


HELD = [
    *((name, ["gate_up_proj", "down_proj"]) for name in EXPERTS),
    *((name, ["experts.down_proj"]) for name in ("mixtral", "gpt-oss", "llama4")),
    *((name, ["gate.weight", "gate_up_proj"]) for name in ("mixtral", "deepseek-v3")),
    ("llama4", ["router.weight", "down_proj", "gate_up_proj"]),
]


@pytest.mark.parametrize(("name", "targets"), HELD)
def test_peft_reads_experts(name: str, targets: list[str], tmp_path: Path) -> None:
    model = tiny_experts(name)
    skip_unless_stacked(model)
    before = logits(model)
    config = ll.LoraConfig(
        r=2,
        target_modules=["o_proj"],
        target_parameters=targets,
        rank_pattern={".*experts.*": 3},
        alpha_pattern={"down_proj": 5} if "gate.weight" not in targets else {},
        use_rslora=name == "mixtral",
        init_lora_weights=False,
    )
    ll.attach(model, config)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    ll.save_adapter(model, tmp_path)
    again = tiny_experts(name)
    ll.load_adapter(again, tmp_path)
    assert torch.equal(logits(again), adapted)
    skip_unless_peft_reads_experts()
    theirs = PeftModel.from_pretrained(tiny_experts(name), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), adapted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "targets"), HELD)
def test_pefts_experts_are_read(name: str, targets: list[str], tmp_path: Path) -> None:
    skip_unless_stacked(tiny_experts(name))
    if name == "deepseek-v3" and "gate.weight" in targets:
        skip_unless_peft_reads_experts()  # nor does a router that PEFT has wrapped work there
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["o_proj"],
        target_parameters=targets,
        rank_pattern={"down_proj": 4},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(tiny_experts(name), config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    model = tiny_experts(name)
    adapter = ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=0, atol=2e-5)
    factors = read_factors(tmp_path, anatomy=ll.anatomy(tiny_experts(name))).sites
    held = [site for site in factors if site.site.number is not None]
    assert held
    base = tiny_experts(name)
    merged = theirs.merge_and_unload()
    for site in held:
        key = f"{site.site.module}.{site.site.parameter}"
        change = (merged.get_parameter(key) - base.get_parameter(key))[site.site.number].detach()
        change = change.T if site.site.transposed else change
        for update in (site.update, adapter.sites[site.site.name].update):
            A, B = (torch.as_tensor(factor).detach() for factor in (update.A, update.B))
            torch.testing.assert_close(update.scale * B @ A, change, rtol=0, atol=1e-5)


def test_experts_of_another_base_are_refused(tmp_path: Path) -> None:
    model = tiny_experts("mixtral")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=[], target_parameters=["gate_up_proj"]))
    ll.save_adapter(model, tmp_path)
    for changes, line in (
        ({"num_local_experts": 3}, "has 3 experts of 96 × 32 here, 4 of 96 × 32"),
        ({"intermediate_size": 40}, "has 4 experts of 80 × 32 here, 4 of 96 × 32"),
    ):
        other = tiny_experts("mixtral", **changes)
        with pytest.raises(AdapterError, match=line):
            ll.load_adapter(other, tmp_path)
        assert not ll.attached(other)
    with pytest.raises(AdapterError, match="another base"):
        ll.load_adapter(tiny("llama"), tmp_path)


def test_experts_in_one_tensor_are_read_one_by_one(tmp_path: Path) -> None:
    class Mixture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(8, 8)
            self.experts = torch.nn.Module()
            self.experts.up = torch.nn.Parameter(torch.randn(3, 8, 6))

            self.experts.down = torch.nn.Parameter(torch.randn(3, 6, 8))

    both = ["experts.up", "experts.down"]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=both)
    config.init_lora_weights = False
    model = peft.get_peft_model(Mixture(), config)
    model.save_pretrained(tmp_path)
    found = read_factors(tmp_path)
    outer = model.base_model.model.experts
    deltas = {"up": outer.base_layer, "down": outer}
    assert found.sites[0].site.name == "q_proj"
    experts = {site.site.name: site.update for site in found.sites[1:]}
    assert list(experts) == [f"experts.{n}[{e}]" for n in ("down", "up") for e in range(3)]
    assert found.sites[-1].site.role == "experts.2.up"
    for name, update in experts.items():
        number = int(name[-2])
        wanted = deltas[name[8:-3]].get_delta_weight("default")[number].detach()
        ours = update.scale * update.B @ update.A
        torch.testing.assert_close(torch.from_numpy(ours), wanted)
