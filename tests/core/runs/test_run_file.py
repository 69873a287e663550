"""A run as a file: what is read, what is written, and one line for what cannot be."""

from __future__ import annotations

import json

import pytest
import yaml

from lora_lab.configs import BitFitConfig, LoraConfig, PrefixEmbedConfig, TrainingConfig
from lora_lab.errors import ConfigError
from lora_lab.models import load_model
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import load_task
from lora_lab.training.api import make_run, train
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import tiny_lm, tiny_task

METHODS = [
    LoraConfig(r=4, target_modules=["q", "v"], rank_pattern={"q": 2}),
    [BitFitConfig(new_biases=True), PrefixEmbedConfig(prefix_length=2)],
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


def test_a_page_of_yaml_is_read_with_the_rest_as_usual(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: smollm2-135m\ntask: mini-e2e\ntraining: {learning_rate: 2e-4}\n")
    recipe = RunConfig.read(path)
    assert recipe.model == {"name": "smollm2-135m"}
    assert recipe.task == {"name": "mini-e2e"}
    assert recipe.configs == (LoraConfig(),)
    assert recipe.training == TrainingConfig(learning_rate=0.0002)
    assert recipe.output_dir == "runs"
    assert recipe.name is None


def test_what_is_written_is_read_again(plain, tmp_path):
    plain = {**plain, "name": "tiny"}
    plain["configs"] = [{"class": "LoraConfig", "r": 2}, {"class": "BitFitConfig"}]
    recipe = RunConfig.from_dict(plain)
    path = tmp_path / "run.yaml"
    path.write_text(recipe.to_yaml())
    assert RunConfig.read(path) == recipe
    assert recipe.configs == (LoraConfig(r=2), BitFitConfig())
    # Tuples are lists in YAML, and no tag of Python's stands in the file.
    assert "!!" not in path.read_text()


@pytest.mark.parametrize("config", METHODS, ids=["one", "combined"])
def test_a_run_made_by_hand_is_the_same_run_as_a_file(plain, tmp_path, config):
    lm = load_model(plain["model"]["name"], device="cpu")
    task = load_task(**plain["task"])
    by_hand = train(lm, task, config, output_dir=tmp_path, start=False, **plain["training"])
    path = tmp_path / "run.yaml"
    path.write_text(RunConfig.from_dict(by_hand.description()).to_yaml())
    recipe = RunConfig.read(path)
    assert list(recipe.configs) == (config if isinstance(config, list) else [config])
    assert recipe.training == by_hand.training
    made = make_run(
        RunConfig.from_dict({**recipe.to_dict(), "output_dir": str(tmp_path / "again")})
    )
    assert made.start().result(60).losses == by_hand.start().result(60).losses
    assert made.folder.parent == tmp_path / "again"


def test_the_config_of_a_run_is_a_recipe(plain, tmp_path):
    run = make_run(RunConfig.from_dict({**plain, "output_dir": str(tmp_path)}))
    run.start().result(60)
    recipe = RunConfig.read(run.folder / "config.json")
    assert recipe.configs == run.configs
    assert recipe.training == run.training
    assert recipe.model["name"] == plain["model"]["name"]
    assert recipe.model["device"] == "auto"  # another machine has another
    assert recipe.task == json.loads((run.folder / "config.json").read_text())["sources"]["task"]


def test_a_model_of_ones_own_is_no_file(tmp_path):
    run = train(tiny_lm(), tiny_task(), start=False, output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"tiny-llama is a model of your own.*load_model") as info:
        RunConfig.from_dict(run.description())
    assert "\n" not in str(info.value)


BAD = {
    "an unknown field": ({"modle": "x"}, "unknown field 'modle'; known are model"),
    "no model": ({"model": None}, "model is None; it must be a name, such as smollm2-135m"),
    "an unknown setting": (
        {"model": {"name": "x", "trust_remote_code": True}},
        "unknown setting 'trust_remote_code'",
    ),
    "a method without a class": ({"configs": [{"r": 8}]}, "a method is .*, which is none of"),
    "no method's class": (
        {"configs": [{"class": "TrainingConfig"}]},
        "names the class 'TrainingConfig'",
    ),
    "a field of no method": (
        {"configs": [{"class": "LoraConfig", "rank": 8}]},
        "LoraConfig has no field 'rank'",
    ),
    "a bad value": ({"configs": [{"class": "LoraConfig", "r": 0}]}, "r is 0"),
    "a list for a number": ({"configs": [{"class": "LoraConfig", "lora_alpha": [8]}]}, r"\[8\]"),
    "a method for methods": ({"configs": {"class": "LoraConfig"}}, "it must be a list of methods"),
    "no methods": ({"configs": []}, "it must be a list of methods"),
    "a bad training": ({"training": {"max_step": 5}}, "no field 'max_step'; did you mean"),
    "a number for the training": ({"training": 5}, "training is 5; it must hold settings"),
    "a number for a folder": ({"output_dir": 5}, "output_dir, name and start_from must be text"),
    "a text for a number": ({"training": {"max_steps": "5"}}, "max_steps is '5'"),
    "a list for a device": (
        {"model": {"name": "x", "device": ["cpu"]}},
        r"the model's device is \['cpu'\]; it must be text",
    ),
    "a text for a seed": (
        {"task": {"name": "x", "seed": "one"}},
        "the task's seed is 'one'; it must be a whole number",
    ),
    "a broken number for a seed": ({"task": {"name": "x", "seed": 1.5}}, "seed is 1.5; it must be"),
    "a number for a dtype": (
        {"model": {"name": "x", "dtype": 16}},
        "the model's dtype is 16; it must be text",
    ),
    "numbers for classes": (
        {"model": {"name": "x", "labels": [0, 1]}},
        r"the model's labels is \[0, 1\]; it must be a list of texts",
    ),
    "a list for the training": ({"training": [5]}, r"training is \[5\]; it must hold settings"),
    "a list for a name": ({"name": ["a"]}, "output_dir, name and start_from must be text"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_one_line_with_the_file(tmp_path, change, said):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "smollm2-135m", "task": "mini-e2e", **change}))
    with pytest.raises(ConfigError, match=said) as info:
        RunConfig.read(path)
    assert "\n" not in str(info.value)
    assert str(path) in str(info.value)


def test_a_table_without_names_has_numbers_for_its_columns():
    recipe = RunConfig.from_dict({"model": "x", "task": {"name": "a.csv", "text": 1, "label": 0}})
    assert recipe.task == {"name": "a.csv", "text": 1, "label": 0}
    assert RunConfig.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    numbers = {"name": "a.csv", "prompt": 0, "completion": 1, "encoding": "cp1252", "sep": "\t"}
    recipe = RunConfig.from_dict({"model": "x", "task": numbers})
    assert RunConfig.from_dict(yaml.safe_load(recipe.to_yaml())).task == numbers
    with pytest.raises(ConfigError, match="the task's text is True; it must be text, or a column"):
        RunConfig.from_dict({"model": "x", "task": {"name": "a.csv", "text": True, "label": 0}})


def test_a_part_of_several_files_is_a_list():
    files = {"name": ["a.csv", "b.csv"], "validation": ["c.csv"], "test": "d.csv"}
    recipe = RunConfig.from_dict({"model": "x", "task": files})
    assert RunConfig.from_dict(yaml.safe_load(recipe.to_yaml())).task == files
    for bad in ({"name": ["a.csv", 1]}, {"name": "a.csv", "test": [["b.csv"]]}):
        with pytest.raises(ConfigError, match="its files must be text"):
            RunConfig.from_dict({"model": "x", "task": bad})
    with pytest.raises(ConfigError, match=r"model is .*; it must be a name"):
        RunConfig.from_dict({"model": {"name": ["a", "b"]}, "task": "mini-e2e"})


@pytest.mark.parametrize("field", ["output_dir", "name", "start_from"])
def test_a_nul_is_in_no_path(field):
    values = {"model": "smollm2-135m", "task": "mini-e2e", field: "a\0b"}
    with pytest.raises(ConfigError, match="output_dir, name and start_from must be text"):
        RunConfig.from_dict(values)
