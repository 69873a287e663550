"""What is refused before a run has made or changed anything: positions, tokens, lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lora_lab as ll
from lora_lab.errors import ConfigError, LoraLabError, ModelError, TaskError
from lora_lab.models import LoadedModel
from lora_lab.tasks import (
    ClassificationTask,
    Example,
    GenerationTask,
    LabeledText,
    LanguageModelingTask,
)
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

ROWS = [Example("q" * i, "a" * i, ("a" * i,)) for i in range(1, 9)]
LONG = [Example("word " * 30 + str(i), "a", ("a",)) for i in range(8)]


def written(rows: list[Example]) -> GenerationTask:
    return GenerationTask("t", False, rows, rows[:2])


def refused(
    folder: Path, kind: type[LoraLabError], lm: LoadedModel, task: Any, **settings: Any
) -> str:
    """Return the line of a training that must be refused; nothing may have changed by then."""
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with pytest.raises(kind) as raised:
        ll.train(lm, task, ll.LoraConfig(r=2), output_dir=folder, max_steps=2, **settings)
    assert not any(folder.iterdir())
    assert ll.attached(lm.model) == {}
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_a_model_that_came_without_its_tokenizer_is_not_called_one_that_writes_no_text(
    tmp_path: Path,
) -> None:
    lm = dataclasses.replace(tiny_lm(), tokenizer=None)
    texts = LanguageModelingTask("texts", False, ["a b c"] * 4, ["a b"])
    for task in (tiny_task(), texts):
        line = refused(tmp_path, ConfigError, lm, task)
        assert line.startswith("tiny-llama has no tokenizer; save one in its folder")


# Positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "opt", "bigcode", "openai-gpt", "codegen", "mpt"])
def test_max_length_beyond_the_positions_of_a_table(tmp_path: Path, name: str) -> None:
    lm = LoadedModel.given(tiny(name, vocab_size=259), tiny_tokenizer(), f"tiny-{name}")
    with pytest.raises((IndexError, RuntimeError)):  # what it would have been in the first step
        lm.model(torch.zeros(1, 65, dtype=torch.int64))
    line = refused(tmp_path, ConfigError, lm, written(LONG), max_length=200)
    assert line == (
        f"max_length=200 is more than the 64 positions of tiny-{name}; use a max_length of at most "
        "64"
    )
    lm.model(torch.zeros(1, 64, dtype=torch.int64))
    ll.train(lm, written(ROWS), output_dir=tmp_path, max_length=64, start=False)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_computed_positions_have_no_end(tmp_path: Path, name: str) -> None:
    lm = LoadedModel.given(tiny(name, vocab_size=259), tiny_tokenizer(), f"tiny-{name}")
    settings = {"max_length": 200, "max_steps": 1, "eval_examples": 0}
    run = ll.train(lm, written(LONG), output_dir=tmp_path, **settings)
    run.result(60)
    said = "the longest training example has 154 tokens, and the model was trained with 64"
    # The last note is that one step of a random model ends at chance.
    assert run.notes[:-1] == ([said] if name == "llama" else [])


def test_what_t5_names_is_the_length_of_its_training(tmp_path: Path) -> None:
    lm = tiny_seq2seq("t5")
    lm.model.config.n_positions = 64  # as in the files of T5 and Flan-T5
    long = [Example(row.prompt, "yes", ("yes",)) for row in LONG]
    settings = {"max_length": 200, "max_steps": 1, "eval_examples": 0}
    run = ll.train(lm, written(long), output_dir=tmp_path, **settings)
    run.result(60)
    assert not any("tokens" in note for note in run.notes)


# Tokens ------------------------------------------------------------------------------------------


def with_tokens(*tokens: str, pad: bool = True) -> Any:
    tokenizer = tiny_tokenizer(pad=pad)
    if tokens:
        tokenizer.add_tokens(list(tokens))
    return tokenizer


def saved(folder: Path, model: Any, tokenizer: Any) -> LoadedModel:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ll.load_model(folder, device="cpu")


def test_an_added_pad_token_without_a_row(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lm = saved(tmp_path / "model", tiny_llama(vocab_size=len(tokenizer) - 1), tokenizer)
    runs = tmp_path / "runs"
    runs.mkdir()
    line = refused(runs, ModelError, lm, written(ROWS))
    assert line == (
        "the tokenizer has 260 tokens with ids up to 259 ('[PAD]') and the model embeds 259; call "
        "model.resize_token_embeddings(260) first, or set tokenizer.pad_token = "
        "tokenizer.eos_token"
    )
    with pytest.raises(ModelError, match=r"resize_token_embeddings\(260\) first$"):
        LoadedModel.given(lm.model, lm.tokenizer)
    # Either of what the line proposes does.
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    ll.train(lm, written(ROWS), output_dir=runs, start=False)
    lm.tokenizer.pad_token = "[PAD]"
    lm.model.resize_token_embeddings(260)
    ll.train(lm, written(ROWS), output_dir=runs, start=False)


def test_a_token_that_is_not_used_is_no_matter(tmp_path: Path) -> None:
    # As Gemma's token for an image, beyond the rows of its models of text.
    lm = saved(tmp_path / "model", tiny_llama(), with_tokens("<image>"))
    (runs := tmp_path / "runs").mkdir()
    ll.train(lm, written(ROWS), output_dir=runs, max_steps=1).result(60)
    ll.detach(lm.model)
    for place in ("prompt", "completion"):
        texts = {"prompt": "a", "completion": "b", place: "an <image>"}
        far = [*ROWS * 5, Example(**texts, references=("b",))]
        with pytest.raises(ModelError) as raised:
            ll.train(lm, written(far), output_dir=runs, start=False)
        assert str(raised.value) == (
            "the tokenizer has 260 tokens with ids up to 259 ('<image>') and the model embeds 259; "
            "call model.resize_token_embeddings(260) first"
        )


def test_ids_with_holes_are_known_by_the_highest(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(vocab_size=300), tiny_tokenizer()
    vocab = {token: id_ if token != "a" else 400 for token, id_ in tokenizer.get_vocab().items()}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    holes = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    assert len(holes) == 259 < 300
    said = r"259 tokens with ids up to 400 \('a'\) and the model embeds 300; .*embeddings\(401\)"
    with pytest.raises(ModelError, match=said):
        LoadedModel.given(model, holes)
    lm = saved(tmp_path / "model", model, holes)
    (runs := tmp_path / "runs").mkdir()
    assert "embeddings(401) first" in refused(runs, ModelError, lm, written(ROWS))


def test_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    lm = saved(tmp_path / "model", tiny_llama(vocab_size=120), tiny_tokenizer())
    (runs := tmp_path / "runs").mkdir()
    line = refused(runs, ModelError, lm, written(ROWS))
    assert "259 tokens" in line
    assert "the model embeds 120; load the model's own tokenizer, or call" in line


def test_fewer_outputs_than_inputs(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.model.lm_head = torch.nn.Linear(32, 60, bias=False)
    assert "the model embeds 60" in refused(tmp_path, ModelError, lm, written(ROWS))


@pytest.mark.parametrize("pad", [-1, 259])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_a_classifier_with_padding_that_is_no_token(tmp_path: Path, kind: str, pad: int) -> None:
    lm = tiny_classifier(kind)
    lm.model.config.pad_token_id = pad
    line = refused(tmp_path, ModelError, lm, tiny_classes(), max_length=64)
    assert line == (
        f"batches are padded with token {pad}, and the model embeds tokens 0 to 258; set "
        f"model.config.pad_token_id (now {pad}) to the tokenizer's (0)"
    )


def test_a_decoder_of_an_encoder_decoder_model_with_padding_that_is_no_token(
    tmp_path: Path,
) -> None:
    lm = tiny_seq2seq("bart")
    lm.model.config.pad_token_id = -1
    assert "padded with token -1" in refused(tmp_path, ModelError, lm, uneven_task(), max_length=64)


@pytest.mark.parametrize("pad", [-1, None, 2])
def test_a_decoder_does_not_care_what_its_config_pads_with(tmp_path: Path, pad: int | None) -> None:
    """The loss is that of the rows one by one: padding is masked, the end is learned."""
    lm = LoadedModel.given(tiny_llama(), tiny_tokenizer(pad=False), "tiny")
    lm.model.config.pad_token_id = pad
    if pad == 2:
        lm.tokenizer.pad_token = lm.tokenizer.eos_token
    total = count = 0.0
    for row in ROWS:
        prompt, completion = (
            lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"{row.prompt}\n", row.completion)
        )
        ids = torch.tensor([[*prompt, *completion, 2]])
        with torch.no_grad():
            logits = lm.model(ids).logits[0].double()
        chosen = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        total, count = total - float(chosen.sum()), count + len(chosen)
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "eval_examples": 8}
    task = GenerationTask("t", False, ROWS, ROWS)
    found = ll.train(lm, task, output_dir=tmp_path, **settings).result(60)
    assert found.metrics["loss_before"] == pytest.approx(total / count, rel=1e-5)
    assert found.losses[0][1] == pytest.approx(total / count, rel=1e-5)


# Lengths -----------------------------------------------------------------------------------------


def test_too_long_is_an_error_when_asked_for(tmp_path: Path) -> None:
    rows = [*tiny_task().train, *(Example("p" * n, "c", ("c",)) for n in (60, 70))]
    line = refused(tmp_path, TaskError, tiny_lm(), written(rows), max_length=32, too_long="error")
    assert line == (
        "2 of 66 training examples are longer than max_length=32; max_length=73 would do, or set "
        "too_long='cut' or 'drop'"
    )


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_nothing_fits(tmp_path: Path, too_long: str) -> None:
    rows = [Example("p", "c" * 30, ("c",))] * 3
    line = refused(tmp_path, TaskError, tiny_lm(), written(rows), max_length=16, too_long=too_long)
    assert line.startswith("3 of 3 training examples were left out: ")
    assert line.endswith("max_length=16; max_length=33 would do")


def test_texts_with_a_class_too(tmp_path: Path) -> None:
    rows = [LabeledText("a" * 80, "early"), *tiny_classes().train]
    task = ClassificationTask("halves", True, ("early", "late"), rows, tiny_classes().validation)
    line = refused(tmp_path, TaskError, tiny_classifier(), task, too_long="error")
    assert line == (
        "1 of 65 training examples are longer than max_length=64; the longest has 82 tokens, and "
        "the model can read 64, or set too_long='cut' or 'drop'"
    )


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="too_long is 'truncate'; use 'cut', 'drop' or 'error'"):
        ll.TrainingConfig(too_long="truncate")  # type: ignore[arg-type]
    assert "too_long" not in ll.TrainingConfig().to_dict()  # older versions can read it


def test_smoothing_needs_a_cross_entropy(tmp_path: Path) -> None:
    line = refused(tmp_path, ConfigError, tiny_scorer(), tiny_scores(), label_smoothing_factor=0.1)
    assert line.startswith("label_smoothing_factor smooths a cross-entropy")
    assert "(squared error)" in line
