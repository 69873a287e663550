"""Which tokens of a conversation are learned: those of TRL's assistant_only_loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task
from lora_lab.tasks.chat_template import Chat, chat_tokens, turn_end
from lora_lab.tasks.encoding import chat_prompt_ids, encode_chat
from tests.helpers.chat_templates import CHATML, chat_tokenizer, learned_text, template, turns
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "double",
        "description": "Twice a number",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "double", "arguments": {"n": 3}}}],
}
WITH_TOOLS = [
    *turns("twice 3?"),
    CALL,
    {"role": "tool", "name": "double", "content": "6"},
    {"role": "assistant", "content": "It is 6."},
    *turns("thanks", "welcome"),
]
ONE, SEVERAL = turns("hi", "yo"), turns("hi", "yo", " and\nmore ", "  é\n\nwell ", "x", "y")
SYSTEM = turns("hi", "yo", "x", "y", system="be brief")
TAKES_SYSTEM = ("qwen3", "qwen2_5", "llama3", "phi3", "lfm2", "glm4moe")
TEMPLATES = (*TAKES_SYSTEM, "gemma", "gemma3")


def trl_rows(
    tokenizer: Any, rows: list[dict[str, Any]], folder: Path, **config: Any
) -> list[tuple[list[int], list[int]]]:
    """Return what TRL trains on: input_ids and labels."""
    arguments = SFTConfig(
        output_dir=str(folder),
        assistant_only_loss=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"max_length": None, **config},
    )
    trainer = SFTTrainer(
        tiny_llama(vocab_size=len(tokenizer)),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def ours(tokenizer: Any, chat: Chat, max_length: int = 10_000) -> tuple[list[int], list[int]]:
    encoded = encode_chat(chat, tokenizer, max_length)
    return encoded["input_ids"], encoded["labels"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_learned_tokens_are_trls(name: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template(f"{name}_training"), adds_bos=True)
    chats = [ONE, SEVERAL, *([SYSTEM] if name in TAKES_SYSTEM or name == "gemma3" else [])]
    expected = trl_rows(tokenizer, [{"messages": chat} for chat in chats], tmp_path)
    assert [ours(tokenizer, Chat(tuple(chat))) for chat in chats] == expected
    assert all(0 < sum(label != -100 for label in labels) < len(ids) for ids, labels in expected)


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "lfm2", "glm4moe"])
def test_tools_and_their_answers_are_trls(name: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template(f"{name}_training"))
    rows = [{"messages": WITH_TOOLS, "tools": [TOOL]}]
    chat = Chat(tuple(WITH_TOOLS), (TOOL,))
    assert [ours(tokenizer, chat)] == trl_rows(tokenizer, rows, tmp_path)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma", "phi3"])
def test_of_prompt_and_completion_the_completion_is_learned_as_trl_does(
    name: str, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer(template(f"{name}_training"))
    rows = [{"prompt": SEVERAL[:3], "completion": SEVERAL[3:]}]
    chat = Chat(tuple(SEVERAL), prompt=3)
    assert [ours(tokenizer, chat)] == trl_rows(tokenizer, rows, tmp_path)


def test_what_the_template_is_given_besides_is_given_as_trl_does(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("{{ greeting }}" + template("llama3_training"))
    rows = [{"messages": ONE, "chat_template_kwargs": {"greeting": "hey"}}]
    path = tmp_path / "c.jsonl"
    path.write_text(f"{json.dumps(rows[0])}\n" * 2, encoding="utf-8")
    chat = load_task(path, validation=path).train[0]
    assert [ours(tokenizer, chat)] == trl_rows(tokenizer, rows, tmp_path)
    assert tokenizer.decode(chat_prompt_ids(chat, 1, tokenizer)).startswith("hey<s>")


def test_what_does_not_fit_is_cut_from_the_end_as_trl_does(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template("llama3_training"))
    expected = trl_rows(tokenizer, [{"messages": SEVERAL}], tmp_path, max_length=30)
    chat = Chat(tuple(SEVERAL), where="c.jsonl: row 7")
    assert [ours(tokenizer, chat, 30)] == expected
    whole = len(ours(tokenizer, chat)[0])
    assert encode_chat(chat, tokenizer, 30)["cut"] == whole - 30
    with pytest.raises(TaskError, match=r"c.jsonl: row 7: the first turn .* raise max_length"):
        encode_chat(chat, tokenizer, 12)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "phi3", "lfm2", "glm4moe", "gemma", "gemma3"])
@pytest.mark.parametrize("chat", [ONE, SEVERAL, SYSTEM, WITH_TOOLS])
def test_without_marks_the_same_tokens_are_learned(name: str, chat: Any) -> None:
    """The text is the same: what the marks of the other template enclose is the right answer."""
    text = template(f"{name}_training", marks=False)
    assert "generation %" not in text
    tools = (TOOL,) if chat is WITH_TOOLS else ()
    tokenizer = chat_tokenizer(template(f"{name}_training"))
    takes = chat is not SYSTEM if name == "gemma" else True
    if chat is WITH_TOOLS:
        takes = name in ("qwen3", "lfm2", "glm4moe")
    if not takes:
        tokenizer.chat_template = text
        with pytest.raises(TaskError, match=r"refuses the conversation|does not write what"):
            chat_tokens(Chat(tuple(chat), tools), tokenizer)
        return
    expected = tokenizer.apply_chat_template(
        chat, tools=list(tools) or None, return_assistant_tokens_mask=True
    )
    tokenizer.chat_template = text
    found = chat_tokens(Chat(tuple(chat), tools), tokenizer)
    assert found.ids == expected["input_ids"]
    assert found.learned == [mask == 1 for mask in expected["assistant_masks"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", ["a<|im_end|>\n", "<think>\nso\n</think>\n\nb<|im_end|>\n"]),
        ("qwen3_6", ["a<|im_end|>\n", "so\n</think>\n\nb<|im_end|>\n"]),
        ("deepseek_r1_distill", ["\n\na<｜end▁of▁sentence｜>", "\n\nb<｜end▁of▁sentence｜>"]),
    ],
)
def test_thoughts_that_the_template_leaves_out_of_earlier_turns_are_not_looked_for(
    name: str, expected: list[str]
) -> None:
    """The models' own templates, without marks; the last two begin an answer with "<think>"."""
    tokenizer = chat_tokenizer(template(name))
    chat = Chat(tuple(turns("q", "<think>\nhm\n</think>\n\na", "r", "<think>\nso\n</think>\n\nb")))
    assert learned_text(tokenizer, encode_chat(chat, tokenizer, 1000)) == "".join(expected)


