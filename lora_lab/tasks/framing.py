"""What stands around a prompt: a line of its own, the text as it is, a format, a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from lora_lab.errors import TaskError
from lora_lab.tasks import tables

CHAT, PLAIN, LINE = "chat", "plain", "{prompt}\n"
_PLACE = "{prompt}"
_NAMED = {
    CHAT: "the model's chat template",
    PLAIN: "the text as it stands in the data",
    LINE: "the prompt on a line of its own",
}


def check_template(template: str) -> None:
    """Raise `TaskError` of a template that cannot be."""
    if not isinstance(template, str) or (template not in _NAMED and _PLACE not in template):
        raise TaskError(
            f"template is {template!r}; use 'chat' (the model's chat template), 'plain' (the text "
            "as it stands in the data), or a text with {prompt} in it"
        )


def framed(template: str, prompt: str) -> str:
    """Return a prompt in its template; of "chat" the user's turn without what goes around it."""
    if template in (CHAT, PLAIN):
        return prompt
    return template.replace(_PLACE, prompt)  # braces elsewhere are letters like any other


def name_template(template: str) -> str:
    """Return what a template does, for people."""
    return _NAMED.get(template, repr(template))


def default_template(rows: Sequence[tuple[str, str]], source: str) -> str:
    """Return the template of rows that name none, (prompt, completion).

    Where most rows bring white space of their own between the two, they stand as they are; else
    every prompt gets a line of its own. A warning tells of rows that the others are not like.
    """
    own = sum(prompt[-1:].isspace() or completion[:1].isspace() for prompt, completion in rows)
    template = PLAIN if 2 * own > len(rows) else LINE
    if 0 < own < len(rows):
        tables.warn(
            f"{source}: {own} of {len(rows)} rows have white space between prompt and completion; "
            f"of all it is {name_template(template)} (template= chooses it)"
        )
    return template
