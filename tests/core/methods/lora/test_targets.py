import pytest

from lora_lab.anatomy import anatomy
from lora_lab.configs import IA3Config, LoraConfig, OFTConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.ia3.targets import resolve_vectors
from lora_lab.methods.lora.targets import config_from_ranks, ranks, resolve_targets, select
from lora_lab.methods.oft.targets import resolve_rotations
from tests.helpers.tiny_models import tiny


@pytest.fixture(scope="module")
def llama():
    return anatomy(tiny("llama"))


@pytest.fixture(scope="module")
def gpt2():
    return anatomy(tiny("gpt2"))


def peft_targets(model, targets):
    from peft import LoraConfig as Peft
    from peft import get_peft_model

    return set(get_peft_model(model, Peft(target_modules=targets)).targeted_module_names)


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["self_attn.q_proj"],
        ["model.layers.1.mlp.down_proj"],
        r".*\.0\..*_proj",
        "all-linear",
        ["q_proj", "layers.0.mlp.up_proj"],
        r"^(?!.*mlp).*\b(?:q_proj|v_proj)$",
        r"(?i).*\.Q_PROJ",
        r"(?=.*layers).*(?<!up)_proj",
    ],
)
def test_module_names_mean_what_they_mean_in_peft(llama, targets):
    ours = {site.module for site in select(llama, targets)}
    assert ours == peft_targets(tiny("llama"), targets)


def test_roles_pick_their_column_and_slices_are_sites(gpt2):
    assert {s.name for s in select(gpt2, ["v"])} == {
        f"transformer.h.{n}.attn.c_attn[v]" for n in range(len(gpt2.rows))
    }
    assert {s.role for s in select(gpt2, ["c_attn"])} == {"q", "k", "v"}
    assert [s.name for s in select(gpt2, ["transformer.h.0.attn.c_attn[k]"])] == [
        "transformer.h.0.attn.c_attn[k]"
    ]


