"""The terms of LoRA Lab, each explained once, in glossary.toml beside this file.

The workbench's "?" shows them, `lora-lab glossary` and ``ll.glossary`` print them, and
docs/glossary.md is written from them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_lab.errors import ConfigError

_FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, repr=False)
class Term:
    """One term.

    Attributes:
        key: what it is found by everywhere.
        chapter: the title of what it belongs to.
        title: what people read above it.
        text: at most two sentences.
        equation: in Unicode, "" without one.
        source: where a paper has it, "" where none does.
        names: other words for it.
        settings: the fields of configs and of training that it explains.
        methods: the names of the methods that it explains.
        metrics: the names of the metrics that it explains.
    """

    key: str
    chapter: str
    title: str
    text: str
    equation: str = ""
    source: str = ""
    names: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Text, equation and source, without what there is none of."""
        return tuple(filter(None, (self.text, self.equation, self.source)))

    def to_json(self) -> dict[str, Any]:
        """Return its fields, for `lora-lab glossary --json`."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n  ".join((self.title, *self.lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        text, *more = map(escape, self.lines)
        return f"<p><b>{escape(self.title)}</b><br>{'<br>'.join((text, *more))}</p>"


class Glossary(dict[str, Term]):
    """{key: term}, in the file's order; a notebook shows all of them."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.values()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(term._repr_html_() for term in self.values())


@cache
def terms() -> Mapping[str, Term]:
    """Return {key: term} of the file, read once."""
    chapters = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    found: dict[str, Term] = {}
    for chapter in chapters.values():
        title = chapter.pop("title")
        for key, fields in chapter.items():
            if key in found:
                raise ValueError(f"{_FILE.name} has two terms {key!r}")
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
            }
            found[key] = Term(key, title, **values)
    return MappingProxyType(found)


def glossary(term: str | None = None) -> Term | Glossary:
    """Return what a term means: two sentences, the equation, where the paper has it.

    >>> ll.glossary("effective rank")

    Args:
        term: a key, a title or another name of it, the name of a setting, a method or a metric;
            None: all terms.

    Raises:
        ConfigError: there is none; names the nearest ones.
    """
    known = terms()
    if term is None:
        return Glossary(known)
    if not isinstance(term, str):
        raise ConfigError(f"a term is a text, such as 'rank', not {type(term).__name__}")
    names = _names()
    if found := names.get(_folded(term)):
        return known[found]
    near = difflib.get_close_matches(_folded(term), names, n=3)
    keys = dict.fromkeys(names[name] for name in near)
    hint = f"did you mean {' or '.join(keys)}?" if keys else "ll.glossary() lists all"
    raise ConfigError(f"the glossary has no term {term!r}; {hint}")


def keys_of(kind: str) -> dict[str, str]:
    """Return {name: key of the term that explains it} of "settings", "methods" or "metrics"."""
    return {name: key for key, term in terms().items() for name in getattr(term, kind)}


def shown_terms(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return {key: [title, text, equation, source]}, as a page has them.

    Raises:
        ValueError: a key that the glossary does not have.
    """
    known = terms()
    wanted = sorted(set(keys))
    if missing := [key for key in wanted if key not in known]:
        raise ValueError(f"{_FILE.name} has no term {missing[0]!r}")
    shown = {key: known[key] for key in wanted}
    return {key: [t.title, t.text, t.equation, t.source] for key, t in shown.items()}


def markdown() -> str:
    """Return docs/glossary.md."""
    lines = [
        "# Glossary",
        "",
        'What the "?" in the workbench says. Written from `lora_lab/captions/glossary.toml` by '
        "`lora-lab glossary --markdown`.",
    ]
    chapter = ""
    for term in terms().values():
        if term.chapter != chapter:
            chapter = term.chapter
            lines += ["", f"## {chapter}"]
        lines += ["", f"### {term.title}", "", f'<a id="{term.key}"></a>{term.text}']
        lines += ["", f"    {term.equation}"] if term.equation else []
        lines += ["", f"*{term.source}*"] if term.source else []
    return "\n".join(lines) + "\n"


@cache
def _names() -> dict[str, str]:
    """Return {folded name: key}; keys and titles come before what else a term is called."""
    found: dict[str, str] = {}
    for pick in (_own_names, _other_names):
        for key, term in terms().items():
            for name in pick(term):
                found.setdefault(_folded(name), key)
    return found


def _own_names(term: Term) -> tuple[str, ...]:
    return (term.key, term.title, term.title.partition(":")[0])


def _other_names(term: Term) -> tuple[str, ...]:
    return (*term.names, *term.settings, *term.methods, *term.metrics)


def _folded(name: str) -> str:
    """Return a name without what people write in two ways."""
    return " ".join(name.replace("-", " ").replace("_", " ").split()).casefold()
