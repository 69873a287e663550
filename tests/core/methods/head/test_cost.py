"""A head that is trained beside a method is counted wherever the plan is: one number.

Expected values: what the adapter of a run trains, its tensors summed; layers' shapes by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

import lora_lab as ll
from lora_lab.anatomy import anatomy
from lora_lab.budget import budget, evaluate_price, price_table
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.table import beside_head
from lora_lab.methods.lora.targets import ranks
from lora_lab.models import load_model
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks import load_task
from lora_lab.training.planned_cost import planned_cost
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores

LORA = ll.LoraConfig(r=4, target_modules=["q", "v"])
STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "eval_examples": 0, "kept_texts": 0}
BY_HAND = {"bert": 32 * 2 + 2, "llama": 32 * 2, "gpt2": 32 * 2}
# RoBERTa's and T5's have a dense layer before the one that answers.
BY_HAND |= {"roberta": 32 * 32 + 32 + 32 * 2 + 2, "t5": 32 * 32 + 32 + 32 * 2 + 2}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_run_trains_what_its_plan_has_counted(kind: str, tmp_path: Any) -> None:
    lm, task = tiny_classifier(kind), tiny_classes()
    found = planned_cost(lm, task, LORA, TrainingConfig(**STEPS))
    alone = budget(lm.model, LORA)
    assert found.parameters_trainable - alone.parameters_trainable == BY_HAND[kind]
    run = ll.train(lm, task, LORA, output_dir=tmp_path, start=False, **STEPS)
    adapter = ll.attach(lm.model, run.config)
    assert adapter.trainable == found.parameters_trainable
    assert any(f"the {BY_HAND[kind]:,} parameters of the head" in note for note in found.notes)
    assert any("trains the head" in note and "not counted" in note for note in alone.notes)


@pytest.mark.parametrize(
    "config",
    [
        ll.BitFitConfig(),
        ll.BottleneckConfig("P", r=4),
        ll.PrefixEmbedConfig(3, 2),
        ll.FullConfig(),
        ll.FullConfig(top_layers=1),
        ll.HeadConfig(),
        ll.IA3Config(),
        ll.AdaLoraConfig(init_r=4, target_r=2),
        [LORA, ll.PrefixEmbedConfig(3, 2)],
        LORA.replace(modules_to_save=["pooler"]),
        LORA.replace(task_type="SEQ_CLS"),
    ],
    ids=str,
)
def test_every_method_has_its_head_in_the_count(config: Any, tmp_path: Any) -> None:
    lm, task = tiny_classifier(), tiny_classes()
    found = planned_cost(lm, task, config, TrainingConfig(**STEPS))
    run = ll.train(lm, task, config, output_dir=tmp_path, start=False, **STEPS)
    adapter = ll.attach(lm.model, run.config)
    assert adapter.trainable == found.parameters_trainable


def test_a_head_of_one_number_is_counted_too() -> None:
    lm = tiny_scorer()
    found = planned_cost(lm, tiny_scores(), LORA, TrainingConfig(**STEPS))
    assert found.parameters_trainable == 2 * 2 * 4 * (32 + 32) + 32 + 1


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_closed_form_has_the_bytes_of_a_step(kind: str) -> None:
    lm = tiny_classifier(kind)
    config = LORA.replace(modules_to_save=list(anatomy(lm.model).heads))
    step = {"batch_size": 4, "sequence_length": 16, "padding_mask": True}
    form, counted = budget(lm.model, config, **step).adapted, dry_run(lm.model, config, **step)
    bare = dry_run(lm.model, LORA, **step)
    assert counted.gradients - bare.gradients == 4 * BY_HAND[kind]
    assert form.gradients == counted.gradients
    # Two moments of each number, and the optimizer's step count of each tensor on top.
    assert form.optimizer == pytest.approx(counted.optimizer, rel=0.01)
    assert form.total == pytest.approx(counted.peak, rel=0.05)


def test_painted_ranks_have_it_in_their_table() -> None:
    model = anatomy(tiny_classifier().model)
    table = beside_head(price_table(model, sequence_length=32), model)
    found = evaluate_price(table, ranks(model, LORA))
    whole = budget(model, LORA.replace(modules_to_save=["classifier"]), sequence_length=32)
    assert found == whole
    assert evaluate_price(table, {}).parameters_trainable == 0, "a head alone is no plan"


@pytest.mark.real_model
@pytest.mark.parametrize("task", ["mini-nli", "mini-rating"])
@pytest.mark.parametrize(("name", "bias"), [("minilm-l6", 1), ("mini-llama", 0)])
def test_the_models_that_come_with_it(name: str, bias: int, task: str) -> None:
    data = load_task(task)
    lm = load_model(name, device="cpu", **data.head)
    shape = lm.model.config
    width, layers = shape.hidden_size, shape.num_hidden_layers
    values = width if name == "minilm-l6" else shape.num_key_value_heads * shape.head_dim
    own = layers * 4 * (2 * width + width + values)
    found = planned_cost(lm, data, LORA, TrainingConfig(**STEPS))
    assert found.parameters_trainable == own + (width + bias) * len(data.head["labels"])
