"""What a model's generation config asks for does not count where answers are scored."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from lora_lab.configs import LoraConfig
from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.families.causal import Causal
from lora_lab.tasks.generation import generate
from lora_lab.tasks.greedy import greedy_settings
from lora_lab.training.api import train
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

PROMPTS = ["name[A]\n", "b\n", "q"]
ASKED = {
    "sampling": {"do_sample": True, "temperature": 0.2, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "lengths": {"max_length": 5, "min_length": 9, "min_new_tokens": 9, "max_time": 1e-9},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "of the prompt": {"encoder_repetition_penalty": 9.0, "encoder_no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": [*range(3, 130)], "begin_suppress_tokens": [*range(60, 259)]},
    "bad words": {"bad_words_ids": [[n] for n in range(130, 259)]},
    "forced": {"forced_eos_token_id": 2, "forced_bos_token_id": 9},
    "decay": {"exponential_decay_length_penalty": (1, 9.0)},
    "bias": {"sequence_bias": [[[7], 99.0]]},
    "guidance": {"guidance_scale": 3.0},
    "several": {"num_return_sequences": 2, "num_beams": 2},
    "other outputs": {"return_dict_in_generate": True, "output_scores": True},
    "stop strings": {"stop_strings": ["e"]},
    "look-up": {"prompt_lookup_num_tokens": 3},
    "mark": {"watermarking_config": {"bias": 9.0}},
    "cache": {"cache_implementation": "static"},
}


def asking(model, values):
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize("asked", ASKED)
def test_greedy_means_greedy_whatever_a_decoder_asks_for(asked, capfd):
    tokenizer, expected = tiny_tokenizer(), generate(tiny_llama(), tiny_tokenizer(), PROMPTS)
    model = asking(tiny_llama(), ASKED[asked])
    own = model.generation_config
    before = str(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, tokenizer, PROMPTS) == expected
    assert capfd.readouterr() == ("", "")
    assert model.generation_config is own
    assert str(own) == before


@pytest.mark.parametrize("asked", ASKED)
def test_greedy_means_greedy_whatever_an_encoder_decoder_asks_for(asked):
    lm, other = tiny_seq2seq("t5"), tiny_seq2seq("t5")
    expected = generate(lm.model, lm.tokenizer, PROMPTS)
    assert generate(asking(other.model, ASKED[asked]), lm.tokenizer, PROMPTS) == expected


def test_the_config_comes_back_after_an_error():
    model = tiny_llama()
    own = model.generation_config
    model.forward = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        generate(model, tiny_tokenizer(), PROMPTS)
    assert model.generation_config is own


@pytest.mark.parametrize("own", [9, 1, None])
def test_a_language_that_answers_begin_with_is_the_one_that_is_learned(own):
    """BART's frame puts <s> (1) first, as mBART's its language: no other one is forced."""
    lm = asking_lm = tiny_seq2seq("bart")
    asking_lm.model.generation_config.forced_bos_token_id = own
    settings = greedy_settings(lm.model, lm.tokenizer, 4)
    assert settings.get("forced_bos_token_id") == (None if own is None else 1)
    seen = []
    lm.model.register_forward_hook(
        lambda _, __, kwargs, ___: seen.append(kwargs["decoder_input_ids"]), with_kwargs=True
    )
    generate(lm.model, lm.tokenizer, ["a\n"], max_new_tokens=4)
    assert seen[0].tolist() == [[lm.model.config.decoder_start_token_id]]
    if own is not None and len(seen) > 1:
        assert torch.cat(seen[:2], dim=1)[0, 1] == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_answers_were_decoded_with_stands_in_the_runs_record(tmp_path, kind):
    lm, task = (
        (tiny_lm(), tiny_task()) if kind == "llama" else (tiny_seq2seq("t5"), uneven_task(8, 2))
    )
    options = {"max_steps": 1, "max_length": 32, "eval_examples": 2}
    run = train(lm, task, LoraConfig(r=2), output_dir=tmp_path, **options)
    run.result(60)
    told = json.loads((run.folder / "summary.json").read_text())["decoding"]
    longest = max(len(text) for e in task.validation[:2] for text in e.references)  # a byte a token
    assert told.pop("max_new_tokens") == -(-3 * longest // 2) + 1
    assert told.pop("decoder_start_token_id", None) == (0 if kind == "t5" else None)
    assert told == {"do_sample": False, "num_beams": 1, "pad_token_id": 0, "eos_token_id": [2]}


def test_an_answer_as_long_as_the_model_leaves_room_for_its_prompt() -> None:
    lm = tiny_lm()
    limit = lm.model.config.max_position_embeddings
    row = Example("a", "b" * 2 * limit, ("b" * 2 * limit,))
    family = Causal(lm, GenerationTask("long", True, [row], [row]), limit)
    assert family.decoding([row])["max_new_tokens"] == limit // 2
    assert len(family.write([row], lambda: False)) == 1
