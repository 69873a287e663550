"""An adapter's low-rank updates without a model: what is needed to look at ΔW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.anatomy.from_state_dict import site_alone, sites_from_names
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.checkpoint.adapter_file import AdapterFile, Slice, match_sites, split
from lora_lab.checkpoint.files import quoted
from lora_lab.checkpoint.locate import locate_adapter
from lora_lab.checkpoint.native import NativeFile
from lora_lab.checkpoint.peft import changed_base
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import SiteUpdate

_KINDS = {
    "embeddings": "factors of embeddings, which are no matrix products",
    "magnitudes": "DoRA's magnitudes: what is shown is the s·BA inside its directions",
    "biases": "biases",
    "weights": "weights trained whole, no low-rank factors",
    "statistics": "running statistics of the base's own layers",
    "convolutions": "factors of convolutions",
    "pruned": "factors of rank 0",
}


@dataclass(frozen=True)
class AdapterFactors:
    """An adapter as its file has it.

    Attributes:
        name: of the run, folder or file.
        config: its adapter_config.json; empty for loralib's files, which have none.
        sites: layer by layer; the factors are NumPy's, float32 or float64.
        notes: what the sites do not show, or what had to be assumed; one line each.
    """

    name: str
    config: Mapping[str, Any]
    sites: tuple[SiteUpdate, ...]
    notes: tuple[str, ...] = ()

    @property
    def changed_base(self) -> str:
        """The init that took a part out of W₀ ("pissa", "olora" …), or ""."""
        return changed_base(self.config)


def read_factors(
    path: str | Path,
    *,
    anatomy: Anatomy | None = None,
    lora_alpha: float | None = None,
    slices: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> AdapterFactors:
    """Read the low-rank updates of an adapter, whoever wrote it.

    Args:
        path, lora_alpha, slices, allow_pickle: as `read_adapter` takes them; or a run's folder.
        anatomy: of the base model: then names and shapes are compared with it and fused matrices
            fall into their slices. Without it, layers and roles come from the names.

    Raises:
        AdapterError: a file is missing, damaged, foreign, for another base, or holds no factors.
    """
    place = locate_adapter(path)
    known: dict[str, Any] = {}
    if anatomy:
        held = anatomy.parameters_by_name
        known = anatomy.by_module | {site.module: site for site in held.values()} | held
    file = read_adapter(
        place.path, lora_alpha=lora_alpha, slices=slices, known=known, allow_pickle=allow_pickle
    )
    if isinstance(file, NativeFile):
        parts = ", ".join(part.name for part in file.parts)
        line = f"{place.path} holds {file.method}, whose ΔW is not in low-rank factors"
        raise AdapterError(f"{line}; its parts are {parts}: name one of them" if parts else line)
    notes = [note for note in (place.note, *file.assumptions) if note]
    notes += [f"left out: {_KINDS[kind]} ({_some(names)})" for kind, names in file.left_out.items()]
    if not (file.modules or file.experts):
        raise AdapterError(f"{place.path} holds no LoRA factors of matrices; {notes[-1]}")
    if init := changed_base(file.settings):
        line = f"began at {init}: its BA is ΔW and the part of W₀ that {init} had taken out"
        notes.append(line)
    sites = _with_base(file, anatomy) if anatomy else _without_base(file)
    sites += _experts(file, anatomy.parameters_by_name if anatomy else None)
    return AdapterFactors(place.name, file.settings, tuple(sites), tuple(notes))


def _with_base(file: AdapterFile, anatomy: Anatomy) -> list[SiteUpdate]:
    modules, slices, heads = {}, {}, []
    for path, module in file.modules.items():
        name = _same_module(path, anatomy.by_module)
        if name is None and module.shape == (anatomy.shape.vocab_size, anatomy.shape.hidden_size):
            heads.append(SiteUpdate(site_alone(path, *module.shape), module))
            continue
        name = name or path
        modules[name] = module
        slices[name] = [
            replace(part, site=name + part.site.removeprefix(path))
            for part in file.slices.get(path, ())
        ]
    updates = match_sites(replace(file, modules=modules, slices=slices), anatomy)
    sites = [site for site in anatomy.by_name.values() if site.name in updates]
    return [SiteUpdate(site, updates[site.name]) for site in sites] + heads


def _same_module(path: str, modules: Iterable[str]) -> str | None:
    """Return the base's module of that path; a head on top of the base lengthens its paths."""
    modules = list(modules)
    if path in modules:
        return path
    near = [m for m in modules if path.endswith(f".{m}") or m.endswith(f".{path}")]
    return near[0] if len(near) == 1 else None


def _without_base(file: AdapterFile) -> list[SiteUpdate]:
    updates: list[SiteUpdate] = []
    shapes = {path: module.shape for path, module in file.modules.items()}
    for path, site in sites_from_names(shapes).items():
        parts = file.slices.get(path, ())
        slices = [_slice_site(site, part) for part in parts if part.rows is not None]
        if not parts or len(slices) < len(parts):
            updates.append(SiteUpdate(site, file.modules[path]))
            continue
        by_name = {own.name: own for own in slices}
        own = split(file.modules[path], slices, parts)
        updates += [SiteUpdate(by_name[name], update) for name, update in own.items()]
    return updates


def _experts(file: AdapterFile, known: Mapping[str, Site] | None) -> list[SiteUpdate]:
    """Return every expert's update, each at a place of its own."""
    places = known or sites_from_names({name: own[0].shape for name, own in file.experts.items()})
    found = []
    for name, updates in file.experts.items():
        if name not in places:
            raise AdapterError(
                f"the adapter is for another base: this model has no parameter {quoted(name)}"
            )
        site = places[name]
        if len(updates) > 1:
            site = replace(site, kind="experts", experts=len(updates))
        shape = (site.out_features, site.in_features)
        # PEFT takes inputs for outputs where a model does not say how its experts are stored.
        turned = shape != updates[0].shape == shape[::-1]
        for number, update in enumerate(updates):
            own = update._replace(A=update.B.T, B=update.A.T) if turned else update
            found.append(SiteUpdate(site.expert(number) if len(updates) > 1 else site, own))
    return found


def _slice_site(fused: Site, part: Slice) -> Site:
    assert part.rows is not None
    return replace(
        fused,
        name=part.site,
        role=part.site.removeprefix(fused.name).strip("[]") or fused.role,
        out_features=part.rows.groups * part.rows.width,
        rows=part.rows,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} in all" if len(names) > 3 else "")
