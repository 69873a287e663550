"""A model as people give it: by name, loaded, or their own with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_lab.errors import ConfigError, ModelError
from lora_lab.models.given import as_loaded
from tests.helpers.tiny_files import tiny_model_folder
from tests.helpers.tiny_run import tiny_lm
from tests.helpers.tiny_text import tiny_tokenizer

CALL = "ll.train(model, …, tokenizer=tokenizer)"


def test_a_loaded_model_is_itself_and_takes_another_tokenizer() -> None:
    lm, other = tiny_lm(), tiny_tokenizer(adds_bos=True)
    assert as_loaded(lm, None, {}, CALL) is lm
    both = as_loaded(lm, other, {}, CALL)
    assert (both.model, both.tokenizer, both.card) == (lm.model, other, lm.card)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "parallel"])
def test_a_model_of_ones_own_comes_with_its_tokenizer(wrap: Any) -> None:
    lm = tiny_lm()
    found = as_loaded(wrap(lm.model), lm.tokenizer, {}, CALL)
    assert (found.model, found.tokenizer) == (lm.model, lm.tokenizer)
    with pytest.raises(ConfigError, match=r"needs its tokenizer: ll\.train\(model, …, tokenizer="):
        as_loaded(wrap(lm.model), None, {}, CALL)


def test_a_name_is_loaded_with_the_head_that_the_task_needs(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    assert as_loaded(folder, None, {}, CALL).card.source == "folder"
    found = as_loaded(str(folder), None, {"labels": ["a", "b", "c"]}, CALL)
    assert found.model.config.num_labels == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "a Linear is no model"),
        (torch.zeros(2), "a Tensor is no model"),
        (tiny_tokenizer(), "a PreTrainedTokenizerFast is no model|a TokenizersBackend is no model"),
        ((tiny_lm().model, tiny_tokenizer()), "a tuple is no model"),
        (None, "a NoneType is no model"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_model_gets_one_line(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_loaded(model, tiny_tokenizer(), {}, CALL)


@pytest.mark.parametrize(
    ("model", "tokenizer", "message"),
    [
        (
            tiny_tokenizer(),
            tiny_lm().model,
            "is no tokenizer; they stand the other way round: ll.t",
        ),
        ("smollm2-135m", tiny_lm().model, "is no tokenizer; give the model's own"),
        (tiny_lm().model, {"a": 1}, "a dict is no tokenizer"),
        (tiny_lm(), 5, "an int is no tokenizer"),
        (tiny_lm().model.state_dict(), tiny_tokenizer(), "an OrderedDict is no model"),
    ],
)
def test_what_is_no_tokenizer_or_no_model_is_refused_before_anything_loads(
    model: Any, tokenizer: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        as_loaded(model, tokenizer, {}, CALL)
    assert "\n" not in str(caught.value)


def test_a_tokenizers_name_is_no_tokenizer_and_one_of_too_many_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer is 'gpt2'; load it, transformers\.AutoTok"):
        as_loaded(tiny_lm().model, "gpt2", {}, CALL)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(ModelError, match=r"260 tokens .* and the model embeds 259"):
        as_loaded(tiny_lm().model, tokenizer, {}, CALL)
