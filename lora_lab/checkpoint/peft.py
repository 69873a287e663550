"""PEFT's format: what adapter_config.json and the names of the tensors mean.

ΔW = s·BA of every module, with s = α/r (α/√r with `use_rslora`), r and α by `rank_pattern` and
`alpha_pattern`. AdaLoRA's ΔW = α/(init_r + 1e-5)·B·diag(E)·A is one of these too, with E in B.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_lab._util.json_files import fits
from lora_lab._util.patterns import Patterns, endings
from lora_lab.anatomy.children import without_wrappers
from lora_lab.checkpoint.adapter_file import (
    SLICES_KEY,
    AdapterFile,
    check_factor,
    decode_slices,
)
from lora_lab.checkpoint.checksum import verify_checksum
from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    PICKLE_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    check_settings,
    quoted,
    read_json,
    read_tensors,
)
from lora_lab.checkpoint.schema import Alpha, PeftSettings, Rank
from lora_lab.checkpoint.stacked_experts import HeldNames, Parts, unstacked
from lora_lab.errors import AdapterError
from lora_lab.methods.registry import methods
from lora_lab.spectra.update import LowRankUpdate

PREFIX = "base_model.model."

# The last ".lora_…" counts: a module of the base may have such a name itself. Old files have the
# adapter's name in the key; AdaLoRA's factors are no modules, so no ".weight".
_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|E|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!bias$)[^.]+)??(?:\.weight)?"
)
_BIAS = re.compile(r"(?!.*\.lora_A).*\.bias")
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
# Fields that make ΔW something else than s·BA, or the base another model.
_FOREIGN = (
    *("use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config"),
    *("alora_invocation_tokens", "layer_replication"),
)
_NAME_LISTS = ("target_parameters", "modules_to_save")
# Inits that take a low-rank part out of W₀: the file's BA is not ΔW against the original W₀.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_DEEPEST = 64  # names in a module's path
_LONGEST = 512  # characters of a module's path


def read_peft(
    path: Path, *, allow_pickle: bool = False, known: Collection[str] = ()
) -> AdapterFile:
    """Read an adapter in PEFT's format, whoever wrote it; nothing but data is read.

    Args:
        path: its folder, or the weights beside its adapter_config.json.
        allow_pickle: whether adapter_model.bin may be read, with `weights_only=True`.
        known: paths of the base's modules, and of parameters that can be targets: they decide what
            a name means that PEFT could have made (a "base_layer" at its end).

    Raises:
        AdapterError: a file is missing, damaged or foreign, or is no kind of LoRA.
    """
    folder = path.parent if path.is_file() else path
    stored = read_settings(folder)
    settings = _settings_without_wrappers(stored)
    weights = path if path.is_file() else weights_file(folder, allow_pickle)
    tensors, metadata = read_tensors(weights, allow_pickle=allow_pickle)
    names = HeldNames(settings, known)
    contents = _sort(tensors, settings, known, names)
    ranks, alphas = (
        Patterns(f, settings[f], AdapterError) for f in ("rank_pattern", "alpha_pattern")
    )

    def updates(kind: str) -> dict[str, LowRankUpdate]:
        own = contents.factors.get(kind, {})
        return {
            module: _update(module, parts, settings, ranks, alphas) for module, parts in own.items()
        }

    modules, magnitudes = updates("matrices"), contents.magnitudes
    if not tensors:
        raise AdapterError(f"{weights.name} is empty; fetch the adapter again")
    slices = decode_slices(without_wrappers(metadata.get(SLICES_KEY, "")), modules)
    embeddings, kernels = updates("embeddings"), updates("convolutions")
    _check_magnitudes({**modules, **embeddings, **kernels}.keys(), magnitudes, settings)
    verify_checksum(tensors, stored, metadata)
    return AdapterFile(
        *(settings, modules, slices, contents.left_out),
        *(embeddings, kernels, magnitudes, contents.weights),
        experts=unstacked(contents.held, names, settings, ranks, alphas),
    )


def peft_settings(folder: Path) -> dict[str, Any]:
    """Return a folder's adapter_config.json as it is.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(_nothing_here(folder))
    return read_json(folder / CONFIG_FILE)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json, its numbers checked and its defaults filled in.

    Raises:
        AdapterError: the file is missing, damaged, or describes something else.
    """
    path = folder / CONFIG_FILE
    settings = peft_settings(folder)
    kind = settings.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        types = ["LORA", "ADALORA", *(m.peft.type for m in methods().values() if m.peft)]
        raise AdapterError(
            f"{path} describes {quoted(kind)}, not a LoRA adapter; what can be read is "
            f"{', '.join(types)}"
        )
    for name in _FOREIGN:
        if settings.get(name):
            raise AdapterError(f"{path}: with {name} ΔW is not s·BA; only LoRA itself can be read")
    check_settings(settings, path, PeftSettings)
    for name in ("rank_pattern", "alpha_pattern"):
        settings[name] = settings.get(name) or {}
    for name in _NAME_LISTS:
        settings[name] = settings.get(name) or []
    rank = "init_r" if kind == "ADALORA" else "r"
    settings.setdefault(rank, 12 if kind == "ADALORA" else 8)
    settings.setdefault("lora_alpha", 8)
    # AdaLoRA's rank_pattern lists which triplets are left, not ranks.
    ranks = {rank: settings[rank], **(settings["rank_pattern"] if kind == "LORA" else {})}
    for name, value in ranks.items():
        if not fits(value, Rank):
            raise AdapterError(
                f"{path}: rank {quoted(name)} is {quoted(value)}, not a whole number above 0; "
                "fetch the adapter again"
            )
    for name, value in {"lora_alpha": settings["lora_alpha"], **settings["alpha_pattern"]}.items():
        if not fits(value, Alpha):
            raise AdapterError(
                f"{path}: alpha {quoted(name)} is {quoted(value)}, not a number that can be used; "
                "fetch the adapter again"
            )
    return settings


def _settings_without_wrappers(settings: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {name: [*map(without_wrappers, settings[name])] for name in _NAME_LISTS}
    for name in ("rank_pattern", "alpha_pattern"):
        named[name] = {without_wrappers(key): value for key, value in settings[name].items()}
    return {**settings, **named}


def changed_base(settings: Mapping[str, Any]) -> str:
    """Return the init that took a part out of W₀ ("pissa", "olora" …), or ""."""
    init = str(settings.get("init_lora_weights")).lower()
    return init if init.startswith(_CHANGED_BASE) else ""


def weights_file(folder: Path, allow_pickle: bool) -> Path:
    """Return the file that holds an adapter's tensors.

    Raises:
        AdapterError: there is none, or only a pickle that was not asked for.
    """
    path, pickled = folder / WEIGHTS_FILE, folder / PICKLE_FILE
    if path.is_file():
        return path
    if not pickled.is_file():
        raise AdapterError(
            f"{folder} has no {WEIGHTS_FILE}; name the folder that holds the adapter"
        )
    if not allow_pickle:
        raise AdapterError(
            f"{folder} holds a pickle ({PICKLE_FILE}), which can run code; "
            "save it as safetensors where you trust it"
        )
    return pickled


def _nothing_here(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}; name the folder that holds the adapter"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f"{folder} has no {CONFIG_FILE}; it holds {', '.join(inside[:4])}: name one of them"
    return f"{folder} has no {CONFIG_FILE}; name the folder that holds the adapter"


@dataclass
class _Contents:
    """A file's tensors by what they are; every key is accounted for.

    `factors` is {"matrices", "embeddings" or "convolutions": {module: {"A", "B", "E"}}}.
    """

    factors: dict[str, dict[str, dict[str, np.ndarray]]] = field(default_factory=dict)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, StoredTensor] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, dict[int, Parts]] = field(default_factory=dict)  # see `stacked_experts`

    def leave_out(self, kind: str, key: str) -> None:
        """Note a tensor that is no factor of a matrix."""
        self.left_out.setdefault(kind, []).append(key)


def _sort(
    tensors: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    known: Collection[str],
    names: HeldNames,
) -> _Contents:
    contents = _Contents()
    for key, tensor in tensors.items():
        path = base_name(key, known)
        if len(path) > _LONGEST or path.count(".") > _DEEPEST or not path.isprintable():
            raise AdapterError(f"tensor {quoted(key)} is no name of a module; fetch it again")
        match = _KEY.fullmatch(path)
        if match is None or _is_saved(path, settings["modules_to_save"]):
            _sort_other(contents, key, path, tensor)
            continue
        module, part = _own_name(match["module"], known), match["part"]
        whole = re.sub(r"(\.base_layer)+$", "", module)
        if part in ("A", "B") and names.of(whole):
            depth = match["module"].count(".base_layer", len(whole))
            parts = contents.held.setdefault(whole, {}).setdefault(depth, {})
            parts[part] = check_factor(key, tensor.numpy())
        elif part == "magnitude_vector":
            if module in contents.magnitudes:
                raise AdapterError(f"{quoted(module)} has two magnitudes; fetch the adapter again")
            contents.magnitudes[module] = check_factor(key, tensor.numpy().ravel(), 1)
            contents.leave_out("magnitudes", key)
        elif 0 in tensor.shape and settings["peft_type"] == "ADALORA":
            contents.leave_out("pruned", key)
        else:
            kind, dimensions = "matrices", 2
            if part.startswith("embedding"):
                kind = "embeddings"
            elif 2 < len(tensor.shape) < 6:
                kind, dimensions = "convolutions", len(tensor.shape)
            if kind != "matrices":
                contents.leave_out(kind, key)
            parts = contents.factors.setdefault(kind, {}).setdefault(module, {})
            letter = part[-1]
            if letter in parts:
                raise AdapterError(
                    f"{quoted(module)} has two lora_{letter}; name a file with one adapter"
                )
            parts[letter] = check_factor(key, tensor.numpy(), dimensions)
    return contents


def _sort_other(contents: _Contents, key: str, path: str, tensor: StoredTensor) -> None:
    if ".lora_" in path and not path.endswith(".bias"):
        raise AdapterError(
            f"tensor {quoted(key)} belongs to a variant of LoRA; only lora_A and lora_B are read"
        )
    kind = "biases" if _BIAS.fullmatch(path) else "weights"
    contents.leave_out("statistics" if path.endswith(_STATISTICS) else kind, key)
    contents.weights[path] = tensor


def _is_saved(path: str, names: Iterable[str]) -> bool:
    """Whether a tensor lies in a module that was trained whole."""
    return any(f".{name}." in f".{path}" for name in names)


def base_name(key: str, known: Collection[str] = ()) -> str:
    """Return a tensor's name in the base: without PEFT's prefix, torch.compile's and DDP's.

    A model may have a child called "module" itself; of what stands behind PEFT's prefix the base
    knows.
    """
    name = without_wrappers(key)
    bare = re.sub(r"^(?:module\.)+(?=base_model\.)", "", name).removeprefix(PREFIX)
    return bare if not known or "module" in known else re.sub(r"^(?:module\.)+", "", bare)


def _own_name(module: str, known: Collection[str]) -> str:
    return module if module in known else module.removesuffix(".base_layer")


def _check_magnitudes(
    modules: Collection[str], magnitudes: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Raise unless exactly DoRA's modules have a magnitude."""
    wanted = set(modules) if settings.get("use_dora") else set()
    if wanted != magnitudes.keys():
        odd = min(wanted ^ magnitudes.keys())
        has = "a" if odd in magnitudes else "no"
        raise AdapterError(
            f"{quoted(odd)} has {has} magnitude, and use_dora={bool(settings.get('use_dora'))}; "
            "fetch the adapter again"
        )


