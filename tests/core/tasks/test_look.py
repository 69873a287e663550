"""A look at the data: what it counts is right, and what was planted is found."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lora_lab as ll
from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, Example, GenerationTask, LabeledText, Task
from lora_lab.tasks.chat_template import Chat
from lora_lab.tasks.chats import ChatTask
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.families.regression import RegressionTask, ScoredText
from lora_lab.tasks.look import Look
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

WORDS = ["river", "stone", "garden", "winter", "letter", "bridge", "copper", "market", "window"]


def row(rng: random.Random) -> Example:
    """A question and a whole sentence; nothing is wrong with it."""
    a, b, c = rng.sample(WORDS, 3)
    asked = f"What lies behind the {a} {rng.randint(1, 10**6)}?"
    answer = f"Behind the {a} lies a {b}{rng.choice(['', f' and a {c}'])}."
    return Example(asked, answer, (answer,))


def clean(count: int = 200, held_out: int = 20) -> GenerationTask:
    rng = random.Random(0)
    rows = [row(rng) for _ in range(count + held_out)]
    return GenerationTask("clean", True, rows[:count], rows[count:])


def changed(task: GenerationTask, changes: dict[int, dict[str, str]]) -> GenerationTask:
    rows = list(task.train)
    for place, fields in changes.items():
        rows[place] = replace(rows[place], **fields)
    return replace(task, train=rows)


def found(task: Task, model: Any = None, max_length: int = 128) -> dict[str, Any]:
    look = task.look(model or tiny_tokenizer(), max_length=max_length)
    return {finding.kind: finding for finding in reversed(look.findings)}  # the worst of a kind


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert found(clean()) == {}
    assert found(tiny_classes(), tiny_classifier(), 64) == {}


# Planted defects of prompts and completions ------------------------------------------------------

TASK = clean()
MOJIBAKE = "Le café à côté".encode().decode("cp1252")
CYRILLIC = "Привет, мир".encode("cp1251").decode("latin-1")
PLANTED: dict[str, tuple[str, dict[int, dict[str, str]]]] = {
    "answers cut in a sentence": (
        "cut_answers",
        {n: {"completion": TASK.train[n].completion[:-6]} for n in (3, 50, 77)},
    ),
    "answers cut with dots": (
        "cut_answers",
        {n: {"completion": f"{TASK.train[n].completion[:-8]}..."} for n in (3, 50)},
    ),
    "answers cut at one length": (
        "cut_answers",
        {n: {"completion": ("word " * 40)[:99] + "."} for n in (3, 50, 77, 90)},
    ),
    "copies": (
        "duplicates",
        {
            n: {"prompt": TASK.train[0].prompt, "completion": TASK.train[0].completion}
            for n in (9, 10, 11)
        },
    ),
    "copies but for case and white space": (
        "duplicates",
        {
            8: {
                "prompt": TASK.train[0].prompt.upper() + " ",
                "completion": TASK.train[0].completion.replace(" ", "  "),
            }
        },
    ),
    "another answer to one prompt": (
        "several_answers",
        {7: {"prompt": TASK.train[0].prompt}},
    ),
    "held-out prompts that are trained on": (
        "leaked",
        {n: {"prompt": TASK.validation[n].prompt} for n in (0, 1)},
    ),
    "empty answers": ("empty_answers", {5: {"completion": ""}, 6: {"completion": " \n"}}),
    "empty prompts": ("empty_prompts", {5: {"prompt": " "}}),
    "echoes": ("echoes", {n: {"completion": TASK.train[n].prompt} for n in (1, 2)}),
    "UTF-8 read as Windows-1252": ("wrong_encoding", {4: {"prompt": MOJIBAKE}}),
    "Cyrillic read as Latin-1": ("wrong_encoding", {4: {"completion": f"{CYRILLIC}."}}),
    "what could not be decoded": ("wrong_encoding", {4: {"prompt": "caf\ufffd?"}}),
    "control characters": ("control_characters", {4: {"prompt": "a\x00b?"}}),
    "marks that nobody sees": ("control_characters", {4: {"prompt": "\ufeffWhat?"}}),
    "white space": (
        "white_space",
        {n: {"completion": f" {TASK.train[n].completion}"} for n in (2, 3)},
    ),
    "the end twice": ("twice", {n: {"completion": "Yes, it is so.</s>"} for n in (2, 30)}),
    "prompts longer than max_length": (
        "too_long",
        {n: {"prompt": "Why? " * 40} for n in (1,)} | {2: {"prompt": "How? " * 40}},
    ),
    "answers longer than max_length": ("left_out", {1: {"completion": "So it is. " * 40}}),
}


ALSO = {"answers cut at one length": {"too_long"}}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_found_and_nothing_else(name: str) -> None:
    kind, changes = PLANTED[name]
    findings = found(changed(TASK, changes))
    assert kind in findings
    finding = findings[kind]
    others = {each.kind for each in findings.values() if each.severity != "note"}
    assert others - {kind} <= ALSO.get(name, set())
    assert finding.count == len(changes)
    if kind != "leaked":
        assert list(finding.rows) == sorted(changes)[:3]
    line = str(finding)
    assert "\n" not in line
    assert f"{len(changes)} of " in line
    assert line.endswith(finding.fix)


def test_a_constant_answer() -> None:
    same = changed(TASK, {n: {"completion": "Yes."} for n in range(200)})
    assert found(same)["constant_answer"].severity == "error"
    mostly = changed(TASK, {n: {"completion": "Yes."} for n in range(190)})
    assert "190 of 200" in str(found(mostly)["one_answer"])
    assert "95%" in str(found(mostly)["one_answer"])


# Planted defects of classes and numbers ----------------------------------------------------------


def test_one_class_dominates() -> None:
    rows = [LabeledText(f"text {n}", "spam" if n < 5 else "ham") for n in range(100)]
    task = ClassificationTask("mail", False, ("ham", "spam"), rows, [LabeledText("x", "ham")])
    findings = found(task)
    assert "95 of 100 training examples have the same class, 'ham'" in str(findings["one_answer"])
    assert "no validation example has the class 'spam'" in str(findings["missing_class"])
    look = task.look(tiny_tokenizer())
    assert (
        look.classes
        == {
            "ham": {"training": 95, "validation": 1},
            "spam": {"training": 5},
        }
        or look.classes["spam"]["training"] == 5
    )


def test_one_class_only_and_classes_that_nobody_tells_apart() -> None:
    rows = [LabeledText(f"text {n}", "ham") for n in range(30)]
    task = ClassificationTask("mail", False, ("ham", "spam"), rows, rows[:2])
    findings = found(task)
    assert findings["constant_answer"].severity == "error"
    assert findings["missing_class"].severity == "error"
    for labels in (("ham", "ham "), ("Spam", "spam"), ("not  so", "not so")):
        rows = [LabeledText(f"text {n}", labels[n % 2]) for n in range(40)]
        findings = found(ClassificationTask("mail", False, labels, rows, rows[:0]))
        assert f"the classes {labels[0]!r} and {labels[1]!r} differ in" in str(
            findings["classes_alike"]
        )
        assert ("white_space" in findings) == ("ham" in labels)


def test_a_full_stop_that_is_missing_breaks_nothing_off() -> None:
    changes = {n: {"completion": TASK.train[n].completion[:-1]} for n in range(0, 200, 10)}
    assert found(changed(TASK, changes)) == {}
    broken = {
        n: {"completion": f"Behind the {'river' if n % 20 else 'wint'}{end}"}
        for n, end in zip(range(0, 200, 20), itertools.cycle((" lies a", " lies", " lies a gard")))
    }
    finding = found(changed(TASK, changes | broken))["cut_answers"]
    assert (finding.count, finding.rows) == (len(broken), (0, 20, 40))


def test_names_of_classes_are_not_broken_off() -> None:
    labels = ("refund", "top_up_failed_and_nobody_knows_why", "card_lost", "card_stolen")
    rows = [LabeledText(f"text {n}", labels[n % 4]) for n in range(80)]
    assert found(ClassificationTask("bank", False, labels, rows, rows[:4])).keys() == {"leaked"}


def test_the_same_text_with_two_classes() -> None:
    task = tiny_classes()
    other = {"early": "late", "late": "early"}[task.train[0].label]
    rows = [*task.train, replace(task.train[0], label=other)]
    finding = found(replace(task, train=rows), tiny_classifier(), 64)["contradictions"]
    assert (finding.count, finding.rows, finding.severity) == (1, (64,), "warning")


def test_a_number_that_never_changes() -> None:
    rows = [ScoredText(f"text {n}", 2.5) for n in range(30)]
    assert "constant_answer" in found(RegressionTask("stars", False, rows, rows[:0]))
    assert "held_out" in found(RegressionTask("stars", False, rows, rows[:0]))


# What goes with the model ------------------------------------------------------------------------


def test_words_that_the_tokenizer_does_not_know() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "what": 2, "is": 3}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    rows = [Example("what is x", "y", ("y",)), Example("is z", "what", ("what",))]
    finding = found(GenerationTask("t", True, rows, rows[:0]), tokenizer)["unknown"]
    # what is x y </s>, is z what </s>
    assert str(finding).startswith("3 of 9 tokens (33.3 %) are unknown to the tokenizer (<unk>)")


def test_positions_and_rows_of_the_model() -> None:
    gpt2 = ll.LoadedModel.given(tiny("gpt2", vocab_size=259), tiny_tokenizer(), "gpt2")
    assert found(clean(), gpt2)["positions"].severity == "error"
    lm = tiny_lm()
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert "resize_token_embeddings(260)" in str(found(clean(), lm)["vocabulary"])
    big = ll.LoadedModel.given(tiny_llama(vocab_size=1000), tiny_tokenizer(), "big")
    assert "259 tokens and the model embeds 1000" in str(found(clean(), big)["vocabulary"])


def test_half_of_a_character_is_found() -> None:
    findings = found(changed(TASK, {3: {"prompt": "so \ud83d?"}}))
    assert (findings["refused"].count, findings["refused"].rows) == (1, (3,))
    assert findings["control_characters"].rows == (3,)


def test_what_cannot_be_encoded_is_one_finding() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    finding = found(clean(), tokenizer)["refused"]
    assert finding.count == 200
    assert str(finding).startswith("200 of 200 training examples cannot be encoded: the tokenizer")


def test_texts_alone_and_chats() -> None:
    texts = [f"{row.prompt} {row.completion}" for row in TASK.train]
    alone = LanguageModelingTask("texts", False, [*texts, texts[0]], texts[:1])
    findings = found(alone, max_length=32)  # they are put end to end: nothing is too long
    assert set(findings) == {"duplicates", "leaked"}
    look = alone.look(tiny_tokenizer(), max_length=32)
    assert look.would_do == max(map(len, texts)) + 1
    assert "over max_length" not in str(look)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    asked = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    chats = [Chat(tuple(asked)), Chat((*asked, *asked)), Chat(tuple(asked))]
    look = ChatTask("chats", False, chats, chats[1:2]).look(tokenizer)
    assert {finding.kind for finding in look.findings} >= {"duplicates", "leaked"}
    learned = "".join(token.text for token in look.first if token.learned)
    assert "I." in learned
    assert "Who?" not in learned


# Numbers and shapes ------------------------------------------------------------------------------


def test_lengths_are_those_of_the_texts() -> None:
    look = TASK.look(tiny_tokenizer(), max_length=64)
    lengths = sorted(len(f"{row.prompt}\n{row.completion}") + 1 for row in TASK.train)
    assert look.lengths == dict(sorted(Counter(lengths).items()))
    assert look.would_do == lengths[-1]
    assert [look.percentile(p) for p in (50, 90, 99)] == [lengths[n] for n in (99, 179, 197)]
    assert look.too_long == sum(length > 64 for length in lengths)
    bars = look.histogram()
    assert len(bars) <= 12
    assert all(a.end + 1 == b.start for a, b in itertools.pairwise(bars))
    assert [bar.examples for bar in bars] == [
        sum(bar.start <= length <= bar.end for length in lengths) for bar in bars
    ]
    assert (bars[0].start, sum(bar.examples for bar in bars)) == (lengths[0], 200)


def test_the_first_example_is_that_which_is_trained_on() -> None:
    first = TASK.train[0]
    look = TASK.look(tiny_lm())
    assert "".join(t.text for t in look.first if not t.learned) == f"{first.prompt}\n"
    assert "".join(t.text for t in look.first if t.learned) == f"{first.completion}</s>"
    both = TASK.look(tiny_seq2seq("t5"))
    assert "".join(t.text for t in both.first if t.learned) == f"{first.completion}</s>"
    assert not any(t.learned for t in tiny_classes().look(tiny_classifier()).first)


def test_words_of_the_first_example_stand_apart_whatever_the_tokenizer() -> None:
    """WordPiece's tokens lose their space when each is read alone: "thereisapub"."""
    words = {"[UNK]": 0, "the": 1, "pub": 2, "row": 3, "##dy": 4, ",": 5, "</s>": 6}
    made = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    pieces = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", eos_token="</s>", pad_token="[UNK]"
    )
    rows = [Example("the pub,", "rowdy pub", ("rowdy pub",))]
    look = GenerationTask("pubs", True, rows, rows).look(pieces)
    text = "".join(token.text for token in look.first)
    assert text.split() == ["the", "pub,", "rowdy", "pub", "</s>"]
    assert "".join(token.text for token in look.first if token.learned).strip().startswith("rowdy")


