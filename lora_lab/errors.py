"""The errors that LoRA Lab raises on purpose: one line each, and the line names the fix."""

from __future__ import annotations

import re
import traceback

from lora_lab.redaction import redacted

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but for tab and newline
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"  # directions of writing, ends of lines
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # marks, surrogates, tags
)


def visible(text: str) -> str:
    """Return a text as a terminal may have it, with what steers one by its number: "\\u001b".

    An escape sequence can move the cursor over other lines, rename the window or write the
    clipboard; a mark of the direction of writing shows a file's name backwards; a lone surrogate
    cannot be written at all.
    """
    return _HIDDEN.sub(_named, text)


def one_line(text: str) -> str:
    """Return a text likewise, its tabs and ends of lines too."""
    return visible(text).replace("\t", "\\t").replace("\n", "\\n")


def _named(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def as_cause(error: BaseException) -> BaseException:
    """Return an error as the cause of one of ours: a notebook keeps what is shown of both.

    Where its text, or that of its own causes, has a secret, it is one of its redacted text alone.
    """
    texts, seen = "", set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        texts += "".join(traceback.format_exception_only(link))
        link = link.__cause__ or link.__context__
    if redacted(texts) == texts:
        return error
    return LoraLabError("".join(traceback.format_exception_only(error)).strip())


class LoraLabError(Exception):
    """Base of all errors that a user can fix. The command line prints it without a traceback."""

    def __init__(self, *args: object) -> None:
        # A file's names stand in messages, and an escape sequence in one writes over other lines;
        # so do URLs and values with tokens, and a notebook keeps what is raised in it.
        texts = (redacted(visible(own)) if isinstance(own, str) else own for own in args)
        super().__init__(*texts)


class ConfigError(LoraLabError, ValueError):
    """A setting that cannot work: unknown field, impossible rank, a target that matches nothing."""


class ModelError(LoraLabError):
    """A model that cannot be found, loaded or read."""


class AdapterError(LoraLabError):
    """An adapter that does not fit: wrong base, wrong state, a file that is not what it claims."""


class TaskError(LoraLabError):
    """Data that cannot be used: a missing file, a missing column, nothing to learn from."""


class RunError(LoraLabError):
    """A run that cannot do what was asked, or that failed while training."""
