"""transformers' `save_pretrained` on an adapted model: it writes, and is not silent about what."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

import lora_lab as ll
from tests.helpers.tiny_models import tiny, tiny_inputs

LORA = ll.LoraConfig(r=2)
SAID = r"holds adapter 'default' \(LoRA\); ll\.save_adapter.* an adapter, ll\.export_merged"


def test_saving_an_adapted_model_says_what_is_written_and_what_to_call(tmp_path: Path) -> None:
    model = tiny("llama")
    ll.attach(model, LORA)
    with pytest.warns(UserWarning, match=SAID) as caught:
        model.save_pretrained(tmp_path / "model")
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)


def test_a_bare_merged_or_detached_model_is_saved_without_a_word(tmp_path: Path) -> None:
    model = tiny("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.attach(model, LORA)
        ll.merge(model)
        model.save_pretrained(tmp_path / "merged")
        ll.detach(model)
        model.save_pretrained(tmp_path / "base")
    assert not model._state_dict_pre_hooks


def test_a_copys_hook_goes_with_the_copys_adapter() -> None:
    model = tiny("llama")
    ll.attach(model, LORA)
    twin = copy.deepcopy(model)
    ll.detach(twin)
    assert not twin._state_dict_pre_hooks
    with pytest.warns(UserWarning, match=SAID):
        model.state_dict()


def test_transformers_trainer_goes_on_and_its_checkpoints_say_it(tmp_path: Path) -> None:
    model = tiny("llama")
    ll.attach(model, LORA)
    ids = tiny_inputs(model)["input_ids"][0]
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, settings, train_dataset=[{"input_ids": ids, "labels": ids}] * 4)
    with pytest.warns(UserWarning, match=SAID):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_our_own_saving_is_silent(tmp_path: Path) -> None:
    model = tiny("llama")
    ll.attach(model, LORA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.save_adapter(model, tmp_path / "adapter")
        ll.export_merged(model, tmp_path / "merged")
