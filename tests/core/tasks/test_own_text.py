"""Text that a model writes of itself; its distribution is tested in analysis/test_losses.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_lab.errors import TaskError
from lora_lab.tasks.own_text import why_no_text, write_texts, writes_text
from tests.helpers.tiny_classes import tiny_classifier
from tests.helpers.tiny_run import tiny_lm
from tests.helpers.tiny_seq2seq import tiny_seq2seq


def test_the_same_model_writes_the_same_and_nothing_is_drawn_from_torch() -> None:
    lm = tiny_lm()
    assert lm.tokenizer is not None
    random = torch.random.get_rng_state()
    first = write_texts(lm.model, lm.tokenizer, 5, 7, lambda: False)
    torch.manual_seed(3)
    again = write_texts(lm.model.train(), lm.tokenizer, 5, 7, lambda: False)
    torch.random.set_rng_state(random)
    assert first == again
    assert lm.model.training
    assert len(first) == 5
    for row in first:
        ids = row["input_ids"]
        assert ids[0] == lm.tokenizer.bos_token_id
        assert len(ids) == 8 or ids[-1] == lm.tokenizer.eos_token_id
        assert row["labels"] == [-100, *ids[1:]]
    assert write_texts(lm.model, lm.tokenizer, 5, 7, lambda: True) == []


def test_a_model_whose_forward_takes_nothing_but_tokens_writes_too() -> None:
    lm = tiny_lm()
    assert lm.tokenizer is not None

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lm.model

        def forward(self, input_ids: torch.Tensor) -> Any:
            return self.inner(input_ids=input_ids)

    expected = write_texts(lm.model, lm.tokenizer, 3, 6, lambda: False)
    assert write_texts(Own(), lm.tokenizer, 3, 6, lambda: False) == expected


def test_who_writes() -> None:
    lm = tiny_lm()
    assert lm.tokenizer is not None
    assert writes_text(lm.model)
    assert why_no_text(lm.model, lm.tokenizer) == ""
    for other in (tiny_classifier(), tiny_seq2seq()):
        assert not writes_text(other.model)
        assert other.tokenizer is not None
        assert "writes no text" in why_no_text(other.model, other.tokenizer)
    lm.tokenizer.bos_token = None
    assert why_no_text(lm.model, lm.tokenizer) == ""  # it begins with the end
    lm.tokenizer.eos_token = None
    assert why_no_text(lm.model, lm.tokenizer) == "the tokenizer has no token that begins a text"
    with pytest.raises(TaskError, match="no token that begins a text"):
        write_texts(lm.model, lm.tokenizer, 1, 1, lambda: False)


def test_logits_that_are_no_numbers_are_an_error_of_one_line() -> None:
    lm = tiny_lm()
    assert lm.tokenizer is not None
    with torch.no_grad():
        lm.model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(TaskError, match="NaN or infinite"):
        write_texts(lm.model, lm.tokenizer, 2, 3, lambda: False)
