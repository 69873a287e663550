"""What every panel shares: its assets, its manners towards typos, and its fallback."""

from __future__ import annotations

import difflib
import html
from pathlib import Path
from typing import Any, ClassVar

import anywidget

from lora_lab_widgets._mail import Patient

STATIC = Path(__file__).parent / "static"


def esm_source(*stems: str) -> str:
    """Return one ES module: the shared helpers, then each named file of ``static/``.

    Hosts import a panel's module from a blob URL, where relative imports cannot resolve, so the
    files are joined here instead.
    """
    return "\n".join(_read(f"{stem}.js") for stem in ("_shared", *stems))


def css_source(*stems: str) -> str:
    """Return the theme, then the style sheet of each stem that has one."""
    return "\n".join(_read(f"{s}.css") for s in ("theme", *stems) if (STATIC / f"{s}.css").exists())


class Panel(Patient, anywidget.AnyWidget):
    """Base of the panels.

    A subclass names its files once, ``static_files = ("rank_grid",)``; they become its ES module
    (behind ``_shared.js``) and its style sheet (behind ``theme.css``).

    Raises:
        TypeError: on a setting that the panel does not have.
    """

    static_files: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "static_files" in cls.__dict__:
            cls._esm = esm_source(*cls.static_files)
            cls._css = css_source(*cls.static_files)

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if not self.has_trait(name):
                raise TypeError(_unknown_setting(type(self), name))
        super().__init__(**settings)

    def summary(self) -> str:
        """Return a few words for ``repr``: cheap, plain text."""
        return ""

    def fallback_html(self) -> str:
        """Return what to show where no widget can run, such as GitHub. Escape every name in it."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def __repr__(self) -> str:
        return f"<{' '.join(filter(None, (type(self).__name__, self.summary())))}>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/html": self.fallback_html()}, metadata


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _unknown_setting(panel: type[Panel], name: str) -> str:
    base = set(Panel.class_trait_names())
    known = sorted(t for t in panel.class_trait_names() if t not in base or t == "layout")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{panel.__name__} has no setting {name!r}; {hint}"
