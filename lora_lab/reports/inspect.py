"""Looks into an adapter: reads it, and puts beside it what was asked for, one thing at a time."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lora_lab._util.format import plural
from lora_lab.analysis.amplify import amplifications
from lora_lab.analysis.intruders import SiteIntruders, find_intruders
from lora_lab.analysis.overlaps import Side, compare, compare_with_base
from lora_lab.analysis.scaled_intruders import intruder_curve
from lora_lab.analysis.shared_chance import shared_chance
from lora_lab.analysis.site_view import SiteView
from lora_lab.analysis.spectrum import spectrum_view
from lora_lab.analysis.table import Analysis, SiteAnalysis, analyze_sites
from lora_lab.checkpoint.factors import read_factors
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.locate import locate_adapter
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.models.load import load_model
from lora_lab.reports.base_model import Base
from lora_lab.reports.inspection import Inspection
from lora_lab.reports.recorded_runs import with_own_run, with_run, with_sweep
from lora_lab.runs.records import read_record
from lora_lab.spectra.update import SiteUpdate
from lora_lab.tasks.load import load_task

_DETAILS = 3  # sites that are shown on their own
_EXAMPLES = 16  # held-out ones that measure the intruders' curve
# Σ out·in·min(out, in) up to which every W₀ is decomposed: about a minute on two cores.
_SVD_WORK = 1e11
_FEW = 8  # sites, beyond it


def inspect_adapter(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    against: str | Path | None = None,
    site: str | None = None,
    run: str | Path | None = None,
    sweep: str | Path | None = None,
    task: str | Path | None = None,
    lora_alpha: float | None = None,
    slices: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> Inspection:
    """Look into an adapter on disk, with or without its base model.

    Args:
        adapter: a folder in PEFT's format, a run's folder, or a file; see `read_factors`.
        base: its base model, as `load_model` takes it.
        against: another adapter of the same base, for the φ maps.
        site: the one site to show on its own; by default those with the largest ΔW.
        run: the run's folder, for the maps over steps; known when `adapter` is one.
        sweep: a folder of runs.
        task: whose held-out examples measure what scaling the intruders does; needs `base`.
        lora_alpha: α of loralib files.
        slices: which of q, k and v loralib's MergedLinear adapts.
        allow_pickle: whether pickles may be read, with `weights_only=True`.

    Raises:
        AdapterError: a file that cannot be read, an adapter for another base, a site it lacks.
        ModelError: see `load_model`.
        RunError: a folder that holds no run.
        TaskError: see `load_task`.
        ConfigError: `task` without `base`.
    """
    if task is not None and base is None:
        raise ConfigError("scaling the intruders needs the base model; name it too (--base)")
    if task is not None and lora_alpha is not None:
        raise ConfigError("intruders are scaled in an adapter of PEFT's format; leave out the task")
    reading = _Reading(_load_base(base) if base else None, lora_alpha, slices, allow_pickle)
    subject = reading.read(adapter)
    place = locate_adapter(adapter)
    other = None
    if against is not None:
        # One of the two may be PEFT's, whose file holds its α.
        alpha = lora_alpha if Path(against).is_file() else None
        cut = slices if alpha is not None else None
        other = replace(reading, lora_alpha=alpha, slices=cut).read(against)
    inspection = _alone(subject, site, other)
    if other is not None and against is not None:
        inspection = _beside_other(inspection, subject, other)
        inspection = _with_shared_chance(inspection, place.run, locate_adapter(against).run)
    if subject.base is not None:
        inspection = _beside_base(inspection, subject, subject.base)
    if task is not None and subject.base is not None:
        inspection = _with_curve(inspection, subject.base, place.path, task)
    if run is not None:
        inspection = with_run(inspection, Path(run))
    elif place.run is not None:
        inspection = with_own_run(inspection, place.run)
    return with_sweep(inspection, sweep) if sweep is not None else inspection


def _with_shared_chance(inspection: Inspection, own: Path | None, other: Path | None) -> Inspection:
    runs = [None if folder is None else read_record(folder) for folder in (own, other)]
    note = shared_chance(*runs)
    return replace(inspection, notes=(*inspection.notes, note)) if note else inspection


@dataclass(frozen=True)
class _Subject:
    """An adapter that was read, with its base if one was given."""

    name: str
    base: Base | None
    config: dict[str, object]
    notes: tuple[str, ...]
    sites: dict[str, SiteUpdate]
    analysis: Analysis

    @property
    def rows(self) -> dict[str, SiteAnalysis]:
        return {row.name: row for row in self.analysis.rows}

    def has_update(self, name: str) -> bool:
        """Tell whether the site's ΔW is not zero."""
        return self.rows[name].frobenius_norm > 0


@dataclass(frozen=True)
class _Reading:
    """How adapters are read in one inspection."""

    base: Base | None
    lora_alpha: float | None
    slices: Sequence[str] | None
    allow_pickle: bool

    def read(self, path: str | Path) -> _Subject:
        factors = read_factors(
            path,
            anatomy=self.base.anatomy if self.base else None,
            lora_alpha=self.lora_alpha,
            slices=self.slices,
            allow_pickle=self.allow_pickle,
        )
        sites = self.base.beside(factors) if self.base else factors.sites
        weight = self.base.weight if self.base else None
        return _Subject(
            factors.name,
            self.base,
            dict(factors.config),
            factors.notes,
            {site.site.name: site for site in sites},
            analyze_sites(sites, weight, factors.name),
        )


def _load_base(name: str | Path) -> Base:
    return Base(load_model(name))


