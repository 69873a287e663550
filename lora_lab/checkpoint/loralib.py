"""loralib's files: a state dict with `lora_A` and `lora_B` beside each adapted weight.

Neither α nor MergedLinear's `enable_lora` is in them (Hu et al., 2022: α = 32, q and v for GPT-2).
A MergedLinear of n slices shows by its shapes: A is (n·r, in), B is (n·width, r), and a grouped
convolution gives each slice r rows of A and `width` rows of B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_lab.anatomy import Rows
from lora_lab.checkpoint.files import read_tensors
from lora_lab.checkpoint.modules import AdapterFile, ModuleUpdate, Slice, check_factor
from lora_lab.errors import AdapterError

_KEY = re.compile(r"(?P<module>.+?)\.lora_(?P<part>[AB])")
_FUSED = ("q", "k", "v")  # in the order of their rows in GPT-2's c_attn
_USUAL = ("q", "v")
# With one slice a MergedLinear has a Linear's shapes; only its name tells.
_FUSED_NAME = re.compile(r"(.*\.)?(c_attn|qkv|qkv_proj|query_key_value|Wqkv|in_proj)")
_EMBEDDING = re.compile(r".*(embed|wte|wpe)[^.]*", re.IGNORECASE)
_CONVOLUTION = re.compile(r"(.*\.)?conv[^.]*", re.IGNORECASE)


def read_loralib(
    path: Path,
    lora_alpha: float | None,
    *,
    slices: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> tuple[AdapterFile, list[str]]:
    """Read a file of loralib's.

    Args:
        path: .safetensors, or a pickle of the state dict.
        lora_alpha: α; s = α/r.
        slices: which of q, k and v a MergedLinear adapts; by default q and v of two.
        allow_pickle: see `read_tensors`.

    Returns:
        The file, and lines about what was assumed.

    Raises:
        AdapterError: the file is damaged or foreign, or α is missing.
    """
    tensors, _ = read_tensors(path, allow_pickle=allow_pickle)
    halves, left_out = _sort(tensors)
    if not halves and not left_out:
        raise AdapterError(f"{path} holds no lora_A and lora_B; name a file of loralib's")
    if lora_alpha is None:
        raise AdapterError(
            f"{path}: loralib's files do not hold α; give the one of its training (--alpha)"
        )
    if not (math.isfinite(lora_alpha) and lora_alpha > 0):
        raise AdapterError(f"lora_alpha is {lora_alpha!r}; it must be a positive number")
    modules: dict[str, ModuleUpdate] = {}
    stacked: dict[str, tuple[Slice, ...]] = {}
    assumed = []
    for module, pair in halves.items():
        if missing := {"A", "B"} - pair.keys():
            raise AdapterError(
                f"{module} has lora_{min(pair)} without its partner lora_{min(missing)}; "
                "fetch the adapter again"
            )
        A, B = pair["A"], pair["B"]
        count, rest = divmod(A.shape[0], B.shape[1])
        if rest or count not in (1, 2, 3) or B.shape[0] % count:
            raise AdapterError(
                f"{module}: A is {tuple(A.shape)} and B {tuple(B.shape)}, which fit neither "
                "loralib's Linear nor its MergedLinear"
            )
        if count == 1 and not (slices and len(slices) == 1 and _FUSED_NAME.fullmatch(module)):
            modules[module] = ModuleUpdate(A, B, lora_alpha / B.shape[1])
            continue
        chosen = _chosen(module, count, slices)
        if count == 2 and slices is None:
            assumed.append(module)
        modules[module], stacked[module] = _unfold(module, A, B, chosen, lora_alpha)
    if slices and not stacked:
        raise AdapterError(f"{path} adapts no MergedLinear, so slices mean nothing; leave them out")
    notes = []
    if assumed:
        notes.append(
            f"assumed: the two slices of {assumed[0]} are q and v, as in the paper; "
            "the file does not tell (--slices)"
        )
    return AdapterFile({}, modules, stacked, left_out), notes


def _sort(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]]]:
    halves: dict[str, dict[str, Tensor]] = {}
    left_out: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            if ".lora_" in key:
                raise AdapterError(
                    f"tensor {key!r} is not loralib's; for PEFT's format name the folder with "
                    "its adapter_config.json"
                )
            left_out.setdefault("biases" if key.endswith("bias") else "weights", []).append(key)
        elif _EMBEDDING.fullmatch(match["module"]):
            left_out.setdefault("embeddings", []).append(key)
        elif _CONVOLUTION.fullmatch(match["module"]):
            left_out.setdefault("convolutions", []).append(key)
        else:
            part = {match["part"]: check_factor(key, tensor)}
            halves[match["module"]] = halves.get(match["module"], {}) | part
    return halves, left_out


def _chosen(module: str, count: int, slices: Sequence[str] | None) -> tuple[str, ...]:
    if count == len(_FUSED):
        return _FUSED
    chosen = tuple(name for name in _FUSED if name in (slices or _USUAL))
    if len(chosen) != count or (slices and len(chosen) != len(slices)):
        raise AdapterError(
            f"{module} adapts {count} slices, and slices={','.join(slices or _USUAL)}; "
            f"name {count} of q, k and v"
        )
    return chosen


def _unfold(
    module: str, A: Tensor, B: Tensor, chosen: Sequence[str], lora_alpha: float
) -> tuple[ModuleUpdate, tuple[Slice, ...]]:
    """Return a MergedLinear's update over the whole fused matrix: B block-diagonal."""
    width, r = B.shape[0] // len(chosen), B.shape[1]
    whole = torch.zeros(len(_FUSED) * width, len(chosen) * r, dtype=B.dtype)
    parts = []
    for index, role in enumerate(chosen):
        rows = Rows(1, len(_FUSED) * width, _FUSED.index(role) * width, width)
        own = B[index * width : (index + 1) * width]
        whole[rows.offset : rows.offset + width, index * r : (index + 1) * r] = own
        parts.append(Slice(f"{module}[{role}]", r, rows))
    return ModuleUpdate(A, whole, lora_alpha / r), tuple(parts)
