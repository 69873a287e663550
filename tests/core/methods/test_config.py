import math

import pytest

from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
    TrainingConfig,
)
from lora_lab.errors import ConfigError


def test_round_trip_through_dict_and_python():
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q", "v"], rank_pattern={"v": 2})
    assert LoraConfig.from_dict(config.to_dict()) == config
    import lora_lab as ll

    assert eval(config.to_python(), {"ll": ll}) == config


def test_the_default_is_the_papers_target_in_peft_terms():
    from peft import LoraConfig as Peft

    ours, theirs = LoraConfig(), Peft()
    for field in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.target_modules == ("q", "v")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r is 0; a rank is a whole number of at least 1"),
        ({"r": 2.5}, "r is 2.5; a rank is a whole number of at least 1"),
        ({"r": 10**400}, "r is a number of 1,329 bits; it must be at most 1,000,000,000"),
        ({"rank_pattern": {"q": 10**5000}}, "rank_pattern['q'] is a number of 16,610 bits"),
        ({"lora_alpha": 10**400}, "lora_alpha is a number of 1,329 bits; it must be a positive"),
        ({"alpha_pattern": {"q": 10**400}}, "it must be a positive number"),
        ({"layers_to_transform": [10**400]}, "it must be at most 9,223,372,036,854,775,807"),
        ({"trainable_token_indices": [10**400]}, "it must be at most 9,223,372,036,854,775,807"),
        ({"lora_dropout": 10**400}, "it must lie in [0, 1)"),
        ({"init_lora_weights": "pissa_niter_1001"}, "(N: a number of 1 to 1000)"),
        ({"init_lora_weights": "pissa_niter_" + "9" * 5000}, "(N: a number of 1 to 1000)"),
        ({"r": True}, "r is True; a rank is a whole number of at least 1"),
        ({"rank_pattern": {"q": -1}}, "rank_pattern['q'] is -1"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a positive number"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it must lie in [0, 1)"),
        ({"target_modules": []}, "target_modules is empty; name at least one"),
        ({"target_modules": [1]}, "target_modules has 1; it must be a list of names"),
        ({"target_modules": 5}, "target_modules is 5; it must be a list of names"),
        ({"target_modules": {"q": 1}}, "target_modules is {'q': 1}; it must be a list of names"),
        ({"exclude_modules": 3}, "exclude_modules is 3; it must be a list of names"),
        ({"exclude_modules": [None]}, "exclude_modules has None; it must be a list of names"),
        ({"modules_to_save": True}, "modules_to_save is True; it must be a list of names"),
        ({"modules_to_save": [2]}, "modules_to_save has 2; it must be a list of names"),
        ({"target_parameters": 5}, "target_parameters is 5; it must be a list of names"),
        ({"layers_to_transform": 1, "layers_pattern": 7}, "layers_pattern is 7; it must be a list"),
        ({"layers_to_transform": 1.5}, "layers_to_transform is 1.5; it must be a whole number"),
        ({"trainable_token_indices": 5}, "trainable_token_indices is 5; it must be a list of ids"),
        ({"init_lora_weights": "none-such"}, "init_lora_weights is 'none-such'; use True, False"),
        ({"init_lora_weights": "pissa_niter_0"}, "init_lora_weights is 'pissa_niter_0'; use True"),
        ({"modules_to_save": "score"}, "modules_to_save is 'score'; it must be a list: ['score']"),
        ({"bias": "boft_only"}, "bias is 'boft_only'; use one of 'none', 'all', 'lora_only'"),
    ],
)
def test_impossible_lora_settings_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be a whole number of at least 1"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001; it must be a positive number"),
        ({"max_length": 4}, "max_length is 4; it must be at least 8 tokens"),
        ({"max_steps": 10**400}, "max_steps is a number of 1,329 bits; it must be at most"),
        ({"per_device_train_batch_size": 10**9}, "it must be at most 1,048,576"),
        ({"max_length": "8"}, "max_length is '8'; it must be a whole number"),
        ({"warmup_steps": 10**400}, "warmup_steps is a number of 1,329 bits; it must be at most"),
        ({"weight_decay": -1}, "weight_decay is -1; it must be a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be a number of at least 0"),
        ({"max_grad_norm": "1"}, "max_grad_norm is '1'; it must be a number"),
        ({"gradient_checkpointing": "no"}, "gradient_checkpointing is 'no'; use True or False"),
        ({"lr_scheduler_type": "polynomial"}, "use one of 'linear', 'constant', 'cosine'"),
        ({"init_draws": "none"}, "use one of 'per_site', 'one_stream'"),
        ({"train_sampling_strategy": "sequential"}, "use one of 'group_by_length', 'random'"),
        ({"learning_rate": 10**5000}, "learning_rate is a number of 16,610 bits; it must be"),
        (
            {"seed": 2**63},
            "seed is 9223372036854775808; it must be at most 9,223,372,036,854,775,807",
        ),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_impossible_training_settings_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**fields)
    assert message in str(caught.value)