def test_patterns_follow_pefts_rule(llama):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q", "v"],
        rank_pattern={r"layers\.0\.self_attn\.q_proj": 2, "v_proj": 6},
        alpha_pattern={"v_proj": 12},
        use_rslora=True,
    )
    by_name = {p.site.name: p for p in resolve_targets(llama, config)}
    q0, q1, v1 = (
        by_name[f"model.layers.{n}"]
        for n in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.self_attn.v_proj")
    )
    assert (q0.r, q1.r, v1.r) == (2, 4, 6)
    assert q0.scale == pytest.approx(8 / 2**0.5)
    assert v1.scale == pytest.approx(12 / 6**0.5)
    assert q0.parameters == 2 * (q0.site.in_features + q0.site.out_features)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q", "w"]}, "target_modules entry 'w' matches nothing in this model"),
        ({"target_modules": ["norm"]}, "model.norm is none of the layers that take factors"),
        ({"target_modules": ".*nope"}, "target_modules entry '.*nope' matches nothing"),
        ({"target_modules": "*("}, "target_modules: '*(' is not a regular expression"),
        ({"rank_pattern": {"down": 2}}, "rank_pattern key 'down' matches none of the"),
        ({"alpha_pattern": {"(": 2}}, "is not a regular expression"),
        ({"r": 1000}, "is above min(out, in); use at most"),
    ],
)
def test_what_matches_nothing_is_named(llama, fields, message):
    with pytest.raises(ConfigError) as caught:
        resolve_targets(llama, LoraConfig(**fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_lists_roles_and_modules(llama):
    with pytest.raises(ConfigError, match=r"roles are q, k, v, o, gate, up, down.*q_proj"):
        select(llama, ["query"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_grid_to_config_and_back(name):
    import random

    map_ = anatomy(tiny(name))
    for seed in range(20):
        chance = random.Random(seed)
        painted = {
            site.name: chance.choice([2, 4, 8]) for site in map_.grid_sites if chance.random() < 0.6
        }
        if painted:
            assert ranks(map_, config_from_ranks(map_, painted)) == painted


def test_whole_columns_are_named_by_role(llama):
    painted = {s.name: 8 if s.role == "q" else 4 for s in llama.sites if s.role in "qv"}
    template = LoraConfig(lora_alpha=16, lora_dropout=0.1)
    config = config_from_ranks(llama, painted, template)
    assert config.target_modules == ("q", "v")
    assert (config.lora_alpha, config.lora_dropout) == (16, 0.1)
    assert config.rank_pattern in ({"v": 4}, {"q": 8})


def test_an_empty_or_foreign_grid_is_refused(llama):
    with pytest.raises(ConfigError, match="no rank is painted"):
        config_from_ranks(llama, {})
    with pytest.raises(ConfigError, match="no matrix is called 'nope'"):
        config_from_ranks(llama, {"nope": 2})


# A backtracking matcher takes years over each, with the interpreter's lock held.
BOMBS = (
    "(([a-z_.0-9]*)*)*X",
    "(.*)*(.*)*(.*)*(.*)*X",
    "((?!X)(a|[a-z.]|\\w)*)+X",
    "a{999999999}(.+)+X",
)
LISTED = ["q_proj", "v_proj"]


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    "fields",
    [
        lambda bomb: {"target_modules": bomb},
        lambda bomb: {"target_modules": LISTED, "exclude_modules": f"{bomb}|.*v_proj"},
        lambda bomb: {"target_modules": LISTED, "rank_pattern": {bomb: 2}},
        lambda bomb: {"target_modules": LISTED, "alpha_pattern": {bomb: 2}},
        lambda bomb: {"layers_to_transform": [0], "layers_pattern": bomb},
        lambda bomb: {"layers_to_transform": [0], "layers_pattern": [bomb] * 3},
    ],
    ids=["target", "exclude", "rank", "alpha", "layers", "lists of layers"],
)
def test_no_expression_of_a_config_takes_long(llama, fields, bomb):
    given = fields(bomb)
    if "exclude_modules" in given:
        sites = [p.site for p in resolve_targets(llama, LoraConfig(**given))]
        assert {site.role for site in sites} == {"q"}
        return
    with pytest.raises(ConfigError, match=r"matches no|names no layer|matches none"):
        resolve_targets(llama, LoraConfig(**given))


@pytest.mark.parametrize("bomb", BOMBS)
def test_nor_does_one_of_ia3_or_oft(llama, bomb):
    with pytest.raises(ConfigError, match="matches nothing"):
        resolve_vectors(llama, IA3Config(target_modules=LISTED, feedforward_modules=[bomb]))
    with pytest.raises(ConfigError, match="matches nothing"):
        resolve_rotations(llama, OFTConfig(target_modules=bomb))


def test_more_than_a_budget_of_matching_is_refused_by_name(llama, monkeypatch):
    monkeypatch.setattr("lora_lab._util.patterns.MOST_STEPS", 10_000)
    hard = {f"((?!X)[a-z_.0-9])*{n}|.*": 2 for n in range(1_000)}
    with pytest.raises(ConfigError, match=r"^rank_pattern: .* takes too long to match"):
        resolve_targets(llama, LoraConfig(rank_pattern=hard))


def test_of_a_long_list_the_first_unknown_name_is_said(llama):
    names = [f"q_proj{n}" for n in range(20_000)]
    many = LoraConfig(target_modules=LISTED, exclude_modules=[*names, "v_proj"])
    assert {p.site.role for p in resolve_targets(llama, many)} == {"q"}
    with pytest.raises(ConfigError, match="'q_proj0' matches nothing"):
        resolve_targets(llama, many.replace(target_modules=[*["q_proj"] * 20_000, *names]))
    with pytest.raises(ConfigError, match="'q_proj1' matches nothing"):
        resolve_targets(llama, many.replace(target_parameters=["q_proj.weight", "q_proj1"]))
    ranked = LoraConfig(rank_pattern={"q": 2, **dict.fromkeys(names, 3)})
    with pytest.raises(ConfigError, match="'q_proj0' matches none"):
        resolve_targets(llama, ranked)


@pytest.mark.parametrize(
    "pattern", [None, "layers", "lay.*", ["h", "layers"], "(lay)ers", "[^.]+", "model.layers"]
)
def test_the_blocks_of_layers_to_transform_are_pefts(llama, pattern):
    fields = {"layers_to_transform": [1], "layers_pattern": pattern}
    ours = resolve_targets(llama, LoraConfig(target_modules=LISTED, **fields))
    from peft import LoraConfig as Peft
    from peft import get_peft_model

    if pattern == "(lay)ers":  # PEFT takes the first group, and int() of it fails
        fields["layers_pattern"] = "layers"
    theirs = get_peft_model(tiny("llama"), Peft(target_modules=LISTED, **fields))
    assert {p.site.module for p in ours} == set(theirs.targeted_module_names)
