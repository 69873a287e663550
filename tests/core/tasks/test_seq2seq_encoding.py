"""From examples to tensors for encoder-decoder models: two sides, framed, cut and padded."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import processors

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.seq2seq_encoding import collate_pairs, decoder_inputs, encode_pairs
from tests.helpers.tiny_seq2seq import framing_tokenizer, tiny_seq2seq
from tests.helpers.tiny_text import tiny_tokenizer

TASK = GenerationTask("t", False, (), ())
PLAIN = GenerationTask("t", False, (), (), template="plain")
EXAMPLE = Example("name[A]", "A is here.", ("A is here.",))
TINY = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 2, "dropout": 0.0}
SIZES = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
SIZES |= {"encoder_layers": 1, "decoder_layers": 1}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_many_are_what_each_is_alone(kind: str) -> None:
    texts = ["a", "", "longer than the others", " b ", "<s>c", "d</s>"]
    examples = [Example(asked, written, ("",)) for asked in texts for written in texts]
    tokenizer = framing_tokenizer(kind)
    together, cut = encode_pairs(examples, TASK, tokenizer, 25)
    assert together == [encode_pairs([e], TASK, tokenizer, 25)[0][0] for e in examples]
    assert cut == sum(item["cut"] > 0 for item in together)
    with pytest.raises(TaskError, match="has half of a character"):
        encode_pairs([EXAMPLE, Example("a", "\ud83d", ("",))], TASK, tokenizer, 25)


@pytest.mark.parametrize(
    ("kind", "before"), [("t5", ""), ("bart", "<s>")], ids=["T5's frame", "BART's frame"]
)
def test_each_side_is_framed_as_the_tokenizer_does_it(kind, before):
    tokenizer = framing_tokenizer(kind)
    [encoded], cut = encode_pairs([EXAMPLE], TASK, tokenizer, 64)
    assert tokenizer.decode(encoded["input_ids"]) == f"{before}name[A]\n</s>"
    assert tokenizer.decode(encoded["labels"]) == f"{before}A is here.</s>"
    assert encoded["cut"] == cut == 0


def test_an_end_that_the_tokenizer_does_not_set_is_learned_all_the_same():
    tokenizer = tiny_tokenizer()
    [encoded], _ = encode_pairs([EXAMPLE], TASK, tokenizer, 64)
    assert tokenizer.decode(encoded["input_ids"]) == "name[A]\n"
    assert tokenizer.decode(encoded["labels"]) == "A is here.</s>"


@pytest.mark.parametrize(("kind", "before"), [("t5", ""), ("bart", "<s>")])
def test_no_frame_is_set_twice(kind, before):
    tokenizer = framing_tokenizer(kind)
    example = Example(f"{before}name[A]</s>", "A is here.</s>", ("A is here.",))
    [encoded], _ = encode_pairs([example], PLAIN, tokenizer, 64)
    assert tokenizer.decode(encoded["input_ids"]) == f"{before}name[A]</s>"
    assert tokenizer.decode(encoded["labels"]) == f"{before}A is here.</s>"


def test_a_language_behind_the_end_stays_behind_it():
    """MBart's old frame: the text, </s>, the language's token."""
    tokenizer = framing_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> <s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    [encoded], _ = encode_pairs([EXAMPLE], TASK, tokenizer, 64)
    assert encoded["labels"][-2:] == [2, 1]
    assert encoded["labels"].count(2) == 1


@pytest.mark.parametrize(("kind", "kept"), [("t5", "ame[A]\n"), ("bart", "me[A]\n")])
def test_a_long_prompt_is_cut_from_its_start_inside_the_frame(kind, kept):
    tokenizer = framing_tokenizer(kind)
    short = Example("b", "c", ("c",))
    (first, second), cut = encode_pairs(
        [Example("name[A]", "A", ("A",)), short], TASK, tokenizer, 8
    )
    assert len(first["input_ids"]) == 8
    assert tokenizer.decode(first["input_ids"], skip_special_tokens=True) == kept
    assert tokenizer.decode(first["input_ids"]).endswith("\n</s>")
    assert (first["cut"], second["cut"], cut) == (8 - len(kept), 0, 1)


def test_each_side_has_the_whole_length():
    """Prompt 9, completion 11 tokens: together more than 11."""
    [encoded], cut = encode_pairs([EXAMPLE], TASK, framing_tokenizer(), 11)
    assert (len(encoded["input_ids"]), len(encoded["labels"]), cut) == (9, 11, 0)
    with pytest.raises(TaskError, match=r"has 11 tokens and max_length=10; raise max_length, or"):
        encode_pairs([EXAMPLE], TASK, framing_tokenizer(), 10)


def test_what_is_missing_is_named():
    with pytest.raises(TaskError, match="the model has no tokenizer"):
        encode_pairs([EXAMPLE], TASK, None, 64)
    with pytest.raises(TaskError, match="2 tokens have no room for a prompt beside 2 special ones"):
        encode_pairs([EXAMPLE], TASK, framing_tokenizer("bart"), 2)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="no end-of-sequence token"):
        encode_pairs([EXAMPLE], TASK, tokenizer, 64)


def test_both_sides_are_padded_on_the_right_each_to_its_longest():
    rows, _ = encode_pairs([EXAMPLE, Example("a", "b", ("b",))], TASK, framing_tokenizer(), 64)
    batch = collate_pairs(rows, 0, lambda labels: labels + 1000)
    assert {name: tensor.shape for name, tensor in batch.items()} == {
        "input_ids": (2, 9),
        "attention_mask": (2, 9),
        "labels": (2, 11),
        "decoder_input_ids": (2, 11),
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"][1].tolist() == rows[1]["input_ids"] + [0] * 6
    assert batch["attention_mask"].sum(1).tolist() == [9, 3]
    assert batch["labels"][1].tolist() == rows[1]["labels"] + [-100] * 9
    assert torch.equal(batch["decoder_input_ids"], batch["labels"] + 1000)


def _model(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    start = {"decoder_start_token_id": 2}
    if kind == "m2m100":  # it has no name for what it does with labels
        config = transformers.M2M100Config(**TINY, **SIZES, **HEADS, **start)
        return transformers.M2M100ForConditionalGeneration(config).eval()
    if kind == "mbart":  # starts with the language at a text's end
        config = transformers.MBartConfig(**TINY, **SIZES, **HEADS)
        return transformers.MBartForConditionalGeneration(config).eval()
    return tiny_seq2seq(kind).model


@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "m2m100"])
def test_the_decoder_reads_what_the_model_makes_of_labels(kind):
    model = _model(kind)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    labels = torch.tensor([[11, 12, 13, 2, 1], [14, 2, 1, -100, -100]])
    own = decoder_inputs(model, labels)
    with torch.no_grad():
        expected = model(**inputs, labels=labels).logits
        found = model(**inputs, decoder_input_ids=own, use_cache=False).logits
    kept = labels != -100
    assert torch.equal(found[kept], expected[kept])
    assert found[kept].std() > 0


def test_a_decoder_without_a_start_says_so():
    model = _model("m2m100")
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        decoder_inputs(model, torch.tensor([[1]]))
