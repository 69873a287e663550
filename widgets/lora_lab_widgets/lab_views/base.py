"""What every view of "Analyze ΔW" is: controls, a measurement, a figure, words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lora_lab.anatomy.blocks import site_label
from lora_lab.anatomy.types import Anatomy
from lora_lab.methods.plain import recorded_text
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.training.run import Run
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.live_adapter import LiveAdapter
from lora_lab_widgets.panel import Theme

Values = Mapping[str, Any]


class CancelledError(Exception):
    """The measurement is not wanted any more."""


@dataclass
class Watch:
    """Between a measurement's thread and the panel: how far it is, and whether to end it."""

    text: str = "measuring…"
    share: float = 0.0  # from 0 to 1; 0 while nothing is known
    cancelled: bool = False

    def tell(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what goes on.

        Raises:
            CancelledError: the measurement is not wanted any more.
        """
        if self.cancelled:
            raise CancelledError
        self.text, self.share = text, done / total if total else 0.0

    def counting(
        self, base_weight: Callable[[str], Any], total: int, what: str
    ) -> Callable[[str], Any]:
        """Return `base_weight` that tells at every new site how many sites it has come to."""
        seen: set[str] = set()

        def counted(site: str) -> Any:
            seen.add(site)
            self.tell(f"{what}: matrix {len(seen)} of {total}", len(seen) - 1, total)
            return base_weight(site)

        return counted


@dataclass(frozen=True)
class Measured:
    """What a view measured: data for its figure, and of which moment they are."""

    data: Any
    step: int | None = None  # of the adapter; None: not of one moment
    note: str = ""


@dataclass
class View(ABC):
    """One question to ΔW, and what answers it.

    Attributes:
        live_adapter: the model and its adapter.
        anatomy: of the model.
        runs_dir: where runs are found.
        values: what the controls are set to.
        followed: the latest run that was chosen by itself.
        awaited: what the latest run has yet to write before it can be chosen.
    """

    live_adapter: LiveAdapter
    anatomy: Anatomy
    runs_dir: Path
    values: dict[str, Any] = field(default_factory=dict)
    followed: Run | None = None
    awaited: Path | None = None

    key: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    terms: ClassVar[tuple[str, ...]] = ()  # of the glossary, that explain its figure
    widest: ClassVar[int] = 900  # pixels that the figure takes at most
    of_one_site: ClassVar[bool] = False  # whether it shows the site that is looked at
    # Controls that change what is drawn of a measurement, and not what is measured.
    drawn_only: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def controls(self) -> list[dict[str, Any]]:
        """Return the controls as the browser draws them; replaces values that do not exist now."""

    @abstractmethod
    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Answer the question; on a thread.

        Args:
            values: of the controls.
            before: the data of the last measurement, None at first.
            watch: to be told how far it is.
        """

    @abstractmethod
    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Return the `go.Figure` of what was measured."""

    @abstractmethod
    def words(self, data: Any) -> str:
        """Say in a sentence or two what the figure shows."""

    def wanted(self) -> tuple[Any, ...] | None:
        """Return what a measurement depends on; None: there is nothing to be measured."""
        return tuple(sorted((k, v) for k, v in self.values.items() if k not in self.drawn_only))

    def empty(self) -> str:
        """Say why nothing can be measured."""
        return "Nothing to show yet."

    def no_run(self, otherwise: str) -> str:
        """Say why no run can be chosen: the latest one learns no ΔW, or else what is given."""
        live = self.live_adapter
        return live.nothing if live.run and live.adapter is None else otherwise

    def live(self, snapshot: Snapshot | None) -> Any:
        """Return what changes as training goes on, if the view can follow it without a pause."""
        del snapshot

    @property
    def due(self) -> bool:
        """Whether the latest run can be chosen by now, and the controls are to be drawn anew."""
        return self.awaited is not None and self.awaited.exists()

    def live_run(self, snapshot: Snapshot | None) -> Any:
        """Return the moment of the run that is chosen, if it is the latest one."""
        run = self.live_adapter.run
        here = run is not None and self.values.get("run") == str(run.folder)
        return (snapshot.step, snapshot.state.final) if snapshot is not None and here else None

    def complete(self, data: Any) -> bool:
        """Return whether the data hold what the `drawn_only` controls ask for, too."""
        del data
        return True

    def measured(self, data: Any) -> None:  # noqa: B027 - most views need not know
        """Take note of new data before they are drawn."""

    def redraw(self, figure: Any, data: Any) -> bool:
        """Change the figure on show after a slider moved; False: it has to be drawn anew."""
        del figure, data
        return False

    # Helpers for the controls --------------------------------------------------------------------

    def choice(
        self, name: str, label: str, options: Sequence[tuple[str, str]], hint: str = ""
    ) -> dict[str, Any]:
        """Return a drop-down of (text, value); a value that is not there becomes the first."""
        known = [value for _, value in options]
        if self.values.get(name) not in known:
            self.values[name] = known[0] if known else ""
        return {
            "name": name,
            "kind": "choice",
            "label": label,
            "value": self.values[name],
            "options": [list(option) for option in options],
            "hint": hint,
        }

    def slider(self, name: str, label: str, marks: Sequence[str], hint: str = "") -> dict[str, Any]:
        """Return a slider over the marks; its value is an index."""
        last = len(marks) - 1
        self.values[name] = max(0, min(int(self.values.get(name, last)), last))
        return {
            "name": name,
            "kind": "slider",
            "label": label,
            "value": self.values[name],
            "marks": list(marks),
            "hint": hint,
        }

    def tick_box(self, name: str, label: str, hint: str = "") -> dict[str, Any]:
        """Return a check box."""
        value = self.values.setdefault(name, False)
        return {"name": name, "kind": "box", "label": label, "value": value, "hint": hint}

    def field(self, name: str, label: str, hint: str = "") -> dict[str, Any]:
        """Return a text field."""
        value = self.values.setdefault(name, "")
        return {"name": name, "kind": "text", "label": label, "value": value, "hint": hint}

    def site_choice(self) -> dict[str, Any]:
        """Return the drop-down of the adapted sites."""
        adapter = self.live_adapter.adapter
        every = [own for site in self.anatomy.sites for own in site.each]
        sites = [own for own in every if adapter and own.name in adapter.sites]
        options = [(site_label(own), own.name) for own in sites]
        return self.choice("site", "matrix", options or [("no matrix", "")])

    def run_choice(self, holding: str, label: str = "run") -> dict[str, Any]:
        """Return the drop-down of the runs on disk whose folder has the file `holding`.

        A new run is chosen as soon as it can be, and what people choose stays until the next one.
        """
        records = [r for r in self.records() if (r.folder / holding).exists()]
        options = [(run_label(record), str(record.folder)) for record in records]
        current = self.live_adapter.run
        self.awaited = None
        if current is not None and current is not self.followed:
            if current.folder in [record.folder for record in records]:
                self.followed, self.values["run"] = current, str(current.folder)
            elif not (current.folder / holding).exists():
                self.awaited = current.folder / holding
        return self.choice("run", label, options or [("no run", "")])

    def records(self) -> list[RunRecord]:
        """Return the runs on disk, newest first."""
        return list_runs(self.runs_dir)


def run_label(record: RunRecord) -> str:
    """Return how people tell runs apart: "r=8 · lr 0.001 · seed 0 · 20260131-142501-4f2a"."""
    training = record.config.get("training", {})
    rate = training.get("learning_rate")
    parts = [
        _method_label(record.config),
        f"lr {rate:g}" if isinstance(rate, (int, float)) else "",
        f"seed {training['seed']}" if "seed" in training else "",
        record.id,
    ]
    return " · ".join(filter(None, parts))


def _method_label(config: Mapping[str, Any]) -> str:
    """Return method and size: "r=8" of LoRA, "BitFit", "PreEmbed 8+8", "AdaLoRA r 12→8"."""
    lora, method = config.get("lora", {}), str(config.get("method", ""))
    if method in ("", "LoRA"):
        return f"r={lora['r']}" if "r" in lora else ""
    configs = [own for own in config.get("configs", []) if isinstance(own, Mapping)]
    sizes = [recorded_text(own, "size") for own in configs]
    return " ".join(filter(None, [method, ", ".join(filter(None, sizes))]))
