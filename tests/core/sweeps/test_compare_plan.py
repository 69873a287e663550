"""A comparison as a file: the cells of the call, for every engine, and errors before training."""

from __future__ import annotations

import pickle

import pytest
import yaml

import lora_lab as ll
from lora_lab.errors import ConfigError, LoraLabError
from lora_lab.sweeps.compare_plan import ComparePlan
from lora_lab.training.fingerprints import task_fingerprints
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import tiny_task

METHODS = [
    {"class": "LoraConfig", "r": 2, "target_modules": ["q", "v"]},
    [
        {"class": "LoraConfig", "r": 2, "target_modules": ["q"]},
        {"class": "PrefixEmbedConfig", "prefix_length": 2, "infix_length": 0},
    ],
    {"class": "FullConfig"},
]


def written(folder, **changes):
    values = tiny_recipe(folder)
    values.pop("configs")
    held_out = folder / "held-out.csv"
    rows = [f"{example.prompt},{example.completion}" for example in tiny_task(0, 8).validation]
    held_out.write_text("\n".join(["prompt,completion", *rows]) + "\n")
    values["task"]["validation"] = str(held_out)
    values["training"] |= {"eval_examples": 8, "max_steps": 2, "save_steps": 0}
    values["training"] |= changes.pop("training", {})
    values |= {"methods": METHODS, "seeds": 2, "rates": [1e-3], **changes}
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v != {}}))
    return path


def test_a_file_has_the_cells_and_the_folders_of_the_call(tmp_path):
    rates = {"FT": [1e-5, 1e-4], "": [1e-3, 1e-2]}
    path = written(tmp_path, rates=rates, train_examples=[4, 8], name="mine")
    plan = ComparePlan.read(path)
    lm, task = plan.parts()[0].load()[0], ll.load_task(**plan.run_config.task)
    methods = [
        ll.LoraConfig(r=2, target_modules=["q", "v"]),
        [ll.LoraConfig(r=2, target_modules=["q"]), ll.PrefixEmbedConfig(2, 0)],
        ll.FullConfig(),
    ]
    called = ll.compare(
        lm, task, methods, rates=rates, seeds=2, train_examples=[4, 8], name="mine",
        output_dir=tmp_path / "runs", start=False,
        **yaml.safe_load(path.read_text())["training"],
    )  # fmt: skip
    parts = plan.parts()
    assert [part.folder for part in parts] == [s.folder for s in called.sweeps.values()]
    for part, sweep in zip(parts, called.sweeps.values(), strict=True):
        assert part.cells() == tuple(sweep.cells)
        assert len(part.cells()) == 12
        own = pickle.loads(pickle.dumps(part))  # as it goes to another machine
        assert task_fingerprints(own.load()[1]) == task_fingerprints(sweep.task)
        assert own.cells() == part.cells()


def test_a_budget_is_counted_without_the_weights(tmp_path):
    plan = ComparePlan.read(written(tmp_path, methods=METHODS[:1], budget=1500, seeds=[3]))
    (part,) = plan.parts()
    (cell,) = part.cells()
    count = ll.budget(part.load()[0].model, cell.configs[0])
    assert count.parameters_trainable <= 1500
    over = cell.configs[0].replace(r=cell.configs[0].r + 1)
    assert ll.budget(part.load()[0].model, over).parameters_trainable > 1500


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": {}}, "methods are missing; list some"),
        ({"methods": [{"class": "LoRA"}]}, "names the class 'LoRA'"),
        ({"methods": "LoraConfig"}, "methods is 'LoraConfig'; it must be a list of methods"),
        ({"configs": [{"class": "FullConfig"}]}, "configs is a run's; a comparison has methods"),
        ({"start_from": "runs/x"}, "start_from is a run's"),
        ({"rates": 1e-3}, "rates is 0.001; it must be a list of learning rates"),
        ({"rates": [[1e-3]]}, "rates has 1 list for"),
        ({"rates": {"LoRa": [1e-3]}}, "rates names 'LoRa', which is no method"),
        ({"rates": ["fast"]}, "learning_rate is 'fast'"),
        ({"seeds": "three"}, "seeds is 'three'; give a whole number, or a list"),
        ({"seeds": 2.5}, "seeds is 2.5; give a whole number, or a list"),
        ({"train_examples": 1.5}, "train_examples is 1.5; give a whole number, or a list"),
        ({"train_examples": 10_000}, "train_examples is 10000; "),
        ({"budget": 1e6}, "budget is 1000000.0; it is a whole number"),
        ({"budget": 3}, "trains more than 3 parameters at rank 1"),
        ({"metric": "accuracy"}, "metric is 'accuracy'; task.csv has loss, bleu"),
        ({"metric": 3}, "metric is 3; it must be text"),
        ({"grid": {"r": [1]}}, "unknown field 'grid'"),
        ({"name": "../up"}, "use letters, digits"),
        ({"training": {"seed": 1}}, "seed is what is compared over"),
        ({"training": {"eval_examples": 3}}, "is left with 3 held-out examples"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(tmp_path, changes, said):
    path = written(tmp_path, **changes)
    with pytest.raises(LoraLabError) as refused:
        ComparePlan.read(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()
    if isinstance(refused.value, ConfigError):
        assert str(refused.value).startswith(f"{path}: ")