def test_what_the_template_does_not_write_is_not_lost_in_silence() -> None:
    """One that takes content as a list of parts, and one that knows no calls."""
    refused = "d: row 3, turn 2: the chat template of .* does not write what the assistant says"
    for name, chat in (("smolvlm_training", ONE), ("llama3_training", WITH_TOOLS)):
        with pytest.raises(TaskError, match=refused):
            chat_tokens(Chat(tuple(chat), where="d: row 3"), chat_tokenizer(template(name)))


def test_an_assistant_that_speaks_first_is_learned_too() -> None:
    tokenizer = chat_tokenizer(CHATML)
    chat = Chat(({"role": "assistant", "content": "hello"}, *turns("hi", "yo")))
    assert learned_text(tokenizer, encode_chat(chat, tokenizer, 100)) == (
        "hello<|im_end|>\nyo<|im_end|>\n"
    )


def test_a_template_that_writes_earlier_turns_otherwise_is_refused_by_name() -> None:
    """Never all ones."""
    text = "{{ messages|length }}" + CHATML
    tokenizer = chat_tokenizer(text)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(TaskError, match=r"^d: row 2, turn 2: .*some/model has no \{% gen") as e:
        encode_chat(Chat(tuple(SEVERAL), where="d: row 2"), tokenizer, 1000)
    assert "\n" not in str(e.value)


def test_a_role_that_the_template_refuses_is_one_line() -> None:
    tokenizer = chat_tokenizer(template("gemma_training"))
    with pytest.raises(
        TaskError, match=r"d: row 1: .* refuses .*system, user.*not supported$"
    ) as e:
        encode_chat(Chat(tuple(SYSTEM), where="d: row 1"), tokenizer, 1000)
    assert "\n" not in str(e.value)


def test_turns_of_weight_0_are_not_learned() -> None:
    for text in (template("llama3_training"), template("llama3_training", marks=False)):
        tokenizer = chat_tokenizer(text)
        chat = turns("hi", "yo", "x", "y")
        chat[1]["weight"] = 0
        encoded = encode_chat(Chat(tuple(chat)), tokenizer, 1000)
        assert learned_text(tokenizer, encoded) == "y<|eot_id|>"


def test_no_beginning_is_set_twice_and_the_end_is_the_templates() -> None:
    """Llama 3's template writes the beginning, and its tokenizer sets one too."""
    tokenizer = chat_tokenizer(template("llama3_training"), adds_bos=True)
    encoded = encode_chat(Chat(tuple(ONE)), tokenizer, 100)
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1
    assert learned_text(tokenizer, encoded) == "yo<|eot_id|>"
    prompt = chat_prompt_ids(Chat(tuple(ONE)), 1, tokenizer)
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_openais_arguments_are_what_the_template_takes() -> None:
    """JSON in a string; a template that writes `arguments | tojson` would write it twice."""
    as_text = {**CALL, "tool_calls": [{"function": {"name": "double", "arguments": '{"n": 3}'}}]}
    for name in ("qwen2_5", "qwen3"):
        tokenizer = chat_tokenizer(template(f"{name}_training"))
        user = turns("twice 3?")
        found = [ours(tokenizer, Chat((*user, call), (TOOL,))) for call in (as_text, CALL)]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "end"),
    [("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"), ("phi3", "<|end|>")],
)
def test_the_token_that_ends_a_turn(name: str, end: str) -> None:
    for marks in (True, False):
        tokenizer = chat_tokenizer(template(f"{name}_training", marks=marks))
        assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_no_template_is_one_line() -> None:
    with pytest.raises(TaskError, match="has no chat template; take an instruct model, or set"):
        encode_chat(Chat(tuple(ONE)), tiny_tokenizer(), 100)
    assert turn_end(tiny_tokenizer()) is None


@pytest.mark.parametrize(
    "code",
    [
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ raise_exception.__globals__['os'].system('touch ran') }}",
        "{% set x = cycler.__init__.__globals__.os.popen('touch ran') %}{{ x.read() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_no_python(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"the chat template of .* refuses"):
        encode_chat(Chat(tuple(SEVERAL), where="d: row 1"), chat_tokenizer(code + CHATML), 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_loops_is_one_line() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    line = r"^d: row 1: the chat template of \S+ refuses [^\n]* more time or memory than [^\n]*$"
    for text in (loop + CHATML, loop + template("llama3_training")):
        with pytest.raises(TaskError, match=line):
            encode_chat(Chat(tuple(ONE), where="d: row 1"), chat_tokenizer(text), 1000)
