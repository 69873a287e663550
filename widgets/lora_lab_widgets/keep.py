"""Keep what was learned: save, download, export, share, go on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import traitlets

from lora_lab._util.files import disk_errors
from lora_lab._util.own_warnings import collected
from lora_lab.errors import AdapterError, ConfigError, RunError
from lora_lab.redaction import redacted
from lora_lab.runs.records import find_run
from lora_lab.training.late_scores import unscored
from lora_lab_widgets.background import Background
from lora_lab_widgets.delivery import Delivery, zipped_page
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.going_on import (
    SCORING,
    USING,
    adapter_at,
    begin,
    cannot_continue,
    cannot_use,
    continued,
    scored,
    used,
)
from lora_lab_widgets.hub import AskFirstError, cannot_push, check_repo, push
from lora_lab_widgets.keeping import (
    TEXTS,
    file_stem,
    form_called,
    forms_for,
    packed,
    place_of,
    question,
    write,
)
from lora_lab_widgets.kept import Kept, kept_of, kept_record
from lora_lab_widgets.panel import MessagePanel, Tick

if TYPE_CHECKING:
    from lora_lab.runs.records import RunRecord
    from lora_lab.training.evaluate import Evaluated
    from lora_lab.training.run import Run
    from lora_lab_widgets.session import Session

NOTHING = "what a run learns can be kept here when it is paused or over"
_MOST = 1_000  # characters of a line


class Keep(MessagePanel):
    """What can be done with an adapter: the latest run's, or one that the runs' list has picked.

    Files are written on a thread, and only when a button was pressed; what came of it reaches the
    browser with the next `update`, which the heartbeat makes.

    Args:
        session: has the latest run, the model, and shows what is picked elsewhere.

    Attributes:
        form: {"id", "words": of the adapter, "waits": why it cannot be kept now, "latest": whether
            it is the latest run's, "folder": that is proposed, "forms": [{"name", "text", "why":
            not, or ""}], "offers": {"use", "continue", "report", "evaluate": why not now, or ""}}.
        busy: what it is at, "" at rest.
        question: {"line", "asked": the message that waits for a yes}, {} where nothing is asked.
        done: {"title", "lines"} of what was done last.
        offer: of a file that is ready for the page; see `Delivery`.
        called: how often something elsewhere has asked for this panel to be looked at.
        hub: {"why": nothing can be pushed, or ""}, {} before that is known.
    """

    module = "keep"

    form = traitlets.Dict().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)
    question = traitlets.Dict().tag(sync=True)
    done = traitlets.Dict().tag(sync=True)
    offer = traitlets.Dict().tag(sync=True)
    called = traitlets.Int().tag(sync=True)
    hub = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._picked: Kept | None = None  # elsewhere; in the place of the latest run's
        self._kept: Kept | None = None  # on show
        self._said = ""
        self._job: Background[Any] = Background()
        self._finish: Callable[[Any], None] | None = None  # on the thread that serves the browser
        self._delivery = Delivery()
        self._hub_job: Background[str] = Background()
        self._asked: dict[str, Any] = {}  # what a question of a thread is about
        self._alone = ""  # what the job is that has the model for itself, if it is one
        super().__init__()
        self._draw()
        session.keep, session.evaluate = self.show, self.evaluate
        session.at_work = lambda: self._alone if self._job.works else ""
        session.observe(self._new_run, "run")

    def summary(self) -> str:
        """Return whose adapter it would keep."""
        return self.form["words"]

    def show(self, record: RunRecord | None) -> None:
        """Show the adapter of a run on disk, or the latest run's, and have people look here."""
        run = self._session.run
        own = record is None or (run is not None and run.folder == record.folder)
        with self._lock, self.hold_sync():
            self._picked = None if own or record is None else kept_record(record)
            self.set_trait("problem", None)
            self.question = {}  # it is about what was on show
            self._draw()
            self.called += 1

    def needs_rest(self, what: str) -> None:
        """Refuse what would take this panel away before it can say how its work ended.

        Raises:
            RunError: it is at work.
        """
        if self._job.works:
            raise RunError(f"an adapter is still being kept ({self._said}); {what} when it is over")

    def update(self, tick: Tick) -> None:
        """Show what has come in; quick, and nothing is sent where nothing is new."""
        del tick
        with self._lock:
            self._take()
            self._draw()

    def _new_run(self, _change: object) -> None:
        with self._lock:
            self._picked = self._kept = None
            self.done, self.question = {}, {}

    # What the browser asks -----------------------------------------------------------------------

    def _handle(self, content: Mapping[str, Any]) -> None:
        kind = content.get("type")
        if kind == "piece":
            self.send(self._delivery.piece(content))
            return
        handlers: dict[Any, Callable[[Mapping[str, Any]], None]] = {
            "latest": lambda _: self.show(None),
            "no": lambda _: None,
            "save": self._save,
            "download": self._download,
            "use": lambda _: self._use(self._needed()),
            "load": lambda content: self._use(adapter_at(content.get("folder"))),
            "continue": lambda _: self._continue(),
            "evaluate": lambda _: self.evaluate(),
            "report": lambda _: self._report(),
            "look": lambda _: self._look_at_hub(),
            "push": self._push,
        }
        if kind not in handlers:
            raise ConfigError(f"this panel got an unknown message {kind!r}; reload the page")
        with self.hold_sync():
            self.set_trait("problem", None)
            self.question = {}
            if content.get("sure") and content.get("id") != self._needed().id:
                raise RunError("another adapter is on show than the one asked about; press again")
            handlers[kind](content)
            self._take()

    def _save(self, content: Mapping[str, Any]) -> None:
        kept, form = self._needed(), form_called(content.get("form"))
        place = place_of(content.get("folder"), form)
        with disk_errors(place, AdapterError, "another folder"):
            asked = question(place, form)
        if asked and not content.get("sure"):
            again = {key: content.get(key) for key in ("type", "form", "folder")}
            again |= {"sure": True, "id": kept.id}
            self.question = {"line": redacted(asked)[:_MOST], "asked": again}
            return

        def finish(written: Any) -> None:
            self._tell("Saved", written.lines())

        self._start(lambda: write(self._session, kept, form, place, self._say), finish)

    def _download(self, content: Mapping[str, Any]) -> None:
        kept, form = self._needed(), form_called(content.get("form"))

        def finish(made: Any) -> None:
            file, name, written = made
            self.offer = self._delivery.put(file, name, "zip", kept.id)
            self._tell("Packed", written.lines())

        self._start(lambda: packed(self._session, kept, form, self._say), finish)

    def _use(self, kept: Kept) -> None:
        self._session.needs_rest("use another adapter")
        if why := cannot_use(self._session, kept):
            raise RunError(why)

        def finish(show: Callable[[], None]) -> None:
            show()
            self._picked = self._kept = None  # what is offered of it is another thing now
            self._tell("In use", [f"{kept.words} is on the model: grid, ΔW and “Try it” show it"])

        reading = "reading the adapter…"
        self._start(lambda: used(self._session, kept), finish, reading, USING)

    def _continue(self) -> None:
        kept = self._needed()
        self._session.needs_rest("start another run")
        if why := cannot_continue(kept):
            raise RunError(why)

        def finish(run: Run) -> None:
            begin(self._session, run)
            self._tell("Started", [f"run {run.id} goes on from {kept.words}"])

        reading = "reading the adapter…"
        alone = "a run is being made of an adapter"
        self._start(lambda: continued(self._session, kept), finish, reading, alone)

    def evaluate(self) -> None:
        """Score what a run that was stopped has learned, as its end would have done.

        Raises:
            RunError: there is nothing to score, or something trains.
        """
        with self._lock:  # the run panel asks for it too, on a thread of its own
            self._evaluate()

    def _evaluate(self) -> None:
        kept = self._needed()
        of = kept.run or kept.record
        if of is None or not unscored(of):
            raise RunError("this run has its scores, or was not stopped; there is nothing to score")
        self._session.needs_rest("score a run")

        def finish(found: Evaluated) -> None:
            self._tell("Scored", str(found).splitlines())
            self._kept = None  # its files have changed

        self._start(lambda: scored(self._session, kept, self._say), finish, alone=SCORING)

    def _report(self) -> None:
        kept = self._needed()
        if kept.folder is None:
            raise RunError("the model's own adapter is of no run; there is nothing to report on")
        folder, session = kept.folder, self._session

        def work() -> tuple[Path, IO[bytes]]:
            self._say("writing the report…")
            with session.live_adapter.alone("a report is being written"):
                path = session.report(find_run(folder))
            return path, zipped_page(path)

        def finish(made: tuple[Path, IO[bytes]]) -> None:
            path, page = made
            self.offer = self._delivery.put_report(page, kept.id)
            self._tell("Report", [str(path)])

        self._start(work, finish)

    def _push(self, content: Mapping[str, Any]) -> None:
        kept, repo = self._needed(), check_repo(content.get("repo"))
        private, sure = bool(content.get("private", True)), bool(content.get("sure"))

        def finish(made: tuple[str, Any]) -> None:
            address, written = made
            self._tell("Pushed", [address, *written.lines()[1:]])

        self._start(
            lambda: push(self._session, kept, repo, private=private, sure=sure, say=self._say),
            finish,
        )
        asked = {"type": "push", "repo": repo, "private": private, "sure": True, "id": kept.id}
        self._asked = asked

    def _look_at_hub(self) -> None:
        """Find out, on a thread, whether anything can be pushed."""
        self._hub_job.start(cannot_push)

    # ---------------------------------------------------------------------------------------------

    def _needed(self) -> Kept:
        """Return what is on show.

        Raises:
            RunError: there is nothing, or it cannot be kept now.
        """
        kept = self._shown()
        if kept is None:
            raise RunError("there is nothing to keep yet; start a run first")
        if waits := kept.waits:
            raise RunError(waits)
        return kept

    def _shown(self) -> Kept | None:
        if self._picked is not None:
            return self._picked
        if (run := self._session.run) is not None:
            return kept_of(run)
        if self._session.live_adapter.latest is not None:
            return self._session.used or Kept("", "the model's own adapter")
        return None

    def _start(
        self,
        work: Callable[[], Any],
        finish: Callable[[Any], None],
        said: str = "starting…",
        alone: str = "",
    ) -> None:
        if self._job.busy:
            raise RunError("the last request is still being worked on; wait for it")
        if self._session.scoring:
            raise RunError("a comparison is being scored on the model; wait for its end")
        self.done, self._said = {}, said

        def quietly() -> Any:
            with collected():  # not printed into some cell; that an adapter gives way is meant
                return work()

        self._finish, self._alone = finish, alone
        self._job.start(quietly)

    def _say(self, text: str) -> None:
        self._said = text  # from any thread; shown at the next update

    def _tell(self, title: str, lines: list[str]) -> None:
        self.done = {"title": title, "lines": [redacted(line)[:_MOST] for line in lines]}

    def _take(self) -> None:
        outcome, finish = self._job.take(), self._finish
        if outcome is not None and finish is not None:
            self._finish = None
            try:
                if outcome.error is not None:
                    raise outcome.error
                finish(outcome.value)
            except AskFirstError as asked:
                self.question = {"line": redacted(str(asked))[:_MOST], "asked": self._asked}
            except Exception as error:
                self.set_trait("problem", from_error(error))
        self.busy = self._said if self._job.busy else ""
        if (looked := self._hub_job.take()) is not None:
            self.hub = {"why": redacted(str(looked.error or looked.value or ""))[:_MOST]}

    def _draw(self) -> None:
        kept = self._shown()
        if kept is None:
            self.form = _NOTHING
            return
        if kept is self._kept:
            return  # its files are not read at every heartbeat
        if self._kept is None and not self.hub:
            self._look_at_hub()
        self._kept = kept
        waits = kept.waits
        forms = {} if waits else forms_for(self._session, kept)
        self.form = {
            "id": kept.id,
            "words": kept.words,
            "waits": redacted(waits),
            "latest": self._picked is None,
            "folder": f"adapters/{file_stem(kept, 'peft')}",
            "forms": [{"name": f, "text": TEXTS[f], "why": why} for f, why in forms.items()],
            "offers": {} if waits else self._offers(kept),
        }

    def _offers(self, kept: Kept) -> dict[str, str]:
        """Return {what else can be done: why it cannot now, or ""}."""
        of = kept.run or kept.record
        offers = {"use": cannot_use(self._session, kept), "continue": cannot_continue(kept)}
        if kept.folder is not None:
            offers["report"] = ""
        if of is not None and unscored(of):
            offers["evaluate"] = ""
        return {name: redacted(why) for name, why in offers.items()}


_NOTHING = {"id": "", "words": "", "waits": NOTHING, "latest": True, "forms": [], "offers": {}}
