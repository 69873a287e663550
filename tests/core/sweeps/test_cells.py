"""A sweep's cells: every combination once, named by what they train, checked before any starts."""

import itertools
import math

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import ranks, select
from lora_lab.sweeps import sweep
from lora_lab.sweeps.cells import Space, cells, skipped_fields
from lora_lab.sweeps.plan import SweepPlan
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

LORA = (ll.LoraConfig(r=8, target_modules=["q", "v"]),)
TRAINING = ll.TrainingConfig(max_steps=10)


def test_a_grid_is_every_combination_in_order():
    space = Space(grid={"r": [1, 4], "learning_rate": [1e-4, 1e-3], "seed": [0, 1, 2]})
    found = cells(LORA, TRAINING, space)
    seen = [(c.configs[0].r, c.training.learning_rate, c.training.seed) for c in found]
    assert seen == list(itertools.product([1, 4], [1e-4, 1e-3], [0, 1, 2]))
    assert len({c.id for c in found}) == 12
    assert str(found[1]) == "r 1, learning_rate 0.0001, seed 1"


def test_the_id_tells_what_is_trained_and_nothing_else():
    one = cells(LORA, TRAINING, Space(grid={"r": [4], "seed": [1]}))[0]
    other_way = cells(LORA, TRAINING.replace(seed=1), Space(grid={"r": [4]}))[0]
    assert one.id == other_way.id
    assert one.id != cells(LORA, TRAINING.replace(max_steps=11), Space(grid={"r": [4]}))[0].id


def test_doubles_are_trained_once():
    assert len(cells(LORA, TRAINING, Space(grid={"r": [4, 4, 8]}))) == 2


def test_methods_are_cells_too():
    methods = [[ll.BitFitConfig()], [*LORA, ll.PrefixEmbedConfig()]]
    found = cells(LORA, TRAINING, Space(grid={"configs": methods, "seed": [0, 1]}))
    assert [str(c) for c in found[::2]] == ["method BitFit, seed 0", "method LoRA+PreEmbed, seed 0"]


def test_what_one_method_has_of_its_own_tells_its_cells_apart():
    methods = [[LORA[0].replace(r=r)] for r in (2, 4)] + [[ll.BitFitConfig()]]
    found = cells(LORA, TRAINING, Space(grid={"configs": methods, "seed": [0]}))
    labels = ["method LoRA, r 2, seed 0", "method LoRA, r 4, seed 0", "method BitFit, seed 0"]
    assert [str(c) for c in found] == labels


def test_a_method_alone_needs_no_list():
    plain = cells(LORA, TRAINING, Space(grid={"configs": [ll.BitFitConfig(), *LORA]}))
    listed = cells(LORA, TRAINING, Space(grid={"configs": [[ll.BitFitConfig()], [*LORA]]}))
    assert plain == listed


AXES = {
    "r": [1, 2, 4],
    "target_modules": [["q"], ["q", "v"], "all-linear", r"model\.layers\.0\..*"],
    "learning_rate": [1e-4, 1e-3, 1e-2],
    "seed": [0, 1, 2],
    "configs": [[ll.BitFitConfig()], [*LORA], [*LORA, ll.PrefixEmbedConfig()]],
}


