"""Errors as the browser shows them: plain JSON, a few KB at most, no tokens."""

from __future__ import annotations

import traceback
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.redaction import redacted
from lora_lab.training.gpu_memory import settings_in_words
from lora_lab.training.snapshot import Failure

MAX_LINE = 600  # characters of a message or a remedy
MAX_DETAILS = 8_000  # characters of a traceback; its end says most


def from_error(error: Exception, remedy: str = "") -> dict[str, Any]:
    """Return what to show of an error; only one nobody foresaw brings its traceback."""
    if isinstance(error, LoraLabError):
        return as_json(Failure(str(error), remedy))
    details = "".join(traceback.format_exception(error))
    return as_json(Failure(f"{type(error).__name__}: {error}", remedy, details))


def as_json(problem: Failure) -> dict[str, Any]:
    """Return {"message", "remedy", "details", "field", "proposal"}.

    `field` names a setting to blame, `proposal` says which settings would have worked; "" if none.
    """
    return {
        "message": redacted(problem.message)[:MAX_LINE],
        "remedy": redacted(problem.remedy)[:MAX_LINE],
        "details": redacted(problem.details)[-MAX_DETAILS:],
        "field": "",
        "proposal": settings_in_words(dict(problem.proposal)) if problem.proposal else "",
    }
