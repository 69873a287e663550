"""A call that was written for PEFT, with its import changed: the same layers learn."""

import copy
import dataclasses
import json
import warnings

import peft
import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import config_from_ranks, ranks
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import EXACT, assert_changed, peft_model, peft_trained, settings_of
from tests.helpers.tiny_models import tiny, tiny_inputs

SMALL = {"r": 2, "lora_alpha": 6}
# Calls of tutorials, at sizes of the tiny models: (model, what both libraries' LoraConfig get).
CALLS = {
    "the model card's": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            "bias": "none",
            "lora_dropout": 0.05,
            "task_type": "CAUSAL_LM",
        },
    ),
    "a set": ("llama", {**SMALL, "target_modules": {"q_proj", "k_proj", "v_proj", "o_proj"}}),
    "some layers": (
        "llama",
        {**SMALL, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    ),
    "one layer of a list by its name": (
        "gpt2",
        {
            **SMALL,
            "target_modules": ["c_attn", "c_proj"],
            "fan_in_fan_out": True,
            "layers_to_transform": 0,
            "layers_pattern": "h",
        },
    ),
    "a list of lists": (
        "bert",
        {
            **SMALL,
            "target_modules": ["query"],
            "layers_to_transform": [0, 5],
            "layers_pattern": ["layers", "layer"],
        },
    ),
    "a whole path is in whatever layer": (
        "llama",
        {
            **SMALL,
            "target_modules": ["v_proj", "model.layers.0.self_attn.q_proj"],
            "layers_to_transform": [1],
        },
    ),
    "some excluded": (
        "llama",
        {
            **SMALL,
            "target_modules": "all-linear",
            "exclude_modules": ["q_proj", "layers.1.mlp.up_proj"],
        },
    ),
    "excluded by a pattern": (
        "gpt2",
        {**SMALL, "target_modules": ["c_attn", "c_fc"], "exclude_modules": r".*h\.0\..*"},
    ),
    "settings that mean nothing": (
        "llama",
        {
            **SMALL,
            "target_modules": "ALL-LINEAR",
            "inference_mode": False,
            "revision": None,
            "megatron_config": None,
            "loftq_config": {},
            "layer_replication": None,
            "use_qalora": False,
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
        },
    ),
    "a classifier": ("bert", {**SMALL, "target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "two layers of a head": (
        "distilbert",
        {**SMALL, "target_modules": ["q_lin"], "task_type": "SEQ_CLS"},
    ),
    "a head among the targets": (
        "roberta",
        {**SMALL, "target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_same_call_gives_the_same_layers_and_files_go_both_ways(call, tmp_path):
    name, fields = CALLS[call]
    model = tiny(name).double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    before = outputs(model, batch)
    theirs = peft_trained(model, tmp_path / "theirs", **copy.deepcopy(fields))
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    assert {s.site.module for s in adapter.sites.values()} == set(
        theirs.base_model.targeted_module_names
    )
    if name != "gpt2":  # whose fused matrix has an A for each of its slices here
        assert adapter.trainable == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    stirred(adapter)
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path / "ours")
    task = fields.get("task_type")
    assert task is None or settings_of(tmp_path / "ours")["task_type"] == task
    read = peft_model(copy.deepcopy(twin), tmp_path / "ours")
    torch.testing.assert_close(outputs(read, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path / "theirs")
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)


@pytest.mark.parametrize("call", CALLS)
def test_the_config_is_read_from_pefts_folder_and_goes_round(call, tmp_path):
    name, fields = CALLS[call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.LoraConfig(**copy.deepcopy(fields)).save_pretrained(tmp_path)
    found = ll.LoraConfig.from_pretrained(tmp_path).replace(inference_mode=False)
    model = tiny(name)
    expected = ll.attach(model, ll.LoraConfig(**fields)).sites.keys()
    assert ll.attach(tiny(name), found).sites.keys() == expected
    assert ll.LoraConfig.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert eval(found.to_python(), {"ll": ll}) == found


def test_pefts_own_task_types_are_taken():
    for task in peft.TaskType:
        given = ll.LoraConfig(task_type=task)
        assert given == ll.LoraConfig(task_type=task.value)
        assert given == ll.LoraConfig(task_type=ll.TaskType[task.name])
        assert type(given.task_type) is str


def test_none_is_the_default_of_target_modules():
    assert ll.LoraConfig(target_modules=None) == ll.LoraConfig()


def test_inference_mode_learns_nothing_and_says_so_where_it_shall(tmp_path):
    model = tiny("bert")
    config = ll.LoraConfig(**SMALL, task_type="SEQ_CLS", inference_mode=True)
    adapter = ll.attach(model, config)
    assert adapter.trainable == 0
    assert not any(p.requires_grad for p in model.parameters())
    ll.save_adapter(model, tmp_path)
    assert ll.load_adapter(tiny("bert"), tmp_path).trainable
    with pytest.raises(ConfigError, match="inference_mode=True trains nothing"):
        config.check_steps(1)


REFUSED = {
    "megatron_config": ({"megatron_config": {"tp": 2}}, "megatron_config is PEFT's"),
    "layer_replication": ({"layer_replication": [(0, 1)]}, "layer_replication is PEFT's"),
    "use_qalora": ({"use_qalora": True}, "use_qalora is PEFT's"),
    "alora": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is PEFT's"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config is PEFT's.*mixed_batch"),
    "loftq": (
        {"init_lora_weights": "loftq", "loftq_config": {"bits": 4}},
        "loftq_config is PEFT's",
    ),
    "peft_type": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "task": ({"task_type": "CAUSAL"}, "task_type is 'CAUSAL'; use one of SEQ_CLS"),
    "text and layers": (
        {"target_modules": "q_proj", "layers_to_transform": [0]},
        "layers_to_transform goes with a list",
    ),
    "pattern alone": ({"layers_pattern": "h"}, "give layers_to_transform too"),
    "no layer": ({"layers_to_transform": [-1]}, "layers_to_transform is -1"),
    "words": ({"layers_to_transform": ["0"]}, "layers_to_transform is '0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_named(case):
    fields, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        ll.LoraConfig(**fields)
    assert "\n" not in str(caught.value)


def test_what_leaves_no_target_is_named():
    model = tiny("llama")
    for fields, message in (
        ({"exclude_modules": ["q_proj", "v_proj"]}, "excludes every target"),
        ({"layers_to_transform": [7]}, r"names no layer that has a target; they are \[0, 1\]"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "in h"),
        ({"exclude_modules": "q_(proj"}, "exclude_modules: .* is not a regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            ll.attach(model, ll.LoraConfig(**fields))
    with pytest.warns(UserWarning, match="excludes no target"):
        ll.attach(model, ll.LoraConfig(exclude_modules=["o_proj"]))


def test_painted_ranks_are_the_last_word():
    found = ll.anatomy(tiny("llama"))
    config = ll.LoraConfig(target_modules=["q"], layers_to_transform=[0], exclude_modules=["k"])
    before = ranks(found, config)
    assert [*before] == ["model.layers.0.self_attn.q_proj"]
    painted = {**before, "model.layers.1.self_attn.k_proj": 3}
    made = config_from_ranks(found, painted, config)
    assert ranks(found, made) == painted


# PEFT's own examples of its other methods, at sizes of a tiny model.
OTHER_CALLS = {
    "AdaLoraConfig": {
        "peft_type": "ADALORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "init_r": 4,
        "target_r": 2,
        "total_step": 20,
        "deltaT": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    },
    "IA3Config": {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "revision": None,
    },
    "OFTConfig": {
        "peft_type": "OFT",
        "oft_block_size": 4,
        "target_modules": ["q_proj", "up_proj"],
        "module_dropout": 0.0,
        "base_model_name_or_path": "gpt2",
    },
}


@pytest.mark.parametrize("kind", OTHER_CALLS)
def test_calls_of_pefts_other_methods_are_taken_and_their_folders_read(kind, tmp_path):
    fields, own = OTHER_CALLS[kind], getattr(ll, kind)
    theirs = getattr(peft, kind)(**copy.deepcopy(fields))
    model = tiny("llama")
    adapter = ll.attach(model, own(**fields))
    learned = sum(p.numel() for p in adapter.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
        other = peft.get_peft_model(tiny("llama"), theirs)
    counted = (p for n, p in other.named_parameters() if p.requires_grad and "lora_E" not in n)
    if kind == "AdaLoraConfig":  # Λ is one number a triplet in both
        learned -= sum(site.r for site in adapter.sites.values())
    assert learned == sum(p.numel() for p in counted)
    found = own.from_pretrained(tmp_path)
    if kind != "AdaLoraConfig":
        found = found.replace(inference_mode=False)
    assert [*ll.attach(tiny("llama"), found).state()] == [*adapter.state()]
    assert own.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    for name, value in {"peft_type": "LORA", "use_new": 1}.items():
        with pytest.raises((ConfigError, TypeError), match=name):
            own(**{name: value})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(peft.AdaLoraConfig)])
def test_what_adalora_has_not_is_named_whatever_field_of_pefts_it_is(name):
    own = {f.name for f in dataclasses.fields(ll.AdaLoraConfig)}
    means_nothing = {
        *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode"),
        *("loftq_config", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size"),
        *("revision", "runtime_config"),
    }
    default = getattr(peft.AdaLoraConfig(total_step=20), name)
    if name not in own:
        given = default if isinstance(default, str | bool | int | None) else {}
        assert ll.AdaLoraConfig(**{name: given}) == ll.AdaLoraConfig()
    if name not in own | means_nothing:
        with pytest.raises(ConfigError, match=f"^{name} is"):
            ll.AdaLoraConfig(**{name: 3 if name == "r" else ["something"]})


def test_the_masks_that_a_training_left_are_no_config(tmp_path):
    theirs = peft.AdaLoraConfig(init_r=3, target_r=2, total_step=20, target_modules=["q_proj"])
    theirs.rank_pattern = {"model.layers.0.self_attn.q_proj.lora_E": [True, False, True]}
    theirs.save_pretrained(tmp_path)
    assert ll.AdaLoraConfig.from_pretrained(tmp_path).init_r == 3


BROKEN = {
    "nothing": (None, "has no adapter_config.json"),
    "no JSON": ("{", "is no JSON"),
    "a list": ("[]", "not LORA"),
    "another method": ('{"peft_type": "LOHA"}', "describes 'LOHA', not LORA"),
    "a bad value": ('{"peft_type": "LORA", "r": "x"}', "r is 'x'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_holds_no_such_config(case, tmp_path):
    text, message = BROKEN[case]
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        ll.LoraConfig.from_pretrained(tmp_path)


def test_a_field_of_a_later_peft_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "use_new": 1}')
    with pytest.warns(UserWarning, match="not known: use_new"):
        assert ll.LoraConfig.from_pretrained(tmp_path) == ll.LoraConfig(r=4)


@pytest.mark.parametrize("named", ["embed_tokens", "lm_head"])
def test_one_end_of_a_tied_weight_is_trained_with_the_other(named, tmp_path):
    model = tiny("smollm").double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    fields = {**SMALL, "target_modules": ["q_proj"], "modules_to_save": [named]}
    theirs = peft_trained(model, tmp_path / "theirs", **fields, ensure_weight_tying=True)
    adapter = ll.attach(model, ll.LoraConfig(**fields, ensure_weight_tying=True))
    assert adapter.trainable == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    stirred(adapter)
    y = outputs(model, batch)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path / "theirs")
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)


@pytest.mark.parametrize("named", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]])
def test_one_end_of_a_tied_weight_gets_the_factors_of_both(named, tmp_path):
    model = tiny("smollm").double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    fields = {**SMALL, "target_modules": ["q_proj", *named], "ensure_weight_tying": True}
    theirs = peft_trained(model, tmp_path / "theirs", **fields)
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    tables = [own for own in adapter.sites.values() if own.site.kind == "embedding"]
    assert [own.site.module for own in tables] == ["model.embed_tokens"]
    stirred(adapter)
    y = outputs(model, batch)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path / "theirs")
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)
