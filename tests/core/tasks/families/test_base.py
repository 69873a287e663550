"""What every family measures: each example's own loss, and how far their mean may be off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lora_lab.configs import LoraConfig, PrefixEmbedConfig
from lora_lab.methods.api import attach
from lora_lab.models import LoadedModel
from lora_lab.tasks import intervals
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import Family
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task
from tests.helpers.tiny_text import tiny_tokenizer

TEXTS = tuple(" ".join("abcdefgh"[: 2 + i % 6]) for i in range(6))


def with_tokens() -> LoadedModel:
    lm = tiny_lm()
    attach(lm.model, LoraConfig(r=2, init_lora_weights=False), "lora")
    attach(lm.model, PrefixEmbedConfig(3, 2))
    return lm


def of_another_kind() -> LoadedModel:
    """Its output layer is called in a way of its own: the logits are computed whole."""
    lm = tiny_lm()
    lm.model.lm_head.register_forward_hook(lambda _m, _a, output: output * 1.5)
    return lm


CASES: dict[str, tuple[Callable[[], LoadedModel], Task]] = {
    "prompts": (tiny_lm, uneven_task()),
    "learned tokens": (with_tokens, tiny_task()),
    "hooks on the head": (of_another_kind, uneven_task()),
    "capped logits": (
        lambda: LoadedModel.given(tiny("gemma2", vocab_size=300), tiny_tokenizer()),
        uneven_task(),
    ),
    "texts": (tiny_lm, LanguageModelingTask("texts", True, TEXTS, TEXTS)),
    "t5": (tiny_seq2seq, uneven_task()),
    "bart": (lambda: tiny_seq2seq("bart"), uneven_task()),
    "classes": (tiny_classifier, tiny_classes(held_out=5)),
    "numbers": (tiny_scorer, tiny_scores(held_out=5)),
}


def measured(family: Family, rows: Any, size: int) -> Any:
    batches = [family.collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    found = family.measure_all(batches, lambda: False)
    assert found is not None
    return found


@pytest.mark.parametrize("name", CASES)
def test_each_examples_loss_is_what_it_is_alone(name: str) -> None:
    make, task = CASES[name]
    lm = make()
    family = family_of(task, lm)(lm, task, 12 if name == "texts" else 64)
    rows = family.encode(task.validation)[0]
    together = measured(family, rows, 4)
    alone = [measured(family, [row], 1) for row in rows]
    assert [count for _, count in together.each] == [one.size for one in alone]
    losses = [one.loss for one in alone]
    assert [loss for loss, _ in together.each] == pytest.approx(losses, rel=2e-4, abs=1e-5)
    assert together.mean == pytest.approx(
        sum(losses) / sum(one.size for one in alone), rel=1e-4, abs=1e-6
    )
    assert len(set(losses)) > 1
    evaluation = family.evaluate(task.validation, [family.collate(rows)], lambda: False)
    assert evaluation is not None
    low, high = evaluation.intervals["loss"]
    assert low <= evaluation.scores["loss"] <= high
    drawn = intervals.drawn(len(rows))
    sums, counts = (np.array(list(each), float) for each in zip(*together.each, strict=True))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), rel=1e-3)
    if name == "texts":
        assert evaluation.intervals["perplexity"] == pytest.approx((np.exp(low), np.exp(high)))


def test_measuring_each_keeps_no_gradients_and_computes_no_logits_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, task = tiny_lm(), uneven_task()
    family = family_of(task, lm)(lm, task, 64)
    rows = family.encode(task.validation)[0]
    seen: list[int] = []
    lm.model.lm_head.forward = lambda x, own=lm.model.lm_head.forward: (
        seen.append(x[..., 0].numel()),
        own(x),
    )[1]
    found = family.measure(family.collate(rows))
    assert sum(seen) == found.size < sum(len(row["input_ids"]) for row in rows)
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert torch.is_grad_enabled()
