"""Tiny classifiers, their tokenizer, and a task that they learn in a second or two."""

from __future__ import annotations

import random
import string

import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from lora_lab.models import LoadedModel
from lora_lab.tasks import ClassificationTask, LabeledText
from tests.helpers.tiny_models import tiny_config
from tests.helpers.tiny_text import tiny_tokenizer

NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "t5": {"dropout_rate": 0.0, "classifier_dropout": 0.0},
    "llama": {},
}


def framing_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny one, that puts texts into a frame as BERT's does: <s> a </s> b </s>."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return tokenizer


def tiny_classifier(kind: str = "bert", classes: int = 2, seed: int = 0) -> LoadedModel:
    """A random model of 2 layers, 32 wide, with a head, without dropout."""
    config = tiny_config(kind, vocab_size=259, num_labels=classes, **NO_DROPOUT[kind])
    config.eos_token_id = 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
    return LoadedModel.given(model.eval(), framing_tokenizer(), f"tiny-{kind}")


def tiny_classes(training: int = 64, held_out: int = 16, pairs: bool = False) -> ClassificationTask:
    """Letters of the first half of the alphabet, or of the second."""
    rng = random.Random(0)
    halves = {"early": string.ascii_lowercase[:13], "late": string.ascii_lowercase[13:]}

    def example(label: str) -> LabeledText:
        first, second = ("".join(rng.choices(halves[label], k=rng.randint(3, 9))) for _ in "ab")
        return LabeledText(first, label, second if pairs else None)

    rows = [example("late" if i % 2 else "early") for i in range(training + held_out)]
    return ClassificationTask("halves", True, ("early", "late"), rows[:training], rows[training:])
