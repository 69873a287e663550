"""Losses by step and what was learned are those of transformers' Trainer, bit for bit on the CPU.

They are where logits are computed whole, as there; of labels alone they are equal to rounding. HF
Trainer takes the same examples in the same order, and draws its dropout from the same seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_lab._util.own_random import seeded
from lora_lab.budget.meter import Meter
from lora_lab.configs import AdaLoraConfig, TrainingConfig
from lora_lab.methods.api import attach
from lora_lab.methods.base import Adapter
from lora_lab.methods.combined import as_config
from lora_lab.methods.head.adapter import with_head
from lora_lab.models import LoadedModel
from lora_lab.tasks.families.api import family_of
from lora_lab.training.schedule import rate_factor
from lora_lab.training.trainer import Fit
from tests.helpers.checkpointing import checkpoint
from tests.helpers.hf_trainer import peer_losses
from tests.helpers.several_processes import ragged_task
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task
from tests.helpers.tiny_text import tiny_tokenizer
from tests.helpers.whole_logits import whole_logits  # noqa: F401 (a fixture)


def bf16_lm() -> LoadedModel:
    lm = tiny_lm()
    lm.model.to(torch.bfloat16)
    return lm


def gpt2() -> LoadedModel:
    """With dropout on embeddings, attention and branches, as its config has it by default."""
    model = tiny("gpt2", vocab_size=259, n_positions=128)
    return LoadedModel.given(model, tiny_tokenizer(), "tiny-gpt2")


def dropping(make: Any) -> Any:
    """A maker of the same model, with dropout."""

    def made() -> LoadedModel:
        lm = make()
        for module in lm.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        return lm

    return made


def ten() -> Any:
    return ragged_task(14)  # four of them are held out


DROPOUT = CONFIG.replace(lora_dropout=0.2)
ADALORA = AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=2, deltaT=1)
THREE: dict[str, Any] = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
# model, task, what is trained, how
CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "plain": (tiny_lm, ragged_task, CONFIG, {}),
    "accumulated": (tiny_lm, ragged_task, DROPOUT, THREE),
    "clipped, decayed, cosine": (
        tiny_lm, ragged_task, CONFIG,
        {"weight_decay": 0.1, "max_grad_norm": 0.05, "lr_scheduler_type": "cosine"},
    ),
    "betas and epsilon": (
        tiny_lm, ragged_task, CONFIG,
        {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-4},
    ),
    "constant, not clipped": (
        tiny_lm, ragged_task, CONFIG, {"lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    ),
    "dropout everywhere": (gpt2, ragged_task, DROPOUT, {}),
    "checkpointed": (gpt2, ragged_task, DROPOUT, {"gradient_checkpointing": True}),
    "LoRA+": (tiny_lm, ragged_task, CONFIG, {"loraplus_lr_ratio": 16.0}),
    "AdaLoRA": (tiny_lm, ragged_task, ADALORA, {"max_steps": 5}),
    "bf16": (bf16_lm, ragged_task, CONFIG, {}),
    "classes": (dropping(tiny_classifier), tiny_classes, CONFIG, THREE),
    "regression": (tiny_scorer, tiny_scores, CONFIG, THREE),
    "seq2seq": (dropping(tiny_seq2seq), uneven_task, CONFIG, THREE),
}  # fmt: skip
# 10 examples: an epoch's last step has fewer, and its last pass too.
EPOCHS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "two": (tiny_lm, ten, CONFIG, {"num_train_epochs": 2}),
    "a part of one": (tiny_lm, ten, DROPOUT, {"num_train_epochs": 1.5}),
    "accumulated": (tiny_lm, ten, CONFIG, {"num_train_epochs": 2, **THREE}),
    "classes": (
        dropping(tiny_classifier),
        lambda: tiny_classes(10),
        CONFIG,
        {
            "num_train_epochs": 2.2,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 3,
        },
    ),
}
SMOOTHED = {
    name: (*CASES[name][:3], {**more, "label_smoothing_factor": 0.2})
    for name, more in {
        "plain": {}, "accumulated": THREE, "dropout everywhere": {}, "bf16": {}, "classes": {},
        "seq2seq": {},
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def both(
    case: str, folder: Path, cases: dict[str, Any] = CASES
) -> tuple[list[float], list[float], Adapter, Adapter]:
    """Ours and HF Trainer's losses by step, and what they have learned."""
    make_lm, make_task, config, changes = cases[case]
    settings = {"max_steps": 4, "warmup_steps": 1, "learning_rate": 1e-2, "seed": 3}
    if "num_train_epochs" in changes:
        del settings["max_steps"]
    training = TrainingConfig(**{"per_device_train_batch_size": 4, **settings, **changes})
    task = make_task()
    training = training.for_examples(len(task.train))

    def made() -> tuple[Any, Any, Any]:
        lm = make_lm()
        parts = as_config(config)
        if task.head:
            parts = as_config(with_head(lm.model, parts.parts))
        with seeded(0):
            adapter = attach(lm.model, parts)
        return lm, adapter, family_of(task, lm)(lm, task, 64)

    lm, adapter, family = made()
    examples, _ = family.encode(task.train)
    lengths = [family.longest([example]) for example in examples]
    steps: list[Any] = []
    Fit(
        lm.model, adapter, examples, family.collate, training, folder, Meter(lm.model),
        lambda step: steps.append(step), loss=family.loss,
        lengths=lengths,
    ).run()  # fmt: skip

    lm, peer, family = made()
    if training.gradient_checkpointing:
        checkpoint(lm.model, use_reentrant=False)
        lm.model.enable_input_require_grads()
    with torch.random.fork_rng():
        losses = peer_losses(
            lm.model, peer, examples, family.collate, training, family.loss, folder, lengths
        )
    assert len({*losses}) > 1
    return [step.loss for step in steps], losses, adapter, peer


@pytest.mark.usefixtures("whole_logits")
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_hf_trainer(tmp_path, case):
    losses, theirs, adapter, peer = both(case, tmp_path)
    assert losses == theirs
    state = peer.state()
    for name, tensor in adapter.state().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("case", "rounding"),
    [("accumulated", 1e-6), ("dropout everywhere", 1e-6), ("bf16", 1e-3), ("seq2seq", 1e-6)],
)
def test_with_logits_of_labels_alone_it_is_to_rounding(tmp_path, case, rounding):
    losses, theirs, *_ = both(case, tmp_path)
    assert losses == pytest.approx(theirs, rel=rounding)


@pytest.mark.usefixtures("whole_logits")
@pytest.mark.parametrize("case", EPOCHS)
def test_epochs_are_those_of_hf_trainer(tmp_path, case):
    losses, theirs, adapter, peer = both(case, tmp_path, EPOCHS)
    assert losses == theirs
    state = peer.state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.state().items())


@pytest.mark.parametrize("case", SMOOTHED)
def test_smoothed_losses_are_those_of_transformers_label_smoother(tmp_path, case):
    losses, theirs, *_ = both(case, tmp_path, SMOOTHED)
    # LabelSmoother takes log_softmax in the logits' own dtype.
    assert losses == pytest.approx(theirs, rel=1e-2 if case == "bf16" else 1e-6)
    assert losses != pytest.approx(both(case, tmp_path)[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
def test_rates_are_those_of_transformers(kind, warmup):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    peer = transformers.get_scheduler(kind, optimizer, warmup, 20)
    for step in range(21):
        assert rate_factor(step, kind=kind, warmup=warmup, steps=20) == peer.get_last_lr()[0]
        optimizer.step()
        peer.step()
