"""An adapter's factors without a model: what is needed to look at ΔW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_lab.anatomy.from_state_dict import site_alone, sites_from_names
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.checkpoint.files import CONFIG_FILE
from lora_lab.checkpoint.locate import find_adapter
from lora_lab.checkpoint.loralib import read_loralib
from lora_lab.checkpoint.modules import AdapterFile, Slice, split
from lora_lab.checkpoint.peft import changed_base, read_peft
from lora_lab.checkpoint.to_model import check_shape
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate, SiteUpdate

_KINDS = {
    "embeddings": "factors of embeddings, which are no matrix products",
    "magnitudes": "DoRA's magnitudes: what is shown is the s·BA inside its directions",
    "biases": "biases",
    "weights": "weights trained whole, no low-rank factors",
    "experts": "factors of experts that share one tensor",
    "convolutions": "factors of convolutions",
    "pruned": "factors of rank 0",
}


@dataclass(frozen=True)
class AdapterFactors:
    """An adapter as its file has it.

    Attributes:
        name: of the run, folder or file.
        config: its adapter_config.json; empty for loralib's files, which have none.
        sites: layer by layer.
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
    """Read the low-rank factors of an adapter, whoever wrote it.

    Args:
        path: a folder in PEFT's format, or its weights file; a run's folder; or a file of
            loralib's, .safetensors, .pt or .bin. A file is PEFT's when an adapter_config.json lies
            beside it, unless `lora_alpha` is given.
        anatomy: of the base model: then names and shapes are compared with it and fused matrices
            fall into their slices. Without it, layers and roles are told from the names.
        lora_alpha: α of a loralib file, which does not hold it.
        slices: which of q, k and v loralib's MergedLinear adapts; its file does not tell. By
            default the paper's q and v where two are adapted.
        allow_pickle: whether a pickle may be read, with `weights_only=True`.

    Raises:
        AdapterError: a file is missing, damaged, foreign, for another base, or holds no factors.
    """
    place = find_adapter(path)
    path, notes = place.path, [place.note] if place.note else []
    if slices and lora_alpha is None:
        raise AdapterError("slices are for loralib's files; give lora_alpha too, or leave them out")
    if lora_alpha is not None and not path.is_file():
        raise AdapterError(f"there is no file {path}; name loralib's own, or give no α")
    if path.is_file() and (lora_alpha is not None or not (path.parent / CONFIG_FILE).exists()):
        file, assumed = read_loralib(path, lora_alpha, slices=slices, allow_pickle=allow_pickle)
        notes += assumed
    else:
        file = read_peft(path, allow_pickle=allow_pickle)
    notes += [f"left out: {_KINDS[kind]} ({_some(names)})" for kind, names in file.left_out.items()]
    if not file.modules:
        raise AdapterError(f"{path} holds no LoRA factors of matrices; {notes[-1]}")
    found = _with_base(file, anatomy) if anatomy else _without_base(file)
    sites = tuple(SiteUpdate(site, update) for site, update in found)
    factors = AdapterFactors(place.name, file.settings, sites, tuple(notes))
    if init := factors.changed_base:
        line = f"began at {init}: its BA is ΔW and the part of W₀ that {init} had taken out"
        factors = replace(factors, notes=(*notes, line))
    return factors


def _with_base(file: AdapterFile, map_: Anatomy) -> list[tuple[Site, LowRankUpdate]]:
    by_module: dict[str, list[Site]] = {}
    for site in map_.sites:
        by_module.setdefault(site.module, []).append(site)
    found: dict[str, tuple[Site, LowRankUpdate]] = {}
    heads = []
    for path, module in file.modules.items():
        own = _same_module(path, by_module)
        if own is None and module.shape == (map_.shape.vocab_size, map_.shape.hidden_size):
            heads.append((site_alone(path, *module.shape), module))
            continue
        if own is None:
            raise AdapterError(
                f"the adapter is for another base: this model has no adaptable module {path!r} "
                f"(it has {next(iter(by_module), 'none')!r}, …)"
            )
        check_shape(path, module, by_module[own][0])
        parts = [
            replace(part, site=own + part.site.removeprefix(path))
            for part in file.slices.get(path, ())
        ]
        updates = split(module, by_module[own], parts)
        found |= {name: (map_.by_name[name], update) for name, update in updates.items()}
    return [found[site.name] for site in map_.sites if site.name in found] + heads


def _same_module(path: str, modules: Iterable[str]) -> str | None:
    """Return the base's module of that path; a head on top of the base lengthens its paths."""
    modules = list(modules)
    if path in modules:
        return path
    near = [m for m in modules if path.endswith(f".{m}") or m.endswith(f".{path}")]
    return near[0] if len(near) == 1 else None


def _without_base(file: AdapterFile) -> list[tuple[Site, LowRankUpdate]]:
    found: list[tuple[Site, LowRankUpdate]] = []
    shapes = {path: module.shape for path, module in file.modules.items()}
    for path, whole in sites_from_names(shapes).items():
        parts = file.slices.get(path, ())
        sites = [_slice_site(whole, part) for part in parts if part.rows is not None]
        if not parts or len(sites) < len(parts):
            found.append((whole, file.modules[path]))
            continue
        by_name = {site.name: site for site in sites}
        updates = split(file.modules[path], sites, parts)
        found += [(by_name[name], update) for name, update in updates.items()]
    return found


def _slice_site(whole: Site, part: Slice) -> Site:
    assert part.rows is not None
    return replace(
        whole,
        name=part.site,
        role=part.site.removeprefix(whole.name).strip("[]") or whole.role,
        out_features=part.rows.groups * part.rows.width,
        rows=part.rows,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} in all" if len(names) > 3 else "")
