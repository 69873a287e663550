"""Losses by step are those of HF Trainer with PEFT on the same batches, to float32's rounding.

Order, padding and loss are a whole run's own; the peer gets the rows that each step took, pads them
by its own collator, and computes its own loss, with PEFT's LoRA from the same A.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
import transformers

import lora_lab as ll
from lora_lab._util.own_random import seeded
from lora_lab.tasks.families.causal import Causal
from tests.helpers.hf_trainer import peer_arguments
from tests.helpers.several_processes import ragged_task
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm
from tests.helpers.tiny_text import tiny_tokenizer


def tied() -> Any:
    """A GPT-2 without dropout, whose head is its embedding."""
    model: Any = tiny(
        "gpt2", vocab_size=259, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return ll.LoadedModel.given(model, tiny_tokenizer(), "tiny-gpt2")


SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
    "eval_examples": 0,
    "seed": 3,
}
# what makes the model, what is adapted, other settings
CASES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "q and v": (tiny_lm, ["q_proj", "v_proj"], {}),
    "accumulated": (tiny_lm, ["q_proj", "down_proj"], {"gradient_accumulation_steps": 3}),
    "a tied head": (tied, ["c_proj"], {}),
    "the head too": (tiny_lm, ["q_proj", "lm_head"], {"gradient_accumulation_steps": 2}),
}


class Peer(transformers.Trainer):
    """HF Trainer that takes its rows as they stand and keeps its losses."""

    shares: list[float]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(self, *args: Any, **more: Any) -> Any:
        loss: Any = super().compute_loss(*args, **more)
        self.shares.append(loss.item())
        return loss


def peer_losses(model: Any, rows: list[Any], run: ll.Run, folder: Path) -> list[float]:
    """Train a PEFT model on rows in their order; return the losses by step."""
    training, tokenizer = run.training, cast(Any, run.lm.tokenizer)
    trainer = Peer(
        model=model,
        args=peer_arguments(training, folder),
        train_dataset=[{key: row[key] for key in ("input_ids", "labels")} for row in rows],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.shares = []
    trainer.train()
    passes = training.gradient_accumulation_steps
    starts = range(0, len(trainer.shares), passes)
    return [sum(trainer.shares[start : start + passes]) for start in starts]


@pytest.mark.parametrize("case", CASES)
def test_losses_by_step(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, targets, changes = CASES[case]
    rows: list[Any] = []
    collate = Causal.collate

    def kept(self: Causal, batch: Sequence[Any]) -> Any:
        rows.extend(batch)
        return collate(self, batch)

    monkeypatch.setattr(Causal, "collate", kept)
    config = ll.LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    run = ll.train(make(), ragged_task(), config, output_dir=tmp_path, **{**SETTINGS, **changes})
    losses = [loss for _, loss in run.result(60).losses]
    monkeypatch.undo()
    rows = rows[-run.training.max_steps * run.training.step_size :]  # checks pad some before

    lm = make()
    with seeded(SETTINGS["seed"]):
        start = ll.attach(lm.model, config)
    first = {name: site.A.detach().clone() for name, site in start.sites.items()}
    ll.detach(lm.model)
    model: Any = peft.get_peft_model(
        lm.model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    )
    with torch.no_grad():
        for name, A in first.items():
            model.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(A)
    with torch.random.fork_rng():
        theirs = peer_losses(model, rows, run, tmp_path)
    assert len({round(loss, 3) for loss in theirs}) == len(theirs) == SETTINGS["max_steps"]
    assert losses == pytest.approx(theirs, rel=1e-5)
