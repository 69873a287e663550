"""A classifier's head learns at a rate of its own.

Oracle: with β₁ = β₂ = 0 and no ε to speak of AdamW moves every number by its rate, up or down.
"""

from __future__ import annotations

import re

import pytest
import torch

import lora_lab as ll
from lora_lab.anatomy.heads import head_modules
from lora_lab.errors import ConfigError
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

ALONE = {"adam_beta1": 0.0, "adam_beta2": 0.0, "adam_epsilon": 1e-30, "max_steps": 1}
QUICK = {**ALONE, "warmup_steps": 0, "eval_examples": 0, "max_grad_norm": 0.0, "save_steps": 0}


@pytest.mark.parametrize("kind", ["bert", "roberta"])  # one layer, and two
@pytest.mark.parametrize(
    "config", [ll.LoraConfig(r=2), ll.BitFitConfig(), ll.FullConfig()], ids=["LoRA", "BitFit", "FT"]
)
def test_each_number_moves_by_its_own_rate(tmp_path, config, kind):
    lm = tiny_classifier(kind)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    run = ll.train(
        lm, tiny_classes(), config, output_dir=tmp_path, learning_rate=1e-3,
        head_learning_rate=0.016, **QUICK,
    )  # fmt: skip
    assert run.result(60).losses
    assert run.snapshot.learning_rate == pytest.approx(1e-3)
    heads = tuple(f"{path}." for path in head_modules(lm.model))
    moved = {True: 0.0, False: 0.0}
    for key, tensor in run.adapter.state().items():
        name = re.sub(r"^\d+\.", "", key)  # of a combination's part
        if not name.endswith(".A"):  # which has no gradient while B is zero
            base = torch.zeros_like(tensor) if name.endswith(".B") else before[name]
            step = (tensor.detach() - base).abs().max().item()
            moved[name.startswith(heads)] = max(moved[name.startswith(heads)], step)
    assert moved[True] == pytest.approx(0.016, rel=1e-3)
    assert moved[False] == pytest.approx(1e-3, rel=1e-3)


def test_it_needs_a_head(tmp_path):
    with pytest.raises(ConfigError, match=r"head_learning_rate .* letters needs none"):
        ll.train(tiny_lm(), tiny_task(), output_dir=tmp_path, head_learning_rate=1e-3)
    with pytest.raises(ConfigError, match="head_learning_rate"):
        ll.TrainingConfig(head_learning_rate=0)