def _update(
    module: str,
    parts: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    ranks: Patterns[int],
    alphas: Patterns[float],
) -> LowRankUpdate:
    adaptive = settings["peft_type"] == "ADALORA"
    if missing := {"A", "B", *("E" if adaptive else ())} - parts.keys():
        raise AdapterError(
            f"{quoted(module)} has lora_{min(parts)} without its partner lora_{min(missing)}; "
            "fetch the adapter again"
        )
    if odd := parts.keys() - {"A", "B", *("E" if adaptive else ())}:
        raise AdapterError(f"{quoted(module)} has lora_{min(odd)}, which only AdaLoRA has")
    A, B = parts["A"], parts["B"]
    # A pattern may be for the parameter's name, where the module is targeted by that.
    named = f"{module}.weight" if _by_parameter(module, settings) else module
    r = A.shape[0] if adaptive else ranks.lookup(named, settings["r"])
    # A grouped convolution's B has fewer columns; the base knows how many.
    if A.shape[0] != r or (B.ndim == 2 and B.shape[1] != r):
        raise AdapterError(
            f"{quoted(module)}: A is {tuple(A.shape)} and B {tuple(B.shape)}, but the config says "
            f"r={quoted(r)}"
        )
    if adaptive:
        if parts["E"].shape != (r, 1):
            raise AdapterError(f"{quoted(module)}: lora_E is not ({r}, 1); fetch the adapter again")
        # PEFT keeps the scale of the rank that training began with.
        return LowRankUpdate(
            A, B * parts["E"].T, settings["lora_alpha"] / (settings["init_r"] + 1e-5)
        )
    alpha = alphas.lookup(named, settings["lora_alpha"])
    return LowRankUpdate(A, B, alpha / (r**0.5 if settings.get("use_rslora") else r))


def _by_parameter(module: str, settings: Mapping[str, Any]) -> bool:
    """Whether a module is targeted by its weight's name, in `target_parameters`."""
    ends = endings(f"{module}.weight")
    return any(name in ends for name in settings["target_parameters"])