def test_what_was_good_for_training_still_is():
    forever = TrainingConfig(max_grad_norm=float("inf"), max_length=2**60, save_steps=2**40)
    assert (forever.max_grad_norm, TrainingConfig(max_grad_norm=-1).max_grad_norm) == (math.inf, -1)


def test_an_unknown_field_names_its_nearest_neighbour():
    with pytest.raises(ConfigError, match="no field 'lora_aplha'; did you mean 'lora_alpha'"):
        LoraConfig.from_dict({"lora_aplha": 16})


METHODS = {
    "LoRA": LoraConfig(r=3, target_modules=["q"]),
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=3, target_modules=["q"], total_step=9),
    "FT": FullConfig(),
    "FT-Top2": FullConfig(top_layers=2),
    "BitFit": BitFitConfig(new_biases=True),
    "PreEmbed": PrefixEmbedConfig(prefix_length=3, infix_length=0),
    "PreLayer": PrefixLayerConfig(infix_length=2),
    "Adapter^L": BottleneckConfig("L", r=4),
    "Adapter^D": BottleneckConfig("D", drop_layers=0),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_papers_name_and_makes_the_round_trip(name):
    import lora_lab as ll

    config = METHODS[name]
    assert config.method == name
    assert type(config).from_dict(config.to_dict()) == config
    assert eval(config.to_python(), {"ll": ll}) == config


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (LoraConfig(), "r=8, target_modules=('q', 'v')"),
        (AdaLoraConfig(), "target_r=8, init_r=12, target_modules=('q', 'v')"),
        (IA3Config(), "target_modules=('k', 'v', 'down')"),
        (BottleneckConfig(), "variant='H', r=8"),
        (PrefixEmbedConfig(), "prefix_length=8, infix_length=8"),
        (FullConfig(), ""),
    ],
)
def test_code_that_is_shown_says_ranks_and_targets_even_where_they_are_defaults(config, shown):
    assert config.to_python() == f"ll.{type(config).__name__}({shown})"


def test_adaloras_fields_and_defaults_are_pefts():
    from peft import AdaLoraConfig as Peft

    ours, theirs = AdaLoraConfig(total_step=10), Peft(total_step=10)
    for field in ours.to_dict():
        if field != "target_modules":
            assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullConfig(top_layers=0), "top_layers is 0; it must be a whole number of at le"),
        (lambda: PrefixEmbedConfig(-1), "prefix_length is -1; it must be a whole number of at lea"),
        (lambda: PrefixLayerConfig(1, 0.5), "infix_length is 0.5; it must be a whole number"),
        (lambda: PrefixLayerConfig(0, 0), "prefix_length and infix_length are both 0; give one"),
        (lambda: BottleneckConfig("Q"), "variant is 'Q'; use one of H, L, P, D"),
        (lambda: BottleneckConfig(r=0), "r is 0; a rank is a whole number of at least 1"),
        (
            lambda: BottleneckConfig("D", drop_layers=-1),
            "drop_layers is -1; it must be a whole",
        ),
        (
            lambda: BottleneckConfig("D", drop_layers=True),
            "drop_layers is True; it must be a",
        ),
        (
            lambda: BottleneckConfig("P", drop_layers=1),
            "drop_layers is for variant 'D' (Adap",
        ),
        (lambda: AdaLoraConfig(target_r=9, init_r=8), "target_r is 9 and init_r 8; AdaLoRA only"),
        (lambda: AdaLoraConfig(tinit=5, tfinal=5, total_step=10), "leave none of the 10 steps"),
        (lambda: AdaLoraConfig(deltaT=0), "deltaT is 0; it must be a whole number of at least 1"),
        (lambda: AdaLoraConfig(beta1=1.0), "beta1 is 1.0; it must lie in [0, 1)"),
        (lambda: AdaLoraConfig(orth_reg_weight=-1), "orth_reg_weight is -1; it must be a positive"),
        (lambda: AdaLoraConfig(target_modules=[]), "target_modules is empty; name at least one"),
    ],
)
def test_impossible_settings_of_other_methods_are_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [IA3Config, OFTConfig])
@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "modules_to_save"])
@pytest.mark.parametrize("value", [5, [1], {"q": 1}])
def test_names_of_layers_are_a_list_of_them(kind, name, value):
    with pytest.raises(ConfigError, match=f"{name} (is|has) .*; it must be a list of names"):
        kind(**{name: value})
