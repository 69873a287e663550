"""Every site has a cell of its own, in models with several stacks whose names begin alike too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_lab.analysis import rank_map
from lora_lab.analysis.steps import step_maps
from lora_lab.anatomy import Anatomy, Row, Site, anatomy
from lora_lab.anatomy.blocks import blocks_of, cells, site_label, stack_label
from lora_lab.errors import ModelError, RunError
from lora_lab.figures._site_axis import site_axis
from lora_lab.methods.lora.targets import select
from lora_lab.runs.history import RecordedSite, SpectraHistory, read_history
from lora_lab_widgets.rank_grid import RankGrid
from lora_lab_widgets.site_map import SiteMap
from tests.helpers.tiny_models import ARCHITECTURES, MORE_FUSED, tiny_config

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_global_layers": 2,
    "attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
    "max_num_tiles": 2,
    "intermediate_layers_indices": [0, 1],
    "supported_aspect_ratios": [[1, 1], [1, 2]],
}
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "cross_attention_layers": [1],
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
# Of their sites' (first three letters of the stack, layer, role) many are the same.
SEVERAL_STACKS = {
    "mllama": lambda: transformers.MllamaConfig(
        vision_config=VISION, text_config=TEXT, architectures=["MllamaForConditionalGeneration"]
    ),
    "bridgetower": transformers.BridgeTowerConfig,
    "seamless-m4t": lambda: transformers.SeamlessM4TConfig(encoder_layers=2, decoder_layers=2),
}


@pytest.fixture(params=SEVERAL_STACKS)
def found(request: pytest.FixtureRequest) -> Anatomy:
    return anatomy(SEVERAL_STACKS[request.param]())


def test_a_rank_map_has_a_cell_for_every_site_of_a_layer(found: Anatomy) -> None:
    σ = {site.name: np.ones(n, np.float32) for n, site in enumerate(found.grid_sites, start=1)}
    drawn = rank_map(found.sites, σ)
    assert sorted(drawn.ranks[drawn.ranks > 0]) == list(range(1, len(σ) + 1))
    assert len(set(drawn.layers)) == len(drawn.layers) == len(found.rows)


def test_maps_of_steps_have_a_cell_for_every_recorded_site(found: Anatomy) -> None:
    counts = range(1, len(found.grid_sites) + 1)
    sites = tuple(
        RecordedSite(s.name, s.stack, s.layer, s.role, s.out_features, s.in_features, 1, n, 1.0, 1)
        for n, s in zip(counts, found.grid_sites, strict=True)
    )
    values = np.ones((1, sum(counts)), np.float32)
    maps = step_maps(SpectraHistory(sites, np.zeros(1, np.int32), values))
    assert sorted(maps.ranks[maps.ranks > 0]) == list(counts)
    np.testing.assert_allclose(np.sort(maps.effective_ranks[np.isfinite(maps.effective_ranks)]),
                               list(counts), rtol=1e-5)  # fmt: skip


def test_the_panels_and_the_axis_of_sites_show_every_site(found: Anatomy) -> None:
    names = {site.name for site in found.grid_sites}
    shown = SiteMap(found)
    assert set(shown.places) == names
    assert len({tuple(site[2:]) for site in shown.sites}) == len({s[1] for s in shown.sites})
    # The grid shows what "all-linear" trains outside the layers, too.
    linear = {site.name for site in select(found, "all-linear")}
    assert names <= linear
    assert {cell["site"] for cell in RankGrid.from_anatomy(found).cells} == linear
    axis = site_axis(found.grid_sites)
    groups = {(site.stack, site.role) for site in found.grid_sites}
    assert len({label for label, _, _ in axis.groups}) == len(axis.groups) == len(groups)


def test_mllamas_38_sites_stand_in_two_vision_stacks_and_a_language_model() -> None:
    found = anatomy(SEVERAL_STACKS["mllama"]())
    assert len(found.grid_sites) == 38
    assert [row.label for row in found.rows] == [
        *(f"vision_model.transformer.layers {n}" for n in range(2)),
        *(f"vision_model.global_transformer.layers {n}" for n in range(2)),
        *(f"language_model {n}" for n in range(2)),
    ]
    assert found.blocks[3].path == "model.vision_model.global_transformer.layers.1"


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE_FUSED, *SEVERAL_STACKS])
def test_blocks_have_the_paths_the_rows_and_the_roles_of_their_sites(name: str) -> None:
    make = SEVERAL_STACKS.get(name, lambda: tiny_config(name))
    found = anatomy(make())
    assert [site for block in found.blocks for site in block.roles.values()] == [
        site for row in found.rows for role in found.roles if (site := found.cell(row, role))
    ]
    for block in found.blocks:
        assert block.path.rpartition(".")[2] == str(block.row.layer)
        for role, site in block.roles.items():
            assert (site.role, site.row) == (role, block.row)
            assert f"{site.module}.".startswith(f"{block.path}.")


def test_two_sites_for_one_cell_are_refused_with_both_names() -> None:
    twins = [Site(name, name, 3, "q", 4, 4) for name in ("a.3.q", "b.3.q")]
    said = r"a\.3\.q and b\.3\.q are both q of layer 3, and a cell of the grid holds one matrix"
    with pytest.raises(ModelError, match=said):
        cells(twins)
    with pytest.raises(ModelError, match=said):
        blocks_of(twins, {Row("", 3): "a.3"})
    with pytest.raises(ModelError, match=said):
        rank_map(twins, {})


def test_a_record_with_two_sites_for_one_cell_is_refused(tmp_path: Path) -> None:
    place = {"stack": "", "layer": 3, "role": "q", "out_features": 4, "in_features": 4, "r": 1}
    numbers = {"singular_values": 1, "weight_norm": 1.0, "trainable": 8}
    sites = [{"name": name, **place, **numbers} for name in "ab"]
    (tmp_path / "sites.json").write_text(json.dumps({"sites": sites}))
    (tmp_path / "spectra.npy").touch()
    with pytest.raises(RunError, match=r"a and b are both q of layer 3.*copy the run's folder"):
        read_history(tmp_path)


def test_fused_matrices_of_one_name_in_one_block_keep_their_rows_apart() -> None:
    class Config:
        model_type, n_head = "gpt2", 2

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.c_attn = Config(), Conv1D(12, 4)

    block = nn.ModuleDict({"near": Attention(), "far": Attention()})
    roles = anatomy(nn.ModuleDict({"h": nn.ModuleList([block])})).roles
    assert roles == tuple(f"{m}.c_attn[{part}]" for m in ("near", "far") for part in "qkv")


@pytest.mark.parametrize(
    ("stack", "layer", "label"),
    [("", 11, "layer 11 · v"), ("encoder", 3, "enc 3 · v"), ("encoder_2", 3, "encoder_2 3 · v")],
)
def test_a_site_is_named_by_its_row_and_role(stack: str, layer: int, label: str) -> None:
    assert site_label(Site("x", "x", layer, "v", 4, 4, stack=stack)) == label
    assert label.startswith(stack_label(stack))
