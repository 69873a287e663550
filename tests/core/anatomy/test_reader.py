from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lab.anatomy import Anatomy, Row, Site, anatomy
from lora_lab.errors import ModelError
from tests.helpers.tiny_models import ARCHITECTURES, MORE_FUSED, tiny, tiny_config, tiny_inputs

EVERYTHING = [*ARCHITECTURES, *MORE_FUSED]
ATTENTION = ("q", "k", "v", "o")
CROSS = ("cross.q", "cross.k", "cross.v", "cross.o")
GATED = ("gate", "up", "down")
PLAIN = ("up", "down")

# Written down from the papers and the modelling code, not from a run.
ROLES = {
    "gpt2": ATTENTION + PLAIN,
    "gpt2-cross": ATTENTION + CROSS + PLAIN,
    "llama": ATTENTION + GATED,
    "smollm": ATTENTION + GATED,
    "mistral": ATTENTION + GATED,
    "qwen2": ATTENTION + GATED,
    "qwen3": ATTENTION + GATED,
    "gemma": ATTENTION + GATED,
    "gemma2": ATTENTION + GATED,
    "gemma3": ATTENTION + GATED,
    "phi3": ATTENTION + GATED,
    "gpt-neox": ATTENTION + PLAIN,
    "bloom": ATTENTION + PLAIN,
    "falcon-grouped": ATTENTION + PLAIN,
    "falcon-multi-query": ATTENTION + PLAIN,
    "falcon-interleaved": ATTENTION + PLAIN,
    "opt": ATTENTION + PLAIN,
    "bert": ATTENTION + PLAIN,
    "roberta": ATTENTION + PLAIN,
    "deberta-v2": (*ATTENTION, *PLAIN, "pos_key_proj", "pos_query_proj"),
    "distilbert": ATTENTION + PLAIN,
    "modernbert": ATTENTION + GATED,
    "t5": ATTENTION + CROSS + PLAIN,
    "t5-gated": ATTENTION + CROSS + GATED,
    "vit": ATTENTION + PLAIN,
}
OUTSIDE = {
    "opt": {"project_in", "project_out"},
    "bert": {"pooler.dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "deberta-v2": {"pooler.dense", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "modernbert": {"head.dense"},
    "vit": {"classifier"},
}


def owned(site: Site, rows_of_matrix: int) -> Tensor:
    """Return the row indices that a site claims, from the meaning of `Rows` alone."""
    rows = torch.arange(rows_of_matrix)
    if site.rows is None:
        return rows
    grouped = rows.view(site.rows.groups, site.rows.group_size)
    return grouped[:, site.rows.offset : site.rows.offset + site.rows.width].flatten()


def matrix_rows(model: nn.Module, site: Site) -> int:
    module = model.get_submodule(site.module)
    return module.nf if isinstance(module, Conv1D) else module.out_features  # type: ignore[return-value]


def input_of(
    model: nn.Module, reader: Site, changed: Site, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run the model with one site's outputs changed; return what another site then reads.

    `change` gets the outputs of the site's own rows, (batch, positions, out_features).
    """
    seen: list[Tensor] = []
    index = owned(changed, matrix_rows(model, changed))

    def edit(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        edited = output.clone()
        part = output[..., index]
        flat = part.dim() == 2  # some models run their MLP on (batch · positions, features)
        edited[..., index] = change(part.unsqueeze(0))[0] if flat else change(part)
        return edited

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach().clone())

    hooks = [
        model.get_submodule(changed.module).register_forward_hook(edit),
        model.get_submodule(reader.module).register_forward_pre_hook(look),
    ]
    try:
        with torch.no_grad():
            model(**tiny_inputs(model))
    finally:
        for hook in hooks:
            hook.remove()
    (first,) = seen
    return first.reshape(-1, first.shape[-1])


def unchanged(output: Tensor) -> Tensor:
    return output


def at(position: int) -> Callable[[Tensor], Tensor]:
    """Return a change of one position only, by a vector that no norm can undo."""

    def change(output: Tensor) -> Tensor:
        output = output.clone()
        noise = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(1))
        output[:, position] += noise
        return output

    return change


def changed_positions(before: Tensor, after: Tensor) -> set[int]:
    return set((before - after).abs().amax(-1).gt(1e-5).nonzero().flatten().tolist())


def attentions(found: Anatomy) -> list[dict[str, Site]]:
    """Every attention of a model, as its sites under "q", "k", "v" and "o"."""
    return [
        {role.removeprefix("cross."): found.cell(row, role) for role in roles}  # type: ignore[misc]
        for row in found.rows
        for roles in (ATTENTION, CROSS)
        if found.cell(row, roles[0])
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_and_rows(name: str) -> None:
    found = anatomy(tiny(name))
    assert found.roles == ROLES[name]
    layers = 3 if name == "modernbert" else 2
    if name.startswith("t5"):
        expected = [f"enc {i}" for i in range(2)] + [f"dec {i}" for i in range(3)]
    else:
        expected = [str(i) for i in range(layers)]
    assert [row.label for row in found.rows] == expected
    for row in found.rows:
        for role in found.roles:
            needs_cross = role.startswith("cross.") and row.stack == "encoder"
            assert (found.cell(row, role) is None) == needs_cross
    assert {s.role for s in found.sites if s.layer is None} == OUTSIDE.get(name, set())
    assert len(found.by_name) == len(found.sites) + len(found.others)
    assert len(found.grid_sites) + len(OUTSIDE.get(name, ())) == len(found.sites)


@pytest.mark.parametrize("name", EVERYTHING)
def test_v_is_what_attention_averages(name: str) -> None:
    model = tiny(name)
    for site in attentions(anatomy(model)):
        normal = input_of(model, site["o"], site["v"], unchanged)
        assert normal.abs().max() > 1e-3
        assert not input_of(model, site["o"], site["v"], torch.zeros_like).any()
        # Linear in v, which k and q are not.
        doubled = input_of(model, site["o"], site["v"], lambda y: 2 * y)
        torch.testing.assert_close(doubled, 2 * normal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERYTHING)
def test_q_asks_for_its_own_position_and_k_answers_others(name: str) -> None:
    model = tiny(name)
    for site in attentions(anatomy(model)):
        normal = input_of(model, site["o"], site["q"], unchanged)
        asked = changed_positions(normal, input_of(model, site["o"], site["q"], at(1)))
        assert asked == {1}
        answered = changed_positions(normal, input_of(model, site["o"], site["k"], at(1)))
        assert answered - {1}


@pytest.mark.parametrize("name", EVERYTHING)
def test_down_reads_up_times_the_activated_gate(name: str) -> None:
    model = tiny(name)
    found = anatomy(model)
    assert found.shape.gated_mlp == ("gate" in found.roles)
    for row in found.rows:
        up, down = found.cell(row, "up"), found.cell(row, "down")
        assert up is not None
        assert down is not None
        normal = input_of(model, down, up, unchanged)
        assert changed_positions(normal, input_of(model, down, up, at(1))) == {1}
        doubled = input_of(model, down, up, lambda y: 2 * y)
        gate = found.cell(row, "gate")
        if gate is None:
            if not _is_relu(model):  # doubling a relu's input doubles its output
                assert (doubled - 2 * normal).abs().max() > 1e-3
            continue
        torch.testing.assert_close(doubled, 2 * normal, rtol=1e-4, atol=1e-5)
        by_gate = input_of(model, down, gate, lambda y: 2 * y)
        assert (by_gate - 2 * normal).abs().max() > 1e-3
        assert changed_positions(normal, input_of(model, down, gate, at(1))) == {1}


def _is_relu(model: nn.Module) -> bool:
    return any(
        getattr(model.config, key, None) == "relu"
        for key in ("activation_function", "hidden_act", "dense_act_fn")
    )


@pytest.mark.parametrize("name", EVERYTHING)
def test_slices_share_out_a_fused_matrix_without_overlap(name: str) -> None:
    model = tiny(name)
    by_module: dict[str, list[Site]] = defaultdict(list)
    for site in anatomy(model).sites:
        by_module[site.module].append(site)
    for sites in by_module.values():
        total = matrix_rows(model, sites[0])
        claimed = torch.cat([owned(site, total) for site in sites])
        assert sorted(claimed.tolist()) == list(range(total))
        for site in sites:
            module = model.get_submodule(site.module)
            assert site.out_features == len(owned(site, total))
            assert site.transposed == isinstance(module, Conv1D)
            stored = module.weight.T if site.transposed else module.weight
            assert tuple(stored.shape) == (total, site.in_features)
            assert (site.rows is None) == (len(sites) == 1)
            assert site.name == (
                f"{site.module}[{site.role}]" if site.rows is not None else site.module
            )


@pytest.mark.parametrize("name", EVERYTHING)
def test_sites_with_the_same_reads_get_the_same_tensor(name: str) -> None:
    model = tiny(name)
    found = anatomy(model)
    inputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(module).register_forward_pre_hook(
            lambda _, args, module=module: inputs.__setitem__(module, args[0])
        )
        for module in {site.module for site in found.grid_sites}
    ]
    with torch.no_grad():
        model(**tiny_inputs(model))
    for hook in hooks:
        hook.remove()
    # Relative positions differ by dropout in training only, so eval cannot tell them apart.
    sites = [site for site in found.grid_sites if not site.role.startswith("pos_")]
    by_input, by_tensor = defaultdict(set), defaultdict(set)
    for site in sites:
        by_input[site.input_group].add(site.name)
        by_tensor[inputs[site.module].data_ptr()].add(site.name)
    assert sorted(map(sorted, by_input.values())) == sorted(map(sorted, by_tensor.values()))


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_config_alone_gives_the_same_anatomy(name: str) -> None:
    config = tiny_config(name)
    before = config.to_dict()
    model = tiny(name)
    assert anatomy(config) == anatomy(model)
    assert config.to_dict() == before
    with torch.device("meta"):
        empty = type(model)._from_config(tiny_config(name))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert anatomy(empty) == anatomy(model)


@pytest.mark.parametrize("name", EVERYTHING)
def test_parameters_are_counted_with_tied_ones_once(name: str) -> None:
    model = tiny(name)
    unique = {id(p): p.numel() for p in model.parameters()}
    assert anatomy(model).parameters == sum(unique.values())


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_matrix_but_the_output_embedding_is_a_site(name: str) -> None:
    model = tiny(name)
    output = model.get_output_embeddings()
    expected = {
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output
    }
    assert {site.module for site in anatomy(model).sites} == expected


def shape_of(site: Site | None) -> tuple[int, int]:
    assert site is not None
    return site.out_features, site.in_features


# name: (heads, key-value heads, head_dim) as the tiny configs say them
HEADS = {
    "llama": (4, 2, 8),
    "qwen3": (4, 2, 16),
    "gemma": (4, 1, 16),
    "gemma3": (4, 2, 16),
    "phi3": (4, 2, 8),
    "gpt2": (4, 4, 8),
    "gpt-neox": (4, 4, 8),
    "falcon-grouped": (4, 2, 8),
    "falcon-multi-query": (4, 1, 8),
    "falcon-interleaved": (4, 4, 8),
    "opt": (4, 4, 8),
    "distilbert": (4, 4, 8),
    "t5": (4, 4, 12),
    "vit": (4, 4, 8),
}


@pytest.mark.parametrize("name", HEADS)
def test_grouped_queries_and_wide_heads(name: str) -> None:
    heads, kv_heads, head_dim = HEADS[name]
    found = anatomy(tiny(name))
    row = found.rows[-1]
    assert shape_of(found.cell(row, "q")) == (heads * head_dim, 32)
    assert shape_of(found.cell(row, "k")) == (kv_heads * head_dim, 32)
    assert shape_of(found.cell(row, "v")) == (kv_heads * head_dim, 32)
    assert shape_of(found.cell(row, "o")) == (32, heads * head_dim)
    width = 48 if "falcon" not in name and "gpt2" not in name else 4 * 32
    assert shape_of(found.cell(row, "up")) == (width, 32)
    assert shape_of(found.cell(row, "down")) == (32, width)
    shape = found.shape
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (heads, kv_heads, head_dim)
    assert (shape.hidden_size, shape.intermediate_size, shape.dtype_bytes) == (32, width, 4)
    assert shape.num_layers == (5 if name == "t5" else 2)
    assert shape.vocab_size == (None if name == "vit" else 96)
    assert shape.max_positions == (None if name in ("t5", "vit") else 64)


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("smollm", True), ("gpt2", True)])
def test_tied_embeddings(name: str, tied: bool) -> None:
    assert anatomy(tiny_config(name)).shape.tied_embeddings is tied


# Sizes and counts as the models' makers publish them.
PUBLISHED = {
    "smollm2-135m": (
        "LlamaConfig",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
        134_515_008,
        210,
    ),
    "llama-2-7b": ("LlamaConfig", {"intermediate_size": 11008}, 6_738_415_616, 224),
    "gpt2": ("GPT2Config", {}, 124_439_808, 72),
    "gpt2-medium": (
        "GPT2Config",
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        354_823_168,
        144,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_from_a_config_without_architectures(name: str) -> None:
    kind, sizes, parameters, sites = PUBLISHED[name]
    found = anatomy(getattr(transformers, kind)(**sizes))
    assert found.parameters == parameters
    assert len(found.grid_sites) == len(found.sites) == sites


@pytest.mark.parametrize(("name", "head"), [("bert", "decoder"), ("t5", "lm_head"), ("vit", "")])
def test_a_config_without_architectures_gives_the_language_model(name: str, head: str) -> None:
    config = tiny_config(name)
    config.architectures = None
    found = anatomy(config)
    assert len(found.rows) == (5 if name == "t5" else 2)
    assert found.shape.tied_embeddings == bool(head)
    assert not any(site.module.endswith("lm_head") for site in found.sites)


def test_the_config_of_a_speech_model_gives_both_its_stacks() -> None:
    config = transformers.WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        pad_token_id=0,
    )
    assert [row.label for row in anatomy(config).rows] == ["enc 0", "dec 0", "dec 1"]


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


def test_sites_come_row_by_row_in_the_order_of_roles() -> None:
    found = anatomy(tiny_config("opt"))  # its modules say k, v, q
    assert [(s.layer, s.role) for s in found.sites] == [
        *((layer, role) for layer in range(2) for role in found.roles),
        (None, "project_out"),
        (None, "project_in"),
    ]


def test_the_printed_table_is_small() -> None:
    config = tiny_config("llama", num_hidden_layers=30)
    text = str(anatomy(config))
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["layer", "q", "k", "v", "o", "gate", "up", "down"]
    assert lines[2].split() == [
        "0–29",
        "32×32",
        "16×32",
        "16×32",
        "32×32",
        "48×32",
        "48×32",
        "32×48",
    ]
    assert "30 layers · hidden 32 · 4 heads of 8 (2 for k and v)" in lines[0]
    text = str(anatomy(tiny_config("t5")))
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == ["enc 0–1", "dec 0–2"]
    assert "·" in text.splitlines()[2]
    assert str(anatomy(tiny_config("bert"))).endswith("classifier 2×32")


def test_many_roles_are_cut_aloud() -> None:
    model = nn.Module()
    block = nn.ModuleDict({f"matrix_{i}": nn.Linear(2, 2) for i in range(20)})
    model.layers = nn.ModuleList([block])
    assert "4 more roles" in str(anatomy(model))
    assert len(anatomy(model).roles) == 20


def test_html_escapes_names() -> None:
    block = nn.Module()
    block.add_module("<script>", nn.Linear(2, 2))
    model = nn.Module()
    model.layers = nn.ModuleList([block])
    model.add_module("<b>", nn.Linear(2, 2))
    html = anatomy(model)._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html
    assert "2×2" in html


@pytest.mark.parametrize("wrong", ["gpt2", None, 3])
def test_what_is_no_model_is_refused(wrong: Any) -> None:
    with pytest.raises(ModelError, match=r"needs a torch model or a transformers config, not"):
        anatomy(wrong)


def test_a_config_without_a_model_is_refused() -> None:
    class Odd(transformers.PretrainedConfig):
        model_type = "odd"

    with pytest.raises(ModelError, match="knows no model for a Odd; pass the model itself"):
        anatomy(Odd())


def test_no_role_names_two_sites_of_a_row() -> None:
    for name in EVERYTHING:
        counted = Counter((s.stack, s.layer, s.role) for s in anatomy(tiny_config(name)).grid_sites)
        assert set(counted.values()) == {1}
