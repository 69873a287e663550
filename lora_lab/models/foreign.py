"""What a model's files may not ask for, whoever made them: looked at before transformers obeys.

transformers loads what a folder names: kernels from the hub, pickles by an index of safetensors,
an adapter that lies beside the weights (PEFT imports modules that its config names), as many
layers as a number says.
"""

from __future__ import annotations

import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lora_lab._util.files import is_hollow
from lora_lab._util.json_files import MOST_BYTES, parse_json, read_bytes
from lora_lab._util.quiet import quiet_transformers
from lora_lab._util.warn import warn
from lora_lab.errors import ModelError

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ".safetensors"
_ADAPTER = "adapter_config.json"
_READ_WHOLE = ".json", ".jinja", ".txt", ".model"  # what transformers reads of a folder besides
_LARGEST = 2**29  # bytes of such a file; vocabularies and merges have some ten MB
# What transformers computes by itself, or with torch; all else may come from the hub.
_BUILT_IN = {"eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"}
_FLASH = re.compile(r"flash_attention_(\d+)")
# Numbers of parts that are made one by one, before any weight is read.
_COUNTS = {
    re.compile(r"(?:layers?|blocks|depths?)$"): 4_096,
    re.compile(r"(?:experts|labels|heads)$"): 100_000,
}


def refuse_odd_files(name: str, folder: Path) -> None:
    """Refuse a model's folder with a file that would take all memory, or never end.

    Raises:
        ModelError: the line names the file.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in (*_READ_WHOLE, _WEIGHTS):
            continue
        try:
            found = path.stat()
        except OSError:  # a link to nothing: transformers takes it for missing
            continue
        large = path.suffix in _READ_WHOLE and found.st_size > _LARGEST
        if not stat.S_ISDIR(found.st_mode) and (
            not stat.S_ISREG(found.st_mode) or is_hollow(found) or large
        ):
            raise ModelError(
                f"{name} cannot be loaded: {path.name} is no regular file, nearly all holes or "
                f"larger than {_LARGEST:,} bytes; fetch the model again"
            )


def refuse_config(name: str, raw: Mapping[str, Any]) -> None:
    """Refuse a config that needs code from its repository, or endless parts.

    Falcon and Phi-3 carry an `auto_map` from the time before transformers had them: where
    transformers has every class that the config names, its own code is loaded.

    Raises:
        ModelError: the line names the entry.
    """
    import transformers

    if kernel := next(_fetched_kernels(raw), None):
        raise ModelError(
            f"{name} has its config fetch code from the hub ({kernel}) and LoRA Lab does not run "
            "remote code; take that entry out of its config.json"
        )
    if endless := next(_endless(raw), None):
        raise ModelError(
            f"{name} cannot be loaded: its config.json has {endless}, more than any model; fetch "
            "it again"
        )
    if "auto_map" not in raw:
        return
    named = raw.get("architectures") or []
    if named and all(hasattr(transformers, architecture) for architecture in named):
        return
    raise ModelError(
        f"{name} needs code from its own repository ({', '.join(named) or 'auto_map'}) and LoRA "
        "Lab does not run remote code; use a model whose class transformers has"
    )


def refuse_pickles(name: str, location: str, named: object, *, local_only: bool) -> None:
    """Refuse files of weights that are no safetensors in the model's own folder.

    transformers takes the ending of an index's first file for what all are: of another it
    unpickles them.

    Args:
        name: what the user asked for.
        location: a folder or a hub id.
        named: the config's "transformers_weights", the file to read in place of the usual ones.
        local_only: fetch nothing.

    Raises:
        ModelError: the line names the file.
    """
    odd = [] if named is None or _is_shard(str(named).removesuffix(".index.json")) else [str(named)]
    indices = [] if odd else {_INDEX, str(named)}
    for index in filter(lambda own: own.endswith(".index.json"), indices):
        if (path := _file(location, index, local_only)) is None:
            continue
        try:
            value = parse_json(read_bytes(path, MOST_BYTES, follow=True))
            files = sorted(set(value["weight_map"].values()))
            odd += [file for file in files if not _is_shard(file)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(
                f"{name} cannot be loaded: its {index} lists no files of weights; fetch it again"
            ) from None
    if odd:
        raise ModelError(
            f"{name} cannot be loaded: its files name {odd[0][:80]!r} for weights, which is no "
            f"{_WEIGHTS} in its folder; pickled weights are not read, so save those again with "
            "save_pretrained"
        )


def base_alone(name: str, location: str, *, local_only: bool) -> dict[str, Any]:
    """Return what has transformers read a model without the adapter that lies beside it.

    Where PEFT is installed, it would put that on, and import what its config names.

    Args:
        name, location, local_only: as in `refuse_pickles`.

    Returns:
        Options of `from_pretrained`; none where there is no adapter.

    Raises:
        ModelError: this version of transformers (up to 5.15) cannot be kept from it.
    """
    from transformers.utils import find_adapter_config_file, is_peft_available

    if _file(location, _ADAPTER, local_only) is None:
        return {}
    elsewhere = secrets.token_hex(8)  # a folder in which it looks for an adapter
    local = is_peft_available() and Path(location).is_dir()
    if local and find_adapter_config_file(location, subfolder=elsewhere) is not None:
        raise ModelError(
            f"{name} has an adapter beside its weights ({_ADAPTER}), which this version of "
            "transformers would put on the model; move it into a folder of its own, or update "
            "transformers"
        )
    warn(
        f"{name} has an adapter beside its weights ({_ADAPTER}), which is not on the model; "
        "ll.load_adapter reads it"
    )
    return {"adapter_kwargs": {"subfolder": elsewhere}}


def _file(location: str, name: str, local_only: bool) -> Path | None:
    """Return where a model's file is on this machine, fetched first; None where it has none."""
    from transformers.utils import cached_file

    try:
        with quiet_transformers():
            found = cached_file(location, name, local_files_only=local_only)
    except (OSError, ValueError):  # of the hub, too: from_pretrained says it in full
        return None
    return None if found is None else Path(found)