def _value(cell, axis):
    if axis == "configs":
        return [*cell.configs]
    if axis in ("seed", "learning_rate"):
        return getattr(cell.training, axis)
    value = getattr(cell.configs[0], axis)
    return [*value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_goes_as_a_grid_and_as_seeded_draws(axis):
    values = AXES[axis]
    assert [_value(c, axis) for c in cells(LORA, TRAINING, Space(grid={axis: values}))] == values
    drawn = [
        [
            _value(c, axis)
            for c in cells(
                LORA, TRAINING, Space(random={axis: {"choice": values}}, samples=20, seed=seed)
            )
        ]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert all(value in values for draw in drawn for value in draw)
    # 20 draws of 3 or 4 values, each once: the order is chance's, another one for another seed.
    assert any(draw != drawn[0] for draw in drawn)


def test_random_draws_lie_within_and_come_again():
    how = {
        "learning_rate": {"log_uniform": [1e-5, 1e-2]},
        "r": {"choice": [1, 2, 4]},
        "lora_dropout": {"uniform": [0.0, 0.5]},
    }
    found = cells(LORA, TRAINING, Space(random=how, samples=400, seed=3))
    again = cells(LORA, TRAINING, Space(random=how, samples=400, seed=3))
    assert [c.id for c in found] == [c.id for c in again]
    assert found != cells(LORA, TRAINING, Space(random=how, samples=400, seed=4))
    rates = [math.log10(c.training.learning_rate) for c in found]
    assert -5 <= min(rates) < -4.8
    assert -2.2 < max(rates) <= -2
    assert sum(rate < -3.5 for rate in rates) == pytest.approx(200, abs=40)  # 4 sigma
    assert {c.configs[0].r for c in found} == {1, 2, 4}
    assert all(0 <= c.configs[0].lora_dropout <= 0.5 for c in found)


def test_a_method_without_a_field_is_trained_once_and_it_is_said():
    adalora = ll.AdaLoraConfig(init_r=8, target_r=2)
    methods = [LORA[0], ll.BitFitConfig(), adalora, [*LORA, ll.PrefixEmbedConfig()]]
    grid = {"configs": methods, "r": [2, 4], "prefix_length": [3, 5], "seed": [0, 1]}
    found = cells(LORA, TRAINING, Space(grid=grid))
    seen = [(c.configs, c.training.seed) for c in found]
    expected = [
        *[((LORA[0].replace(r=r),), seed) for r in (2, 4) for seed in (0, 1)],
        *[((ll.BitFitConfig(),), seed) for seed in (0, 1)],
        *[((adalora.replace(target_r=r),), seed) for r in (2, 4) for seed in (0, 1)],
        *[
            ((LORA[0].replace(r=r), ll.PrefixEmbedConfig(prefix_length=tokens)), seed)
            for r in (2, 4)
            for tokens in (3, 5)
            for seed in (0, 1)
        ],
    ]
    assert seen == expected
    assert skipped_fields(found, grid) == (
        "LoRA has no prefix_length; BitFit has no r and no prefix_length; "
        "AdaLoRA has no prefix_length"
    )


def test_layers_leave_methods_without_targets_as_they_are(anatomy):
    grid = {"configs": [ll.FullConfig(), LORA[0]], "layers": ["0", "1"]}
    full, *lora = cells(LORA, TRAINING, Space(grid=grid), anatomy)
    assert (full.configs, full.changes) == ((ll.FullConfig(),), {"method": "FT"})
    assert [cell.changes["layers"] for cell in lora] == ["0", "1"]


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({}, "varies nothing"),
        ({"grid": {"r": []}}, "must be a list of values"),
        ({"grid": {"target_modules": "qv"}}, "must be a list of values"),
        ({"grid": {"r": [1]}, "random": {"r": {"choice": [1]}}}, "r is in grid and in random"),
        ({"random": {"r": [1, 2]}}, "use one of choice, uniform, log_uniform"),
        ({"random": {"r": {"uniform": [2, 1]}}}, r"must be \[lowest, highest\]"),
        ({"random": {"r": {"log_uniform": [0, 1]}}}, "needs numbers above 0"),
        ({"grid": {"r": [1]}, "samples": 0}, "samples is 0"),
        ({"grid": {"r": [1]}, "samples": 10**400}, "has a number of 1,329 bits cells; it must be"),
        ({"grid": {f"f{n}": [*range(10)] for n in range(9)}}, "has 1000000000 cells; it must be"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space, line):
    with pytest.raises(ConfigError, match=line):
        Space(**space)


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ({"rank": [1]}, "neither LoraConfig nor TrainingConfig has a field 'rank'"),
        ({"r": [8, 0]}, "r is 0; a rank is a whole number"),
        ({"learning_rate": [-1.0]}, "learning_rate is -1.0"),
        ({"configs": [[ll.BitFitConfig()]], "r": [1]}, "neither BitFitConfig nor"),
        ({"configs": ["LoRA"]}, "configs: str is no method's config"),
        ({"configs": [[]]}, "configs: no method is given"),
        ({"max_length": ["long"]}, "max_length is 'long'"),
    ],
)
def test_one_impossible_cell_stops_the_sweep_before_it_starts(grid, line):
    with pytest.raises(ConfigError, match=line):
        cells(LORA, TRAINING, Space(grid=grid))


@pytest.fixture(scope="module")
def anatomy():
    """Of a Llama with 2 layers."""
    return ll.anatomy(tiny_llama())


def _sites(roles, layers):
    leaf = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "up": "mlp.up_proj"}
    return {f"model.layers.{layer}.{leaf[role]}" for layer in layers for role in roles}


def test_layers_keep_the_targets_that_lie_in_them(anatomy):
    grid = {"target_modules": [["q"], ["q", "up"]], "r": [2], "layers": ["0-1", 1, "0 – 0", "all"]}
    found = cells(LORA, TRAINING, Space(grid=grid), anatomy)
    expected = [
        dict.fromkeys(_sites(roles, layers), 2)
        for roles in (["q"], ["q", "up"])
        for layers in ([0, 1], [1], [0])
    ]
    # "0-1" and "all" are the same cell in a model of two layers.
    assert [ranks(anatomy, cell.configs[0]) for cell in found] == expected
    assert str(found[2]) == "target_modules q, r 2, layers 0-0"


