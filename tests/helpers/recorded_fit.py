"""One training on the test's own thread with all that went through it."""

from __future__ import annotations

import functools

import torch

from lora_lab import methods
from lora_lab.budget.meter import Meter
from lora_lab.configs import TrainingConfig
from lora_lab.tasks.encoding import collate, encode_all
from lora_lab.training.trainer import Fit
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


class Recorded:
    """A fit with all that went through it."""

    def __init__(self, tmp_path, lm=None, config=CONFIG, stop_after=None, **training):
        self.lm = lm or tiny_lm()
        self.training = TrainingConfig(
            **{"max_steps": 6, "learning_rate": 1e-2, "warmup_steps": 2, **training}
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.adapter = methods.attach(self.lm.model, config)
        task = tiny_task()
        examples, _ = encode_all(task.train, task, self.lm.tokenizer, 64)
        self.batches, self.steps, self.rates = [], [], []
        self.stop_after = stop_after
        self.fit = Fit(
            model=self.lm.model,
            adapter=self.adapter,
            examples=examples,
            collate=functools.partial(self._collate),
            training=self.training,
            folder=tmp_path,
            meter=Meter(self.lm.model),
            on_step=self._on_step,
        )

    def _collate(self, rows):
        batch = collate(rows, 0)
        self.batches.append({name: tensor.clone() for name, tensor in batch.items()})
        return batch

    def _on_step(self, step):
        self.steps.append(step)
        return step.number == self.stop_after

    def run(self):
        self.fit.run()
        return self

    @property
    def losses(self):
        return [step.loss for step in self.steps]


def mean_loss(model, batches) -> float:
    """−log p of all completion tokens of some batches, averaged over tokens, in float64."""
    total, tokens = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        log_p = out.logits.double().log_softmax(-1)[:, :-1]
        labels = batch["labels"][:, 1:]
        kept = labels != -100
        total -= log_p[kept].gather(1, labels[kept].unsqueeze(1)).sum().item()
        tokens += int(kept.sum())
    return total / tokens
