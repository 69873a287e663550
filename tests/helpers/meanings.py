"""A meaning in E2E's format as a dictionary."""

from __future__ import annotations

import re


def values_of(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"([a-zA-Z ]+?)\[([^\]]*)\](?:, |$)", prompt))
