"""Chat templates as TRL ships them, a tokenizer that knows their marks, and chats to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny_text import tiny_tokenizer

_FOLDER = Path(trl.__file__).parent / "chat_templates"
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_SPECIAL = re.compile(r"<[|｜][^>\n]{1,30}[|｜]>|<(?:start|end)_of_turn>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(name: str, *, marks: bool = True) -> str:
    """Return one of TRL's templates; without marks it writes the very same text."""
    text = (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    if marks:
        return text
    return _GENERATION.sub(lambda found: re.sub(r"\w+", "set _unused = 1", found[0]), text)


def chat_tokenizer(text: str, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each marker of the template."""
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(_SPECIAL.findall(text)))})
    tokenizer.chat_template = text
    return tokenizer


def turns(*said: str, system: str | None = None) -> list[dict[str, Any]]:
    """Return what user and assistant say in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def learned_text(tokenizer: Any, encoded: Any) -> str:
    """Return the tokens that are learned, as one text."""
    return tokenizer.decode([label for label in encoded["labels"] if label != -100])
