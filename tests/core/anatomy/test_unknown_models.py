"""Models that nothing is known of, with experts, towers or adapters; and what is no model."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_lab.anatomy import Row, anatomy
from lora_lab.errors import ConfigError, ModelError
from lora_lab.methods.api import attach
from lora_lab.methods.lora.config import LoraConfig
from tests.helpers.site_shapes import shape_of
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_experts import logits, tiny_experts
from tests.helpers.tiny_models import tiny, tiny_config


class _Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(8, 12), "down_proj": nn.Linear(12, 8)}) for _ in range(2)
        )


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.head_gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.first = nn.ModuleDict({"inner": nn.Linear(8, 8)})
        self.second = nn.ModuleDict({"inner": nn.Linear(8, 8)})
        self.moe = _Router()


class _Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 8)
        self.things = nn.ModuleList(_Block() for _ in range(2))
        self.leave = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def test_an_unknown_model_shows_every_matrix_under_its_own_name() -> None:
    model = _Unknown()
    found = anatomy(model)
    assert found.roles == (
        "mix",
        "head_gate.0",
        "head_gate.2",
        "first.inner",
        "second.inner",
        "moe.gate",
        "experts.0.w1",
        "experts.0.down_proj",
        "experts.1.w1",
        "experts.1.down_proj",
    )
    assert found.rows == (Row("", 0), Row("", 1))
    assert [s.role for s in found.sites if s.layer is None] == ["enter", "leave.0", "leave.2"]
    assert len(found.sites) == 2 * len(found.roles) + 3
    assert not found.shape.gated_mlp
    assert found.shape.hidden_size is None
    assert found.shape.model_type == "_Unknown"


def test_matrices_in_a_list_are_layers_where_there_are_no_blocks() -> None:
    model = nn.Module()
    model.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    found = anatomy(model)
    assert [(s.layer, s.role, s.name) for s in found.sites] == [
        (i, "steps", f"steps.{i}") for i in range(3)
    ]


def test_an_output_matrix_that_only_its_name_betrays_is_no_site() -> None:
    model = _Unknown()
    model.lm_head = nn.Linear(8, 50)
    assert {s.module for s in anatomy(model).sites} == {s.module for s in anatomy(_Unknown()).sites}


def test_one_bare_linear() -> None:
    found = anatomy(nn.Sequential(nn.Linear(4, 2)))
    assert [(s.layer, s.role, shape_of(s)) for s in found.sites] == [(None, "0", (2, 4))]
    assert found.rows == ()


def test_a_module_used_twice_is_one_site() -> None:
    model = _Unknown()
    model.things[1] = model.things[0]
    found = anatomy(model)
    assert len(found.rows) == 1
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_experts_and_routers_keep_their_own_names() -> None:
    config = transformers.Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        mlp_only_layers=[0],
    )
    found = anatomy(config)
    dense, sparse = found.rows
    assert shape_of(found.cell(dense, "gate")) == (48, 32)
    assert found.cell(sparse, "gate") is None
    assert shape_of(found.cell(sparse, "shared_expert.gate_proj")) == (16, 32)
    gate = found.cell(sparse, "shared_expert.gate_proj")
    up = found.cell(sparse, "shared_expert.up_proj")
    assert gate is not None
    assert up is not None
    assert gate.input_group == up.input_group


def test_two_towers_get_rows_and_heads_of_their_own() -> None:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    encoder = tiny_config("vit", num_hidden_layers=1)
    decoder = tiny_config("gpt2", add_cross_attention=True, n_head=2)
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    found = anatomy(transformers.VisionEncoderDecoderModel(both))
    assert [row.label for row in found.rows] == ["enc 0", "dec 0", "dec 1"]
    assert found.cell(Row("encoder", 0), "cross.k") is None
    cell = found.cell(Row("decoder", 1), "cross.k")
    assert cell is not None
    assert cell.name == "decoder.transformer.h.1.crossattention.c_attn[cross.k]"

    clip = transformers.CLIPConfig(
        text_config={**tower, "num_attention_heads": 4, "vocab_size": 64},
        vision_config={**tower, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    )
    assert [row.label for row in anatomy(clip).rows] == ["text_model 0", "vision_model 0"]


def test_a_fused_matrix_of_unknown_row_order_stays_whole() -> None:
    model = tiny("gpt-neox")
    model.config.model_type = "not_read_yet"
    for module in model.modules():
        if "config" in module.__dict__:
            module.config = model.config
    found = anatomy(model)
    assert found.roles == ("o", "up", "down", "query_key_value")
    assert shape_of(found.cell(found.rows[0], "query_key_value")) == (96, 32)


class _AdaptedLinear(nn.Linear):
    pass


class _AdaptedConv1D(Conv1D):
    pass


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox"])
def test_an_adapted_model_has_the_anatomy_of_its_base(name: str) -> None:
    model = tiny(name)
    before = anatomy(model)
    for site in before.sites:
        module = model.get_submodule(site.module)
        module.__class__ = _AdaptedConv1D if isinstance(module, Conv1D) else _AdaptedLinear
        module.lora = nn.ModuleDict({"default": nn.Linear(4, 4)})
    assert anatomy(model) == before


@pytest.mark.parametrize("wrong", ["gpt2", None, 3])
def test_what_is_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(ModelError, match=r"needs a torch model or a transformers config, not"):
        anatomy(wrong)


def test_a_config_without_a_model_is_refused() -> None:
    class Odd(transformers.PretrainedConfig):
        model_type = "odd"

    with pytest.raises(ModelError, match="knows no model for a Odd; pass the model itself"):
        anatomy(Odd())


@pytest.mark.parametrize("name", ["llama4", "phimoe"])
def test_a_router_that_returns_several_tensors_is_left_alone(name: str) -> None:
    model = tiny_experts(name)
    found = anatomy(model)
    assert all("router" not in site.module for site in found.sites)
    assert [path.rpartition(".")[2] for path in found.left_out] == ["router", "router"]
    attach(model, LoraConfig(r=2, target_modules="all-linear"))
    logits(model)
    for target in (["router"], ".*router"):
        with pytest.raises(ConfigError, match=r"layers\.0.*router returns several tensors"):
            attach(model, LoraConfig(r=2, target_modules=target))


def test_a_matrix_that_is_cut_for_several_inputs_is_left_alone() -> None:
    model = tiny_architecture("deepseek_v4")
    found = anatomy(model)
    cut = [f"model.layers.{n}.self_attn.o_a_proj" for n in range(2)]
    assert list(found.left_out) == cut
    assert not set(cut) & {site.module for site in found.sites}
    with pytest.raises(ConfigError, match=r"layers\.0.*o_a_proj cuts its weight into blocks"):
        attach(model, LoraConfig(r=2, target_modules=["o_a_proj"]))
