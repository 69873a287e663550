"""Which of the settings on show cannot be, and why, in the words of the form."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from lora_lab.errors import LoraLabError
from lora_lab.methods.descriptor import Field
from lora_lab_widgets.methods import typed

Check = Callable[[dict[str, Any]], object]


def wrong_entries(
    values: Mapping[str, Any], fields: Sequence[Field], starts: Mapping[str, Any], check: Check
) -> dict[str, str]:
    """Return {setting: why it cannot be}, as far as one is to blame.

    Each that is found is put back to where it starts, so that the next one shows.

    Args:
        values: all settings, as they were typed.
        fields: those on show.
        starts: what they are at first.
        check: raises a `LoraLabError` on typed settings that cannot be together.
    """
    found: dict[str, str] = {}
    tried = dict(values)
    for field in fields:
        if why := refusal(typed, tried, [field]):
            found[field.name] = why
            tried[field.name] = starts[field.name]
    names = [field.name for field in fields if field.name not in found]
    fresh = {**tried, **{field.name: starts[field.name] for field in fields}}
    while (why := refusal(check, tried)) and (
        name := blamed(why, names) or _culprit(tried, names, starts, check)
    ):
        found[name] = why
        if not refusal(check, {**fresh, name: tried[name]}):
            break  # it is wrong beside others: without it they would be, though nobody is to blame
        names.remove(name)
        tried[name] = starts[name]
    return found


def blamed(line: str, names: Collection[str]) -> str:
    """Return the first of some settings that a line names, "" where it names none."""
    return next((word for word in re.findall(r"\w+", line) if word in names), "")


def in_labels(line: str, fields: Iterable[Field]) -> str:
    """Return a line with the form's labels in the place of the fields' names.

    Short names are words as well ("r"): they are one at the beginning only.
    """
    labels = {field.name: field.label for field in fields}
    for name, label in labels.items():
        line = re.sub(rf"^{name}(?= is )", label, line)
        if "_" in name:
            line = re.sub(rf"\b{name}=", f"{label} ", line)
            line = re.sub(rf"\b{name}\b", label, line)
    return line


def _culprit(
    values: Mapping[str, Any], names: Sequence[str], starts: Mapping[str, Any], check: Check
) -> str:
    """Return a setting without which there is nothing to refuse; "" where there is no such one."""
    changed = [name for name in names if values[name] != starts[name]]
    return next((n for n in changed if not refusal(check, {**values, n: starts[n]})), "")


def refusal(act: Callable[..., object], *arguments: Any) -> str:
    """Return the line of the `LoraLabError` that something raises, "" where it raises none."""
    try:
        act(*arguments)
    except LoraLabError as error:
        return str(error)
    return ""