def test_a_decoders_two_sides_are_measured_apart() -> None:
    look = TASK.look(tiny_seq2seq("t5"))
    longest = max(max(len(f"{row.prompt}\n"), len(row.completion)) + 1 for row in TASK.train)
    assert look.would_do == longest


def test_a_sample_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lab.tasks.look.SAMPLE", 50)
    look = TASK.look(tiny_tokenizer())
    assert (look.sample, sum(look.lengths.values()), look.rows["training"]) == (50, 50, 200)
    assert "a sample of 50 examples (25.0 %)" in str(look)


def test_it_is_printed_shown_and_written() -> None:
    look: Look = changed(TASK, {1: {"prompt": "<b>" * 80, "completion": ""}}).look(tiny_tokenizer())
    text = str(look)
    assert text.startswith("clean: 200 training, 20 validation")
    assert "error: 1 of 200 training answers are empty (rows 1); fill them in" in text
    assert "over max_length" in text
    assert "nothing to fix was found" in str(TASK.look(tiny_tokenizer()))
    page = look._repr_html_()
    assert "<b>" not in page
    assert "<mark>" in page
    plain = json.loads(json.dumps(look.to_json()))
    assert plain["rows"] == {"training": 200, "validation": 20, "test": 0}
    assert plain["findings"][0]["kind"] == "empty_answers"
    assert plain["percentiles"]["50"] == look.percentile(50)


def test_the_length_is_that_of_a_training() -> None:
    assert TASK.look(tiny_tokenizer()).max_length == ll.TrainingConfig().max_length


@pytest.mark.parametrize("given", ["smollm2-135m", None, tiny_llama()])
def test_what_has_no_tokenizer_is_not_looked_with(given: Any) -> None:
    with pytest.raises(TaskError, match="look takes a tokenizer, or what load_model returns, and"):
        TASK.look(given)
    with pytest.raises(TaskError, match="max_length is 0; it must be at least 1 token"):
        TASK.look(tiny_tokenizer(), max_length=0)