def test_ranks_and_alphas_of_their_own_go_with_their_layer(anatomy):
    config = LORA[0].replace(rank_pattern={r"layers\.1\..*q_proj": 3, "v": 5}, use_rslora=True)
    (low,) = cells([config], TRAINING, Space(grid={"layers": ["0"]}), anatomy)
    (high,) = cells([config], TRAINING, Space(grid={"layers": ["1"]}), anatomy)
    site = "model.layers.{}.self_attn.{}_proj".format
    assert ranks(anatomy, low.configs[0]) == {site(0, "q"): 8, site(0, "v"): 5}
    assert ranks(anatomy, high.configs[0]) == {site(1, "q"): 3, site(1, "v"): 5}
    assert low.configs[0].use_rslora


def test_layers_of_adalora_and_of_a_combination(anatomy):
    adalora = ll.AdaLoraConfig(init_r=3, target_r=2, tinit=1, tfinal=1, deltaT=1)
    (cell,) = cells([adalora], TRAINING, Space(grid={"layers": ["1"]}), anatomy)
    kept = {site.name for site in select(anatomy, cell.configs[0].target_modules)}
    assert kept == _sites("qv", [1])
    assert cell.configs[0].replace(target_modules=adalora.target_modules) == adalora
    both = (*LORA, ll.PrefixEmbedConfig())
    (cell,) = cells(both, TRAINING, Space(grid={"layers": ["0"]}), anatomy)
    assert {site.name for site in select(anatomy, cell.configs[0].target_modules)} == _sites(
        "qv", [0]
    )
    assert cell.configs[1] == both[1]


def test_layers_are_drawn_too(anatomy):
    space = Space(random={"layers": {"choice": ["0", "1"]}}, samples=30, seed=1)
    found = cells(LORA, TRAINING, space, anatomy)
    assert {cell.changes["layers"] for cell in found} == {"0", "1"}
    assert found == cells(LORA, TRAINING, space, anatomy)


@pytest.mark.parametrize(
    ("configs", "grid", "line"),
    [
        (LORA, {"layers": ["0-2"]}, "layers: 0-2 is not there; the model has 0 to 1"),
        (LORA, {"layers": ["1-0"]}, "layers: 1-0 is not there"),
        (LORA, {"layers": ["top"]}, "layers: 'top'; write 0-1, a single one, or all"),
        (LORA, {"layers": [0.5]}, "layers: '0.5'; write 0-1"),
        ((ll.BitFitConfig(),), {"layers": ["0"]}, "BitFitConfig has no target_modules to choose"),
        ((ll.BottleneckConfig("P"),), {"layers": ["all"]}, "BottleneckConfig has no target_mod"),
        (
            (ll.LoraConfig(target_modules=["model.layers.1.self_attn.q_proj"]),),
            {"layers": ["1", "0"]},
            "layers: no target lies in 0; name other layers or targets",
        ),
    ],
)
def test_layers_that_cannot_be_are_one_line(anatomy, configs, grid, line):
    with pytest.raises(ConfigError, match=line) as refused:
        cells(configs, TRAINING, Space(grid=grid), anatomy)
    assert "\n" not in str(refused.value)


def test_layers_need_a_model_to_be_told():
    with pytest.raises(ConfigError, match="layers are those of a model; pass its anatomy"):
        cells(LORA, TRAINING, Space(grid={"layers": ["0"]}))


def test_a_file_and_the_function_make_the_same_cells_of_layers(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "sweep.yaml").write_text(
        f"model: {tmp_path / 'model'}\ntask: mini-e2e\ntraining: {{max_steps: 10}}\n"
        "configs: [{class: LoraConfig, r: 8, target_modules: [q, v]}]\n"
        "grid: {layers: [0-1, 0, 1-1], r: [2, 4]}\n"
    )
    told = SweepPlan.read(tmp_path / "sweep.yaml").cells()
    grid = {"layers": ["0-1", "0", "1-1"], "r": [2, 4]}
    made = sweep(tiny_lm(), tiny_task(), LORA, grid=grid, start=False, max_steps=10)
    assert len(told) == 6
    assert [(c.id, str(c)) for c in told] == [(c.id, str(c)) for c in made.cells]


TOO_MANY = "cells; it must be at most"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"grid": {f"field{i}": [1, 2, 3] for i in range(30)}}, TOO_MANY),
        ({"random": {"r": {"choice": [1]}}, "samples": 10**30}, TOO_MANY),
        ({"random": {"r": {"uniform": [0, 10**400]}}}, "must be .lowest, highest."),
        ({"random": {"r": {"log_uniform": [1, float("inf")]}}}, "must be .lowest, highest."),
    ],
)
def test_what_nobody_can_train_is_refused_before_it_is_counted_out(space, said):
    with pytest.raises(ConfigError, match=said):
        Space(**space)


@pytest.mark.parametrize("field", ["grid", "random"])
@pytest.mark.parametrize("name", ["a\nb", "\t", "\x1b[2J", "\U000b2b07", "x" * 5_000])
def test_a_name_that_cannot_be_printed_gets_one_line(field, name):
    with pytest.raises(ConfigError, match=r"is no setting; a sweep varies names") as caught:
        Space(**{field: {name: -10}})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
