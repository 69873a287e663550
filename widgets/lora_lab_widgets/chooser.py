"""Which model, and which data: what a workbench opens on, and what it may change to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import traitlets

from lora_lab._util.dtypes import MODEL_DTYPES
from lora_lab._util.format import format_bytes
from lora_lab._util.hardware import best_device, hardware
from lora_lab.errors import ConfigError, TaskError
from lora_lab.models.choices import ModelChoice, model_choices
from lora_lab.models.load import wanted_device, wanted_dtype
from lora_lab.models.needs import ModelNeeds, model_needs
from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.tasks.proposals import KINDS, Proposal, propose
from lora_lab_widgets.background import Background
from lora_lab_widgets.defaults import DATA, first_model
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.opening import OWN, GivenUpError, Opened, Opening, Wish
from lora_lab_widgets.panel import MessagePanel
from lora_lab_widgets.plan import Configs, PlanModel
from lora_lab_widgets.uploads import Upload

T = TypeVar("T")
_LIMIT = 4096  # characters of a name
_OPTIONS = {"config_name", *(option for options in KINDS.values() for option in options)}


class Bench(Protocol):
    """What the chooser needs of the workbench that it opens."""

    def on_show(self) -> PlanModel | None:
        """Return the plan on show; None while nothing is."""

    def asked(self) -> tuple[Configs | None, Mapping[str, Any]]:
        """Return the config and the training settings that the next plan begins with."""

    def needs_rest(self) -> None:
        """Refuse while something trains, `RunError`."""

    def take(self, opened: Opened) -> None:
        """Show what was opened."""


class Chooser(MessagePanel):
    """Pickers of model and data; what is chosen is loaded on a thread, and shown when it is there.

    What a thread has found reaches the browser with the next message: the page sends one twice a
    second while it is told that something is `busy`.

    Args:
        bench: the workbench.
        uploads: where files go that are uploaded.

    Attributes:
        shown: whether it is.
        closable: whether there is a bench to go back to.
        here: whether a bench can be opened in place; marimo knows no widget that is made later.
        chosen: {"model", "device", "dtype", "data", "options"}: what the pickers stand at.
        models: [{"name", "text"}] of this machine.
        tasks: [{"name", "text", "card": lines}] that are made here.
        kinds: {what a table may be read as: the options that name columns}.
        devices, dtypes: [{"name", "text"}].
        card: {"name", "lines"} of the model that is chosen, or "problem".
        data: what the file or hub data set that is chosen may be read as; {} of a task made here.
        doing: {"text", "share", "seconds"} while something is opened, else {}.
        busy: whether there will be news.
        notes: what loading had to say, a line each.
    """

    module = "chooser"

    shown = traitlets.Bool().tag(sync=True)
    closable = traitlets.Bool().tag(sync=True)
    here = traitlets.Bool(default_value=True).tag(sync=True)
    chosen = traitlets.Dict().tag(sync=True)
    models = traitlets.List(traitlets.Dict()).tag(sync=True)
    tasks = traitlets.List(traitlets.Dict()).tag(sync=True)
    kinds = traitlets.Dict().tag(sync=True)
    devices = traitlets.List(traitlets.Dict()).tag(sync=True)
    dtypes = traitlets.List(traitlets.Dict()).tag(sync=True)
    card = traitlets.Dict().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    doing = traitlets.Dict().tag(sync=True)
    busy = traitlets.Bool().tag(sync=True)
    notes = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, bench: Bench, uploads: Path) -> None:
        self._bench, self._uploads = bench, uploads
        self._listing: _Latest[list[ModelChoice]] = _Latest()
        self._looking: _Latest[dict[str, Any]] = _Latest()
        self._reading: _Latest[Proposal] = _Latest()
        self._opening: Opening | None = None
        self._upload: Upload | None = None
        model, why = first_model()
        super().__init__(
            notes=[why] if why else [],
            chosen={"model": model, "device": "auto", "dtype": "auto", "data": DATA, "options": {}},
            tasks=[_task(name, entry.card) for name, entry in EMBEDDED.items()],
            kinds={kind: list(options) for kind, options in KINDS.items()},
        )
        self.layout.display = "none"

    def summary(self) -> str:
        """Return what the pickers stand at."""
        return f"{self.chosen['model']}, {self.chosen['data']}"

    def show(self, shown: bool) -> None:
        """Show the pickers at what the bench is at, or put them away."""
        with self._lock, self.hold_sync():
            plan = self._bench.on_show()
            if shown and not self.shown and plan is not None:
                self.chosen = _standing(plan)
                self.card, self.data, self.notes = {}, {}, []
                self._reading.drop()
            self.shown, self.closable = shown or plan is None, plan is not None
            self.layout.display = None if self.shown else "none"
            if self.shown:
                self._list()
                self._look()
                self.busy = True  # the page is to ask for what is found

    def _handle(self, content: Mapping[str, Any]) -> None:
        kind = content.get("type")
        if kind != "tick":
            self.set_trait("problem", None)
        handlers: dict[Any, Callable[[Mapping[str, Any]], None]] = {
            "tick": lambda _: None,
            "show": lambda _: self.show(True),
            "close": lambda _: self.show(False),
            "choose": self._choose,
            "upload": self._take_piece,
            "open": self._begin,
            "cancel": lambda _: self._opening.give_up() if self._opening else None,
        }
        if kind not in handlers:
            raise ConfigError(f"the pickers got an unknown message {kind!r}; reload the page")
        with self.hold_sync():
            try:
                handlers[kind](content)
            finally:
                self._show_news()

    # What may be chosen --------------------------------------------------------------------------

    def _list(self) -> None:
        # It puts another module into its place as it is imported: who imports it meanwhile, on
        # another thread or in a cell, would be left with one that has nothing in it.
        importlib.import_module("transformers")
        best = best_device()
        kinds = dict.fromkeys((best.type, "cpu"))
        self.devices = [{"name": "auto", "text": f"auto: {_device_text(best.type)}"}]
        self.devices += [{"name": kind, "text": _device_text(kind)} for kind in kinds]
        automatic = str(hardware(best).dtype).removeprefix("torch.")
        self.dtypes = [{"name": "auto", "text": f"auto: {automatic}"}]
        self.dtypes += [{"name": name, "text": name} for name in MODEL_DTYPES]
        self._listing.ask(model_choices)

    def _choose(self, content: Mapping[str, Any]) -> None:
        """Take what was picked, and look at what is new of it."""
        before = self.chosen
        names = [name for name in before if name in content and name != "options"]
        given = {name: str(content[name])[:_LIMIT].strip() for name in names}
        other_data = given.get("data", before["data"]) != before["data"]
        options = content.get("options", {} if other_data else before["options"])
        kept = {name: str(options[name])[:_LIMIT] for name in options if name in _OPTIONS}
        self.chosen = {**before, **given, "options": kept}
        if any(self.chosen[name] != before[name] for name in ("model", "device", "dtype")):
            self._look()
        if any(self.chosen[name] != before[name] for name in ("data", "options")):
            self._read()

    def _look(self) -> None:
        """Ask what the chosen model takes."""
        name, device, dtype = (self.chosen[key] for key in ("model", "device", "dtype"))
        self.card = {}
        self._looking.drop()
        if name and name != OWN:
            self._looking.ask(lambda: _card(name, device, dtype))

    def _read(self) -> None:
        """Ask how the chosen file or data set may be read."""
        name, options = self.chosen["data"], dict(self.chosen["options"])
        self.data = {}
        self._reading.drop()
        plan = self._bench.on_show()
        is_known = name in EMBEDDED or (plan is not None and name in plan.tasks)
        if name and not is_known:
            config_name = options.pop("config_name", None)
            self._reading.ask(lambda: propose(name, config_name, options))

    def _take_piece(self, content: Mapping[str, Any]) -> None:
        name = str(content.get("name", ""))
        if content.get("first"):
            self._upload = Upload(name)
        if self._upload is None or self._upload.asked != name:  # another one has begun since
            raise ConfigError("the upload was broken off; choose the file again")
        try:
            self._upload.add(str(content.get("data", "")))
            if content.get("last"):
                upload, self._upload = self._upload, None
                self._choose({"data": str(upload.write(self._uploads))})
        except TaskError:
            self._upload = None  # what is damaged is not gone on with
            raise

    # Opening it ----------------------------------------------------------------------------------

    def _begin(self, content: Mapping[str, Any]) -> None:
        if not self.here:
            raise ConfigError("in marimo a cell opens it: Workbench(model, task=data)")
        if self._opening is not None:
            raise ConfigError("something is being opened already; cancel it first")
        self._choose(content)
        self._bench.needs_rest()
        wish = Wish(**self.chosen)
        if not wish.model or not wish.data:
            raise ConfigError("choose a model and data first")
        config, settings = self._bench.asked()
        self.notes = []
        self._opening = Opening(wish, self._bench.on_show(), config, settings)
        self._opening.start()

    def _show_news(self) -> None:
        """Take what the threads have found."""
        if (listed := self._listing.take()) is not None:
            self._show_models(listed)
        if (card := self._looking.take()) is not None:
            self.card = card if isinstance(card, dict) else {"problem": from_error(card)}
        if (read := self._reading.take()) is not None:
            self._show_proposal(read)
        if self._opening is not None:
            self._show_opening(self._opening)
        asked = self._listing, self._looking, self._reading
        self.busy = self._opening is not None or any(each.busy for each in asked)

    def _show_models(self, listed: list[ModelChoice] | Exception) -> None:
        if isinstance(listed, Exception):
            self.set_trait("problem", from_error(listed))
            return
        self.models = [_choice(each) for each in listed]

    def _show_proposal(self, read: Proposal | Exception) -> None:
        if isinstance(read, Exception):
            self.data = {"problem": from_error(read)["message"]}
            return
        self.data = asdict(read)
        if read.options:
            self.chosen = {**self.chosen, "options": {**self.chosen["options"], **read.options}}

    def _show_opening(self, opening: Opening) -> None:
        outcome = opening.take()
        if outcome is None:
            share = None if opening.share is None else round(opening.share, 3)
            seconds = round(opening.seconds)
            self.doing = {"text": opening.text, "share": share, "seconds": seconds}
            return
        self._opening, self.doing = None, {}
        if isinstance(outcome, GivenUpError):
            self.notes = [str(outcome)]
            return
        if isinstance(outcome, Exception):
            raise outcome
        self._bench.needs_rest()  # a cell may have started a run meanwhile
        if opening.shown is not self._bench.on_show():
            raise ConfigError("a cell has opened something else meanwhile; choose again")
        self._bench.take(outcome)
        self.notes = list(outcome.notes)
        self.show(bool(outcome.notes))


class _Latest(Generic[T]):
    """The answer to the newest question; an older one's is dropped when it comes."""

    def __init__(self) -> None:
        self._job: Background[T] = Background()

    @property
    def busy(self) -> bool:
        return self._job.busy

    def drop(self) -> None:
        """Want no answer any more."""
        self._job = Background()

    def ask(self, question: Callable[[], T]) -> None:
        self.drop()
        self._job.start(question)

    def take(self) -> T | Exception | None:
        outcome = self._job.take()
        return None if outcome is None else outcome.error or outcome.value


def _standing(plan: PlanModel) -> dict[str, Any]:
    card = plan.lm.card
    model = OWN if card.source == "given" else card.name
    device = card.device.partition(":")[0]
    data = {"data": plan.settings["task"], "options": {}}
    return {"model": model, "device": device, "dtype": card.dtype, **data}


def _card(name: str, device: str, dtype: str) -> dict[str, Any]:
    target = wanted_device(device)
    needs: ModelNeeds = model_needs(name)
    return {"name": name, "lines": needs.lines(target, wanted_dtype(dtype, target))}


def _choice(choice: ModelChoice) -> dict[str, str]:
    about = choice.source, choice.license or "license not stated", format_bytes(choice.size)
    return {"name": choice.name, "text": " · ".join(about)}


def _task(name: str, card: DataCard | None) -> dict[str, Any]:
    if card is None:
        return {"name": name, "text": "", "card": []}
    _, *lines = str(card).splitlines()  # the list has what the task is about
    lines = [f"a small likeness of {card.mirrors}", *lines]
    return {"name": name, "text": card.about, "card": lines}


def _device_text(kind: str) -> str:
    return {"cpu": "CPU", "mps": "Apple GPU", "cuda": "GPU"}.get(kind, kind)
