"""What the anatomy says of known models, against what their layers do and what is published."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lab.anatomy import Anatomy, Site, anatomy
from tests.helpers.tiny_architectures import tiny_architecture
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
    if isinstance(module, Conv1D):
        return module.nf
    return module.out_features  # type: ignore[return-value]


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
        empty.tie_weights()  # transformers 5.0 ties none on the meta device
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


def test_sites_come_row_by_row_in_the_order_of_roles() -> None:
    found = anatomy(tiny_config("opt"))  # its modules say k, v, q
    assert [(s.layer, s.role) for s in found.sites] == [
        *((layer, role) for layer in range(2) for role in found.roles),
        (None, "project_out"),
        (None, "project_in"),
    ]


def test_no_role_names_two_sites_of_a_row() -> None:
    for name in EVERYTHING:
        counted = Counter((s.stack, s.layer, s.role) for s in anatomy(tiny_config(name)).grid_sites)
        assert set(counted.values()) == {1}


def test_an_output_layer_within_is_known_by_the_embedding_whose_weight_it_has() -> None:
    model = tiny_architecture("blip")
    decoder = "text_decoder.cls.predictions.decoder"
    table = "text_decoder.bert.embeddings.word_embeddings"
    assert model.get_submodule(decoder).weight is model.get_submodule(table).weight
    found = anatomy(model)
    assert dict(found.tied) == {decoder: table}
    assert decoder not in {site.module for site in found.sites}
