"""Runs of encoder-decoder models on prompt → completion: T5's kind and BART's, every method."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

import lora_lab as ll
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.errors import ConfigError
from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.generation import generate
from tests.helpers.tiny_seq2seq import framing_tokenizer, tiny_seq2seq, uneven_task
from tests.helpers.tiny_text import tiny_tokenizer

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
EMBED = PrefixEmbedConfig(prefix_length=2, infix_length=2)
LAYER = PrefixLayerConfig(prefix_length=2, infix_length=2)
ADALORA = AdaLoraConfig(target_r=2, init_r=4, target_modules="all-linear")
METHODS = {
    "lora": LORA,
    "adalora": ADALORA,
    "ft-top": FullConfig(top_layers=1),
    "bitfit": BitFitConfig(new_biases=True),
    "embed": EMBED,
    "layer": LAYER,
    "adapter-h": BottleneckConfig(variant="H", r=4),
    "lora-embed": [LoraConfig(r=4, lora_alpha=8), EMBED],
}


def train(
    tmp_path, lm: LoadedModel, task: GenerationTask, config: Any = LORA, **changes: Any
) -> ll.Run:
    settings = {
        "max_steps": 3,
        "max_length": 24,
        "eval_examples": 2,
        "save_steps": 0,
        "warmup_steps": 0,
        "learning_rate": 0.02,
        **changes,
    }
    return ll.train(lm, task, config, output_dir=tmp_path, **settings)


def mean_loss(kind: str, examples: Sequence[Example], start: int) -> tuple[float, int]:
    """−log p of all completion tokens, their mean and number: one by one in float64, no padding."""
    model, tokenizer = tiny_seq2seq(kind).model.double(), tiny_tokenizer()
    before = [1] if kind == "bart" else []
    terms: list[float] = []
    for example in examples:
        source = [*before, *tokenizer(f"{example.prompt}\n")["input_ids"], 2]
        target = [*before, *tokenizer(example.completion)["input_ids"], 2]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([source]),
                decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
            ).logits[0]
        log_p = logits.double().log_softmax(-1)
        terms += [-log_p[i, token].item() for i, token in enumerate(target)]
    return sum(terms) / len(terms), len(terms)


@pytest.mark.parametrize(("kind", "start"), [("t5", 0), ("t5-gated", 0), ("bart", 2)])
def test_losses_are_means_over_completion_tokens(tmp_path, kind, start):
    """One step reads all examples, in passes whose completions are of different lengths."""
    task = uneven_task(training=6, held_out=3)
    run = train(
        tmp_path,
        tiny_seq2seq(kind),
        task,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        eval_examples=3,
    )
    result = run.result(60)
    expected, tokens = mean_loss(kind, task.train, start)
    assert len({len(e.completion) for e in task.train}) > 2
    assert result.losses[0][1] == pytest.approx(expected, rel=1e-5)
    line = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["tokens"] == tokens
    held_out, _ = mean_loss(kind, task.validation, start)
    assert result.metrics["loss_before"] == pytest.approx(held_out, rel=1e-5)


@pytest.mark.parametrize("kind", ["t5-gated", "bart"])
def test_lora_learns_to_answer(tmp_path, kind):
    settings = {"max_steps": 80, "eval_examples": 16, "warmup_steps": 5, "learning_rate": 0.01}
    run = train(tmp_path, tiny_seq2seq(kind), uneven_task(256, 16), **settings)
    metrics = run.result(120).metrics
    assert metrics["loss_after"] < 0.7 * metrics["loss_before"]


CASES = [("t5", name) for name in METHODS] + [
    ("bart", name) for name in ("lora", "bitfit", "layer", "adapter-h")
]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_every_method_trains_saves_and_loads(tmp_path, kind, method):
    lm, task = tiny_seq2seq(kind), uneven_task(training=16, held_out=2)
    run = train(tmp_path, lm, task, METHODS[method], gradient_checkpointing=method == "layer")
    result = run.result(60)
    assert len(result.losses) == 3
    scored = {"loss", "chrf", "exact_match"}  # BLEU says nothing of answers of a word or two
    assert set(result.metrics) == {f"{name}_{at}" for name in scored for at in ("before", "after")}
    assert "BLEU (cased) is left out: 2 of 2 right answers have fewer than 4 words" in run.notes
    inputs = {"input_ids": torch.tensor([[70, 35, 71, 2]])}
    inputs["decoder_input_ids"] = torch.tensor([[lm.model.config.decoder_start_token_id, 70]])
    other = tiny_seq2seq(kind)
    with torch.no_grad():
        base = other.model(**inputs).logits
        load_adapter(other.model, result.adapter_folder)
        lm.model.eval()
        trained, loaded = lm.model(**inputs).logits, other.model(**inputs).logits
    assert torch.equal(loaded, trained)
    assert not torch.equal(trained, base)
    longest = max(len(example.completion) for example in task.validation)
    prompts = [sample.prompt for sample in result.samples]
    # As many as a run asks for: half as much again as the longest right answer, and the end.
    most = min(math.ceil(1.5 * longest) + 1, 24)
    answers = generate(other.model, other.tokenizer, prompts, max_new_tokens=most)
    assert answers == [sample.adapted for sample in result.samples]


def test_the_decoder_keeps_no_cache_while_it_trains(tmp_path):
    lm = tiny_seq2seq("t5")
    seen: list[bool] = []
    lm.model.decoder.register_forward_hook(
        lambda module, _, output: (
            seen.append(output.past_key_values is None) if module.training else None
        )
    )
    train(tmp_path, lm, uneven_task(), eval_examples=0).result(60)
    assert seen == [True] * 3
    assert lm.model.decoder.config.use_cache is True
    assert lm.model.encoder.config.use_cache is False
    assert lm.model.config.use_cache is True


def test_cut_prompts_are_noted_and_long_completions_left_out(tmp_path):
    long = Example("x" * 40, "yes", ("yes",))
    task = GenerationTask("long", True, [*uneven_task().train[:3], long], [long])
    run = train(tmp_path, tiny_seq2seq(), task, max_steps=1)
    run.result(60)
    # 40 letters, the line's end and </s>.
    for count, part in ((4, "training"), (1, "held-out")):
        assert (
            f"1 of {count} {part} prompts were cut at their start to fit max_length=24; "
            "max_length=42 would do"
        ) in run.notes
    task = uneven_task()
    longer = sum(len(row.completion) + 1 > 8 for row in task.train)
    run = train(tmp_path, tiny_seq2seq(), task, max_length=8, max_steps=1)
    run.result(60)
    assert 0 < longer < 64
    assert (
        f"{longer} of 64 training examples were left out: what is learned of them leaves no room "
        "in max_length=8; max_length=10 would do"
    ) in run.notes


def test_no_side_has_more_tokens_than_the_model_has_positions(tmp_path):
    long = Example("x" * 200, "yes", ("yes",))
    task = GenerationTask("long", True, [long] * 8, [long])
    run = train(tmp_path, tiny_seq2seq("bart"), task, max_length=500, max_steps=1)  # 64 positions
    run.result(60)
    said = "8 of 8 training prompts were cut at their start to fit max_length=64; the longest has "
    assert f"{said}203 tokens, and the model can read 64" in run.notes


@pytest.mark.parametrize("config", [EMBED, [LORA, LAYER]])
def test_learned_tokens_need_positions_beside_the_longest_prompt(tmp_path, config):
    said = (
        r"^4 learned tokens and max_length=61 do not fit the model's 64 positions; use a "
        r"max_length of at most 60, or fewer learned tokens$"
    )
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, tiny_seq2seq("bart"), uneven_task(), config, max_length=61)
    assert train(tmp_path, tiny_seq2seq("bart"), uneven_task(), config, max_length=60, start=False)
    # Relative positions have no end.
    assert train(tmp_path, tiny_seq2seq("t5"), uneven_task(), config, max_length=500, start=False)


def test_a_prompt_that_fills_the_positions_has_room_for_learned_tokens(tmp_path):
    long = Example("x" * 200, "yes", ("yes",))
    task = GenerationTask("long", True, [long] * 8, [long])
    run = train(tmp_path, tiny_seq2seq("bart"), task, EMBED, max_length=60, max_steps=1)
    run.result(60)


@pytest.mark.parametrize("config", [FullConfig(), FullConfig(top_layers=1), BitFitConfig(True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_place(tmp_path, config, dtype):
    lm = tiny_seq2seq()
    lm.model.to(dtype)
    run = train(tmp_path, lm, uneven_task(), config)
    assert len(run.result(60).losses) == 3
    assert any(f"are {str(dtype)[6:]} in the model" in note for note in run.notes)


def test_models_that_cannot_be_trained_so_are_refused(tmp_path):
    lm = tiny_seq2seq()
    lm.model.config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match=r"tiny-t5 does not know what its decoder starts with"):
        train(tmp_path, lm, uneven_task())
    del lm.model.config.decoder_start_token_id  # as in T5's config where nobody has set it
    with pytest.raises(ConfigError, match=r"tiny-t5 does not know what its decoder starts with"):
        train(tmp_path, lm, uneven_task())
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 259}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**sizes, **heads, **special)
    whisper = transformers.WhisperForConditionalGeneration(config)
    with pytest.raises(ConfigError, match=r"\(WhisperForConditionalGeneration\) reads no text"):
        train(tmp_path, LoadedModel.given(whisper, framing_tokenizer(), "hears"), uneven_task())


@pytest.mark.parametrize("pad", [0, 1])
def test_a_decoder_that_starts_with_a_texts_end_is_trained_whatever_pads(tmp_path, pad):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 259}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": pad}
    config = transformers.MBartConfig(**sizes, **heads, encoder_ffn_dim=16, decoder_ffn_dim=16)
    mbart = transformers.MBartForConditionalGeneration(config)
    lm = LoadedModel.given(mbart, framing_tokenizer(), "mbart")
    run = train(tmp_path, lm, uneven_task(), max_steps=1, eval_examples=0)
    assert len(run.result(60).losses) == 1
