"""Analysis of ΔW: section 7 of the LoRA paper, and what came after it, as something to drive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets

from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.figure_area import FigureArea
from lora_lab_widgets.jobs import Jobs
from lora_lab_widgets.lab_views import VIEWS, View
from lora_lab_widgets.live_adapter import resting
from lora_lab_widgets.marimo_page import ShownInMarimo
from lora_lab_widgets.panel import MessagePanel, Theme, Tick

if TYPE_CHECKING:
    from lora_lab_widgets.session import Session

NARROWEST = 200  # pixels that a figure gets at least; where there are fewer, it scrolls


class LaboratoryPanel(MessagePanel):
    """Tabs and controls. Draws its traits; what people do comes back as messages.

    Args:
        answer: does what a message asks.

    Attributes:
        form: {"open", "views", "view", "question", "terms": of the glossary, "controls"}.
        state: {"busy", "share", "note", "again"}.
    """

    module = "laboratory"
    terms = tuple(key for view in VIEWS for key in view.terms)

    form = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, answer: Callable[[Mapping[str, Any]], None], **settings: Any) -> None:
        self._answer = answer
        super().__init__(**settings)

    def summary(self) -> str:
        """Return which view is open."""
        return self.form["view"] if self.form.get("open") else "closed"

    def _handle(self, content: Mapping[str, Any]) -> None:
        self._answer(content)


class Laboratory(ShownInMarimo, ipywidgets.VBox):
    """Seven views of ΔW, one at a time; closed until somebody opens it.

    `update` is called by the heartbeat. Nothing is sent but from there and while a message of the
    browser is answered, on the thread that serves the browser: ipykernel 7 then handles what
    people do here beside a busy cell. A slider is answered at once, so that it is quick where the
    clock is slow.

    Args:
        session: has the model's adapter, and the folder of runs.
    """

    def __init__(self, session: Session) -> None:
        live, anatomy, folder = session.live_adapter, session.anatomy, session.output_dir
        self._views: dict[str, View] = {kind.key: kind(live, anatomy, folder) for kind in VIEWS}
        self._session = session
        self._adapter = live.latest  # the one that was measured
        self._view = self._views[VIEWS[0].key]
        self._jobs = Jobs()
        self._open = False
        self._lock = threading.RLock()
        self._form_due = True
        self._drawn: tuple[Any, ...] = ()
        self._undrawable: dict[str, Any] | None = None  # the problem of a figure
        self._theme: Theme = "light"
        self._width = 1000
        self._snapshot: Snapshot | None = None
        self.panel = LaboratoryPanel(self._receive, form=self._closed_form())
        self.figure_area = FigureArea(session.plotly)
        layout = {"width": "100%", "overflow": "hidden"}
        super().__init__([self.panel, self.figure_area], layout=layout)
        self.add_class("ll-panel")
        self.add_class("ll-laboratory")
        session.observe(lambda _: self._follow(), "site")
        session.observe(lambda _: self._forget(), "run")
        self._follow()

    def update(self, tick: Tick) -> None:
        """Show what is new; quick, and nothing is sent when nothing is."""
        with self._lock:
            if self._session.live_adapter.latest is not self._adapter:  # a queued run has begun
                self._forget()
            # Another run is on disk, or one has ended.
            self._form_due |= _moment(tick.snapshot) != _moment(self._snapshot) or self._view.due
            self._snapshot = tick.snapshot
            self._theme = tick.theme
            self._width = tick.width or self._width
            if self._open:
                self._turn()

    def _follow(self) -> None:
        """Show the site that is looked at with the next tick, in the views of one site."""
        with self._lock:
            for view in self._views.values():
                if view.of_one_site:
                    view.values["site"] = self._session.site
            self._form_due = True

    def _forget(self) -> None:
        """Forget what was measured: the model has another adapter."""
        with self._lock:
            self._adapter = self._session.live_adapter.latest
            self._jobs.forget()
            self._follow()

    # What the browser asks -----------------------------------------------------------------------

    def _receive(self, content: Mapping[str, Any]) -> None:
        with self._lock:
            self._handle(content)

    def _handle(self, content: Mapping[str, Any]) -> None:
        kind, name = content.get("type"), str(content.get("name"))
        if kind == "set" and name in self._view.values:
            self._view.values[name] = content.get("value")
            if content.get("sliding"):
                self._jobs.slide()
                self._slide()
                return
        elif kind == "view" and name in self._views:
            self._view = self._views[name]
        elif kind == "open":
            self._open = bool(content.get("value"))
        elif kind == "again":
            self._jobs.again(self._view)
        elif kind == "cancel":
            self._jobs.cancel()
        else:
            return
        self._form_due = True
        if self._open:
            self._turn()
        else:
            self._close()

    def _close(self) -> None:
        self._jobs.stop()
        self.figure_area.clear()
        self._drawn = ()
        self.panel.form = self._closed_form()

    # One turn: take what came, start what is due, draw what is new -------------------------------

    def _turn(self) -> None:
        if self._form_due:
            self._draw_form()  # it replaces values that do not exist now
        if self._jobs.update(self._view, self._snapshot):
            self._draw_form()
        self._draw()
        self._draw_state()

    def _slide(self) -> None:
        """Follow a slider: change the figure on show in place, where the view can."""
        view, measured = self._view, self._jobs.of(self._view)
        if measured is None or self._drawn[:1] != (view.key,):
            return
        changed = self.figure_area.change(lambda figure: view.redraw(figure, measured.data))
        if not changed:
            self._draw()
            return
        self.figure_area.say(view.words(measured.data))
        self._drawn = self._look()

    def _draw(self) -> None:
        view, measured = self._view, self._jobs.of(self._view)
        if measured is None:
            if self._drawn:
                self.figure_area.clear()
                self._drawn = ()
            return
        self.figure_area.fade(not self._jobs.answers(view))
        if self._look() == self._drawn:
            return
        self._drawn = self._look()
        try:
            figure = view.figure(measured.data, self._theme, self._room())
            self.figure_area.show(figure, view.words(measured.data))
            self._undrawable = None
        except Exception as error:
            self.figure_area.clear()
            self._undrawable = from_error(error)

    def _look(self) -> tuple[Any, ...]:
        """Return what the figure on show depends on."""
        view = self._view
        drawn = tuple((name, view.values.get(name)) for name in sorted(view.drawn_only))
        return view.key, id(self._jobs.of(view)), self._theme, self._room(), drawn

    def _room(self) -> int:
        return max(NARROWEST, min(self._width - 4, self._view.widest))

    def _closed_form(self) -> dict[str, Any]:
        return {"open": False, "view": self._view.key, "views": [], "question": "", "controls": []}

    def _draw_form(self) -> None:
        self._form_due = False
        view = self._view
        self.panel.form = {
            "open": True,
            "views": [[each.key, each.title] for each in self._views.values()],
            "view": view.key,
            "question": view.question,
            "terms": list(view.terms),
            "controls": view.controls(),
        }

    def _draw_state(self) -> None:
        view, work = self._view, self._jobs
        measured = work.of(view)
        if work.busy:
            note = ""
        elif measured is None:
            note = view.empty() if view.wanted() is None else ""
        else:
            note = self._moment_of(measured.step)
        self.panel.state = {
            "busy": work.watch.text if work.busy else "",
            "share": round(work.watch.share, 3) if work.busy else 0,
            "note": note,
            "again": not work.busy and view.wanted() is not None,
        }
        self.panel.set_trait("problem", work.problem(view) or self._undrawable)

    def _moment_of(self, step: int | None) -> str:
        """Say of which step the figure is, and whether the run has gone on."""
        now = self._snapshot
        if step is None:
            return ""
        behind = now is not None and now.step > step
        return f"at step {step}" + (f"; the run is at step {now.step}" if behind and now else "")


def _moment(snapshot: Snapshot | None) -> tuple[str, bool]:
    return (snapshot.run_id, resting(snapshot.state)) if snapshot else ("", True)
