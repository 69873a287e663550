"""Begin- and end-of-sequence tokens that a text brings as text: in a sequence each stands once.

Chat templates and formatting functions write them into the data, and tokenizers set them too.
"""

from __future__ import annotations


def without_begin(text: str, *begins: str | None) -> str:
    """Return a text without such tokens at its beginning, and without white space before them."""
    marks = tuple(filter(None, begins))
    while (own := text.lstrip()).startswith(marks):
        mark = next(mark for mark in marks if own.startswith(mark))
        text = own.removeprefix(mark)
    return text


def without_end(text: str, *ends: str | None) -> str:
    """Return a text without such tokens at its end, and without white space behind them."""
    marks = tuple(filter(None, ends))
    while (own := text.rstrip()).endswith(marks):
        mark = next(mark for mark in marks if own.endswith(mark))
        text = own.removesuffix(mark)
    return text


def end_once(text: str, end: str) -> str:
    """Return a text with one such token at its end, if it has any; white space behind it stays."""
    own = text.rstrip()
    if not own.endswith(end):
        return text
    while (shorter := own.removesuffix(end).rstrip()).endswith(end):
        own = shorter
    return own + text[len(text.rstrip()) :]
