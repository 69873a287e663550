"""The runs on disk: listed, compared, opened, resumed, deleted; closed until somebody opens it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import traitlets

from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab_widgets.background import Background
from lora_lab_widgets.delivery import Delivery, zipped_page
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.live_adapter import over
from lora_lab_widgets.panel import MessagePanel, Tick
from lora_lab_widgets.run_rows import MOST_PICKED, Look, delete, look

if TYPE_CHECKING:
    from lora_lab_widgets.session import Session

_CLOSED: dict[str, Any] = {"open": False, "rows": [], "picked": [], "total": 0, "folder": ""}


class _Job(NamedTuple):
    text: str  # what the panel says that it is doing
    work: Callable[[], Any]  # on a thread
    finish: Callable[[Any], None]  # on the thread that serves the browser


class History(MessagePanel):
    """The runs under one folder, newest first.

    Files are read on a thread, and only when the panel is opened, refreshed or asked for
    something, or when a run began or ended. What was read reaches the browser with the next
    `update`, which the heartbeat makes.

    Args:
        session: has the folder of the runs and the latest one; resumes runs, reports on them.

    Attributes:
        form: {"open", "rows", "picked": ids, "total": of the runs on disk, "folder"}.
        compared: of the picked runs, {} where none is; see `run_rows.Look`.
        details: of the opened run, {} where none is.
        busy: what it is at, "" at rest.
        offer: of a report that is ready for the page; see `Delivery`.
    """

    module = "history"

    form = traitlets.Dict().tag(sync=True)
    compared = traitlets.Dict().tag(sync=True)
    details = traitlets.Dict().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)
    offer = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._output_dir = session.output_dir
        self._open = False
        self._picked: list[str] = []
        self._shown = ""
        self._look: Look | None = None
        self._stale = False  # the disk has to be read (again)
        self._asked: _Job | None = None  # what a person wants; goes first
        self._doing: _Job | None = None
        self._background: Background[Any] = Background()
        self._delivery = Delivery()
        self._moment: tuple[str, bool] = ("", True)
        super().__init__(form=_CLOSED)

    def summary(self) -> str:
        """Return whether it is open, and how many runs it lists."""
        return f"{len(self.form['rows'])} runs" if self.form.get("open") else "closed"

    def update(self, tick: Tick) -> None:
        """Show what has come in, start what is due; quick, and nothing is sent without news."""
        snapshot = tick.snapshot
        with self._lock:
            moment = (snapshot.run_id, over(snapshot.state)) if snapshot else ("", True)
            if moment != self._moment:
                self._moment, self._stale = moment, True
            self._turn()

    # What the browser asks -----------------------------------------------------------------------

    def _handle(self, content: Mapping[str, Any]) -> None:
        kind, id_ = content.get("type"), str(content.get("id", ""))
        self.set_trait("problem", None)
        if kind == "open":
            self._open = self._stale = bool(content.get("value"))
            if not self._open:
                self._picked, self._shown, self._look = [], "", None
                self._draw()
        elif kind == "refresh":
            self._stale = True
        elif kind == "pick":
            self._pick(id_, bool(content.get("value")))
        elif kind == "show":
            self._shown, self._stale = id_ if content.get("value") else "", True
        elif kind in ("resume", "delete", "report"):
            self._ask(str(kind), self._record(id_))
        elif kind == "keep":
            self._session.keep(self._record(id_))
        elif kind == "mark":
            self._mark(self._record(id_), content.get("value"))
        elif kind == "piece":
            self.send(self._delivery.piece(content))
        self._turn()

    def _pick(self, id_: str, wanted: bool) -> None:
        self._picked = [each for each in self._picked if each != id_]
        if wanted and len(self._picked) >= MOST_PICKED:
            self._draw()  # the tick comes off again
            raise RunError(f"{MOST_PICKED} runs are compared at most; take one of them out first")
        if wanted:
            self._picked.append(self._record(id_).id)
        self._stale = True
        self._draw()

    def _mark(self, record: RunRecord, said: Any) -> None:
        """Give a run a title, a note or a star."""
        given = said if isinstance(said, Mapping) else {}
        record.mark(
            title=str(given["title"]) if "title" in given else None,
            note=str(given["note"]) if "note" in given else None,
            starred=bool(given["starred"]) if "starred" in given else None,
        )
        self._stale = True

    def _record(self, id_: str) -> RunRecord:
        record = self._look.records.get(id_) if self._look else None
        if record is None:
            raise RunError(f"run {id_[:80]} is not on the list; refresh it")
        return record

    def _ask(self, kind: str, record: RunRecord) -> None:
        if self._asked is not None or (self._doing is not None and self._doing.text != _READING):
            raise RunError("the last request is still being worked on; wait for it")
        if kind == "resume":
            run = self._session.run
            if run is not None and not over(run.state):
                raise RunError(f"run {run.id} is {run.state}; stop it to resume another one")
            self._asked = _Job(
                f"reading run {record.id}…",
                lambda: self._session.resume(record),
                self._session.go_on,
            )
        elif kind == "delete":
            self._asked = _Job(
                f"deleting run {record.id}…",
                lambda: delete(record, self._output_dir, self._at_work),
                lambda _: None,
            )
        else:
            self._asked = _Job(
                f"writing the report of run {record.id}…",
                lambda: zipped_page(self._session.report(record)),
                lambda page: self._offer(page, record),
            )

    def _offer(self, page: IO[bytes], record: RunRecord) -> None:
        """Have a report that was written now ready for the page."""
        self.offer = self._delivery.put_report(page, record.id)

    def _at_work(self, folder: Path) -> bool:
        run = self._session.run
        return run is not None and run.folder == folder and not over(run.state)

    # One turn: take what came, start what is due --------------------------------------------------

    def _turn(self) -> None:
        outcome = self._background.take()
        if outcome is not None and self._doing is not None:
            job, self._doing = self._doing, None
            try:
                if outcome.error is not None:
                    raise outcome.error
                job.finish(outcome.value)
            except Exception as error:
                self.problem = from_error(error)
            self._stale |= job.text != _READING
        if self._doing is None:
            self._start()
        self.busy = self._doing.text if self._doing else ""

    def _start(self) -> None:
        job, self._asked = self._asked, None
        if job is None and self._stale and self._open:
            self._stale = False
            picked, shown = tuple(self._picked), self._shown
            job = _Job(
                _READING, lambda: look(list_runs(self._output_dir), picked, shown), self._take
            )
        if job is not None and self._background.start(job.work):
            self._doing = job

    def _take(self, found: Look) -> None:
        if not self._open:
            return
        self._look = found
        self._picked = [id_ for id_ in self._picked if id_ in found.records]
        if self._shown not in found.records:
            self._shown = ""
        self._draw()

    def _draw(self) -> None:
        found = self._look
        self.form = (
            {
                "open": self._open,
                "rows": found.rows if found else [],
                "picked": list(self._picked),
                "total": found.total if found else 0,
                "folder": str(self._output_dir),
            }
            if self._open
            else _CLOSED
        )
        self.compared = found.compared if found and self._picked else {}
        self.details = found.details if found and found.details.get("id") == self._shown else {}


_READING = "reading the runs…"
