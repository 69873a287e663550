"""What stands in a message: nothing that a terminal obeys."""

from __future__ import annotations

import pickle
import unicodedata

import pytest

import lora_lab as ll
from lora_lab.errors import AdapterError, LoraLabError, RunError, one_line, visible

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b2K\r\u202etxt.exe\u2066\x7f\ud800\U000e0041b"


def steers(text: str) -> list[str]:
    """Return the characters of a text that are controls, or set the direction of writing.

    By Unicode's own table of categories and directions.
    """
    directed = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return [
        character
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\t\n")
        or unicodedata.bidirectional(character) in directed
    ]


def test_every_character_that_steers_is_named_and_no_other_is_changed() -> None:
    every = "".join(map(chr, range(0x11_0000)))
    assert steers(every)
    assert not steers(visible(every))
    assert visible(HOSTILE).startswith("a\\u001b]0;owned\\u0007\\u001b[2J\\u009b2K\\u000d\\u202e")
    for innocent in ("tab\tand\nline", "ΔW = s·BA, 中文 العربية עברית हिन्दी", "👩‍👩‍👧 می‌خواهم", ""):
        assert visible(innocent) == innocent
    assert one_line("a\tb\nc") == "a\\tb\\nc"


@pytest.mark.parametrize("kind", [LoraLabError, AdapterError, RunError, ll.errors.ConfigError])
def test_no_message_of_an_error_steers_a_terminal(kind: type[LoraLabError]) -> None:
    error = kind(f"{HOSTILE} is no folder")
    assert not steers(str(error))
    assert not steers(repr(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert kind("one line", 2).args == ("one line", 2)