def _is_shard(name: str) -> bool:
    """Whether a file of weights lies in the folder of its index, and is no pickle.

    Raises:
        AttributeError: the name is no text.
    """
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            return False
    return name.endswith(_WEIGHTS)


def _fetched_kernels(raw: Any) -> Iterator[str]:
    """Yield `attn_implementation: 'owner/name'` and the like, which transformers would run."""
    for key, value in raw.items() if isinstance(raw, Mapping) else enumerate(raw):
        if isinstance(value, Mapping | list):
            yield from _fetched_kernels(value)
        of_kernel = str(key).endswith("implementation") or "_implementation_" in str(key)
        if of_kernel and any(map(_is_fetched, _texts(value))):
            yield f"{key}: {value!r}"[:200]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for own in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(own)


def _is_fetched(implementation: str) -> bool:
    """Whether transformers fetches it: by its name, or as another's stand-in.

    Where the package `kernels` is installed, flash attention without a package of its own comes
    from the hub, and so do some experts.
    """
    from transformers import utils

    plain = implementation.rpartition("|")[2]
    if "/" in plain or plain in _BUILT_IN or not utils.is_kernels_available():
        return "/" in plain
    flash = _FLASH.fullmatch(plain)
    is_here = flash and getattr(utils, f"is_flash_attn_{flash[1]}_available", None)
    return not (is_here and is_here())


def _endless(raw: Any) -> Iterator[str]:
    """Yield `num_hidden_layers: 1000000000` and the like."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _endless(value)
        most = next((most for words, most in _COUNTS.items() if words.search(str(key))), None)
        for number in value if isinstance(value, list) else (value,):
            if most is not None and type(number) is int and number > most:
                yield f"{key}: {number:,}"[:200]