def _alone(subject: _Subject, site: str | None, other: _Subject | None) -> Inspection:
    """Begin with what needs nothing but the adapter."""
    if site is not None and site not in subject.sites:
        near = difflib.get_close_matches(site, subject.sites, n=3, cutoff=0)
        raise AdapterError(f"the adapter has no matrix {site!r}; near: {', '.join(near)}")
    # Another adapter is compared where both are.
    candidates = [
        row.name
        for row in subject.analysis.strongest(len(subject.sites))
        if other is None or row.name in other.sites
    ]
    details = (site,) if site is not None else tuple(candidates[:_DETAILS])
    others = [f"{other.name}: {note}" for note in other.notes] if other else []
    alone = [] if subject.base else [_lone_view(subject, name) for name in details]
    return Inspection(
        name=subject.name,
        subtitle=_subtitle(subject, other),
        config=subject.config,
        analysis=subject.analysis,
        parameters=sum(s.update.r * sum(s.update.shape) for s in subject.sites.values()),
        notes=(*subject.notes, *others),
        details=details,
        sides=("input",) if site is None else ("input", "output"),
        lone_spectra=tuple(alone),
    )


def _subtitle(subject: _Subject, other: _Subject | None) -> str:
    count = len(subject.sites)
    parts = [f"ΔW at {plural(count, 'matrix', 'matrices')}"]
    if subject.base is not None:
        parts.append(f"beside {subject.base.lm.card.name}")
    else:
        named = subject.config.get("base_model_name_or_path")
        parts.append(f"base model not given{f' (the file names {named})' if named else ''}")
    if other is not None:
        parts.append(f"against {other.name}")
    return ", ".join(parts)


def _lone_view(subject: _Subject, name: str) -> SiteView:
    """Return what can be drawn of a site without its W₀."""
    row = subject.rows[name]
    unknown = float("nan")
    return SiteView(
        site=name,
        step=0,
        shape=subject.sites[name].update.shape,
        singular_values=row.singular_values,
        effective_rank=row.effective_rank,
        stable_rank=row.stable_rank,
        frobenius_norm=row.frobenius_norm,
        overlap=np.empty((len(row.singular_values), 0), np.float32),
        random_overlap=unknown,
        amplification=unknown,
        random_amplification=unknown,
    )


def _beside_other(inspection: Inspection, subject: _Subject, other: _Subject) -> Inspection:
    """Add the φ maps against another adapter, for every site that both have."""
    shared = [name for name in subject.sites if name in other.sites]
    if not shared:
        raise AdapterError(
            f"{subject.name} and {other.name} share no matrix: {next(iter(subject.sites))} … "
            f"against {next(iter(other.sites))} …; compare adapters of the same base and targets"
        )
    for name in inspection.details:
        if name not in other.sites:
            raise AdapterError(f"{other.name} has no matrix {name!r}; name one that both have")
    alive = [name for name in shared if subject.has_update(name) and other.has_update(name)]
    maps = []
    for name in alive:
        pair = subject.sites[name], other.sites[name]
        sides: Sequence[Side] = inspection.sides if name in inspection.details else ("input",)
        maps += [compare(*pair, labels=_labels(subject, other, name), side=s) for s in sides]
    notes = list(inspection.notes)
    if missing := len(subject.sites) - len(alive):
        none = plural(missing, "matrix has", "matrices have")
        notes.append(f"{none} no φ map: one of the two adapters has no ΔW there")
    return replace(inspection, overlaps=tuple(maps), notes=tuple(notes))


def _labels(subject: _Subject, other: _Subject, name: str) -> tuple[str, str]:
    r = [len(s.rows[name].singular_values) for s in (subject, other)]
    if r[0] != r[1]:
        return f"r={r[0]}", f"r={r[1]}"
    if subject.name != other.name:
        return subject.name, other.name
    return "this", "other"


def _beside_base(inspection: Inspection, subject: _Subject, base: Base) -> Inspection:
    """Add what needs W₀: Table 7, the spectra side by side, φ with W₀, intruders."""
    looked = _affordable(subject)
    notes = list(inspection.notes)
    if any(site.update.initial is not None for site in subject.sites.values()):
        notes.append("ΔW is taken against the original W₀, before PiSSA took a part out")
    if len(looked) < len(subject.sites):
        notes.append(f"intruders were looked for at the {len(looked)} largest updates only")
    details = [(name, subject.sites[name], base.weight(name)) for name in inspection.details]
    return replace(
        inspection,
        notes=tuple(notes),
        amplifications=amplifications(subject.sites.values(), base.weight),
        spectra=tuple(spectrum_view(site, W) for _, site, W in details),
        base_overlaps=tuple(
            compare_with_base(site, W, side=side)
            for name, site, W in details
            if subject.has_update(name)
            for side in inspection.sides
        ),
        intruders=find_intruders([subject.sites[name] for name in looked], base.weight),
    )


def _affordable(subject: _Subject) -> list[str]:
    """Return the sites whose W₀ can be decomposed without a long wait, strongest first if few."""
    shapes = [site.update.shape for site in subject.sites.values()]
    if sum(out * in_ * min(out, in_) for out, in_ in shapes) <= _SVD_WORK:
        return list(subject.sites)
    return [row.name for row in subject.analysis.strongest(_FEW)]


def _with_curve(inspection: Inspection, base: Base, adapter: Path, task: str | Path) -> Inspection:
    """Add the losses while the intruders are scaled, on the task's held-out examples."""
    data = load_task(task)
    present: Sequence[SiteIntruders] = [site for site in inspection.intruders if site.count]
    if not present:
        return replace(inspection, notes=(*inspection.notes, "no intruder to scale"))
    load_adapter(base.lm.model, adapter)
    curve = intruder_curve(base.lm, data.validation[:_EXAMPLES], present)
    return replace(inspection, curve=curve)
