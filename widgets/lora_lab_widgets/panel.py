"""What a panel of the workbench is, what a heartbeat tells it, and the widgets that panels are.

A new panel is one Python file, one ES module in ``static/`` and one entry in `workbench.PANELS`.
"""

from __future__ import annotations

import difflib
import html
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import anywidget
import traitlets

from lora_lab.captions.glossary import shown_terms
from lora_lab.redaction import redacted_values
from lora_lab_widgets.embedded_page import Embeddable
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.es_modules import collect, join
from lora_lab_widgets.message_throttle import Throttled

if TYPE_CHECKING:
    from lora_lab.training.run import Run
    from lora_lab.training.snapshot import Snapshot

STATIC = Path(__file__).parent / "static"
Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Tick:
    """One heartbeat, as every panel gets it.

    Attributes:
        snapshot: of the latest run, None before the first.
        run: the latest one.
        theme: of the page.
        width: of the place that the panels share, in CSS pixels; 0 when not known.
        busy: whether something trains: a run, or a sweep's cell.
        open: whether a run or a sweep has not ended; a run that is paused is open, and not busy.
        settled: whether the run has taken whole steps, so that its memory is a step's: Adam's
            moments come with the first, and count from the second on.
    """

    snapshot: Snapshot | None = None
    run: Run | None = None
    theme: Theme = "light"
    width: int = 0
    busy: bool = False
    open: bool = False
    settled: bool = False


class Panel(Protocol):
    """What the workbench shows: a widget that the heartbeat brings up to date."""

    def update(self, tick: Tick) -> None:
        """Show what is new; quick, and nothing is sent when nothing is. May raise anything."""


_GLOSSARY = "const GLOSSARY = {};"  # in term.js
_TERMS = re.compile(r"\bterm\((\[[^\]]*\]|\"[^\"]*\")")  # its calls that name their terms


def assets(stem: str, terms: Iterable[str] = ()) -> tuple[str, str]:
    """Return a panel's ES module and its style sheet: the theme, then each module's own sheet.

    Args:
        stem: of the module's file.
        terms: of the glossary, that come with it beside those that its calls of `term` name.

    Raises:
        ValueError: as `collect`, and of a term that the glossary does not have.
    """
    modules = collect(STATIC / f"{stem}.js")
    sheets = [STATIC / "theme.css", *(module.path.with_suffix(".css") for module in modules)]
    styles = [sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.exists()]
    text = join(modules)
    if _GLOSSARY in text:
        shown = json.dumps(shown_terms([*terms, *named_terms(text)]), ensure_ascii=False)
        text = text.replace(_GLOSSARY, f"const GLOSSARY = {shown};")
    return text, "\n".join(styles)


def named_terms(text: str) -> list[str]:
    """Return the keys of the glossary that a module's calls of `term` name."""
    return [key for call in _TERMS.findall(text) for key in re.findall(r'"([^"]*)"', call)]


class PanelWidget(Throttled, Embeddable, anywidget.AnyWidget):
    """Base of the widgets that draw themselves: a panel, or a part of one.

    A subclass names its ES module in ``static/``, ``module = "rank_grid"``. What that imports comes
    with it, and so do the style sheets that have the modules' names. One that is written elsewhere
    gives the text itself, ``_esm = "export default …"``. `terms` are those of the glossary that its
    "?" may show beside the ones that its JavaScript names.

    Raises:
        TypeError: on a setting that the panel does not have.
    """

    module: ClassVar[str]
    terms: ClassVar[tuple[str, ...]] = ()
    _css: ClassVar[str] = (STATIC / "theme.css").read_text(encoding="utf-8")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "module" in cls.__dict__:
            cls._esm, cls._css = assets(cls.module, cls.terms)

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if not self.has_trait(name):
                raise TypeError(_unknown_setting(type(self), name))
        super().__init__(**settings)

    def update(self, tick: Tick) -> None:
        """Show what is new; see `Panel`. By default nothing ever is."""

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
        return redacted_values({**data, "text/html": self.fallback_html()}), metadata


class MessagePanel(PanelWidget):
    """Base of the panels that the browser speaks to: one message at a time, each answered.

    Attributes:
        problem: what went wrong with the latest message, or None.
    """

    problem = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    def __init__(self, **settings: Any) -> None:
        self._lock = threading.RLock()  # one thread at a time does what is asked
        super().__init__(**settings)
        self.on_msg(self._receive)

    def _receive(self, _widget: object, content: Mapping[str, Any], _buffers: object) -> None:
        with self._lock:
            try:
                self._handle(content)
            except Exception as error:
                self.problem = from_error(error)
            self.send({"type": "seen", "seq": content.get("seq")})

    def _handle(self, content: Mapping[str, Any]) -> None:
        """Do what a message asks; what this raises becomes the `problem`."""
        raise NotImplementedError


class PanelError(PanelWidget):
    """Shown under a panel: what went wrong as it was brought up to date; nothing where nothing did.

    Attributes:
        problem: what `from_error` returns, or None.
    """

    module = "panel_error"
    problem = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)


def _unknown_setting(panel: type[PanelWidget], name: str) -> str:
    base = set(PanelWidget.class_trait_names())
    known = sorted(t for t in panel.class_trait_names() if t not in base or t == "layout")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{panel.__name__} has no setting {name!r}; {hint}"
