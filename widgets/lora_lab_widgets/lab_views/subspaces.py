"""φ maps: this ΔW against W₀, against another run, against an adapter's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab._util.files import user_path
from lora_lab.analysis.overlaps import compare, compare_with_base
from lora_lab.analysis.shared_chance import shared_chance
from lora_lab.checkpoint.factors import read_factors
from lora_lab.errors import AdapterError
from lora_lab.runs.records import RunRecord, read_record
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch, run_label
from lora_lab_widgets.lab_views.spectrum import copy_of

BASE, FOLDER = "base", "folder"


class SubspacesView(View):
    """The subspace similarity φ(i, j) of one site's ΔW with another matrix."""

    key: ClassVar[str] = "subspaces"
    title: ClassVar[str] = "Subspaces"
    question: ClassVar[str] = (
        "Do two updates find the same directions – r = 8 and r = 64, one seed and another – and "
        "are they directions of W₀?"
    )
    terms: ClassVar[tuple[str, ...]] = ("phi", "side")
    of_one_site: ClassVar[bool] = True
    widest: ClassVar[int] = 720
    drawn_only: ClassVar[frozenset[str]] = frozenset({"excess"})

    def controls(self) -> list[dict[str, Any]]:
        """Return site, counterpart, side, and whether the random level is taken off."""
        current = self.live_adapter.run
        runs = [
            (f"run {run_label(record)}", str(record.folder / "adapter"))
            for record in self.records()
            if (record.folder / "adapter").is_dir()
            and (current is None or record.folder != current.folder)
        ]
        others = [("W₀", BASE), *runs, ("an adapter's folder…", FOLDER)]
        found = [self.site_choice(), self.choice("against", "against", others)]
        if self.values["against"] == FOLDER:
            found.append(self.field("folder", "folder", "an adapter in PEFT's format, or a run's"))
        sides = [("input (V, the paper's)", "input"), ("output (U)", "output")]
        found.append(self.choice("side", "side", sides, "which singular vectors are compared"))
        hint = "0 for unrelated subspaces, 1 for one inside the other"
        found.append(self.tick_box("excess", "above the random level", hint))
        return found

    def wanted(self) -> tuple[Any, ...] | None:
        """Return site, counterpart and side."""
        values = self.values
        named = values.get("against") != FOLDER or values.get("folder", "").strip()
        return super().wanted() if values.get("site") and named else None

    def empty(self) -> str:
        """Say what is missing."""
        if not self.values.get("site"):
            return self.live_adapter.nothing
        return "Type the folder of an adapter or a run, and press Enter."

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Compare one site's ΔW."""
        del before
        watch.tell("comparing directions…")
        name, against = values["site"], values["against"]
        site = copy_of(self, name)
        if against == BASE:
            W = self.live_adapter.base_weight(name)
            return Measured(compare_with_base(site, W, side=values["side"]), site.step)
        folder = user_path(values["folder"] if against == FOLDER else against, AdapterError)
        other, label, record = self._other(folder, name)
        run = self.live_adapter.run
        labels = f"this ΔW, {_about(site.update.r, run.training.seed if run else None)}", label
        found = compare(site, other, labels=labels, side=values["side"])
        note = shared_chance(read_record(run.folder) if run else None, record)
        return Measured(replace(found, note=note), site.step)

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the map."""
        return figures.phi_figure(
            data, excess=bool(self.values["excess"]), theme=theme, width=width
        )

    def words(self, data: Any) -> str:
        """Say what the map shows."""
        return captions.phi_summary(data)

    def _other(self, folder: Path, name: str) -> tuple[Any, str, RunRecord | None]:
        """Return the counterpart's site, what it is called, and the run that left it."""
        if (folder / "adapter").is_dir():  # a run's folder
            folder = folder / "adapter"
        sites = {site.site.name: site for site in read_factors(folder, anatomy=self.anatomy).sites}
        if name not in sites:
            some = ", ".join(list(sites)[:3])
            raise AdapterError(f"{folder} does not adapt {name}; it adapts {some}, …")
        record = read_record(folder.resolve().parent)
        seed = record.config.get("training", {}).get("seed") if record else None
        title = f"run {record.id[-4:]}" if record else folder.name
        return sites[name], f"{title}, {_about(sites[name].update.r, seed)}", record


def _about(r: int, seed: int | None) -> str:
    return f"r={r}" if seed is None else f"r={r}, seed {seed}"
