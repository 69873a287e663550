import pytest

from lora_lab.configs import LoraConfig, TrainingConfig
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
        ({"r": True}, "r is True; a rank is a whole number of at least 1"),
        ({"rank_pattern": {"q": -1}}, "rank_pattern['q'] is -1"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a positive number"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it must lie in [0, 1)"),
        ({"target_modules": []}, "target_modules is empty; name at least one"),
        ({"init_lora_weights": "eva"}, "init_lora_weights is 'eva'; use True, False"),
        ({"init_lora_weights": "pissa_niter_0"}, "init_lora_weights is 'pissa_niter_0'; use True"),
        ({"modules_to_save": ["score"]}, "modules_to_save is not supported yet"),
        ({"bias": "all"}, "bias='all' is not supported yet"),
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
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_impossible_training_settings_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**fields)
    assert message in str(caught.value)


def test_an_unknown_field_names_its_nearest_neighbour():
    with pytest.raises(ConfigError, match="no field 'lora_aplha'; did you mean 'lora_alpha'"):
        LoraConfig.from_dict({"lora_aplha": 16})
