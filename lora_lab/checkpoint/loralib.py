"""loralib's files: a state dict with `lora_A` and `lora_B` beside each adapted weight.

Neither α nor MergedLinear's `enable_lora` is in them (Hu et al., 2022: α = 32, q and v for GPT-2);
safetensors written here note both beside the tensors. A MergedLinear of n slices shows by its
shapes: A is (n·r, in), B is (n·width, r), and a grouped convolution gives each slice r rows of A
and `width` rows of B.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_lab._util.json_files import parse_json
from lora_lab.anatomy.children import without_wrappers
from lora_lab.anatomy.types import Rows
from lora_lab.checkpoint.adapter_file import AdapterFile, Slice, check_factor
from lora_lab.checkpoint.files import StoredTensor, read_tensors
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate

FACTS_KEY = "lora_lab_loralib"  # safetensors metadata: what the tensors do not tell
FUSED = ("q", "k", "v")  # in the order of their rows in GPT-2's c_attn

_KEY = re.compile(r"(?P<module>.+?)\.lora_(?P<part>[AB])")
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
) -> AdapterFile:
    """Read a file of loralib's.

    Args:
        path: .safetensors, or a pickle of the state dict.
        lora_alpha: α; s = α/r. None: the file's own, where it has one.
        slices: which of q, k and v a MergedLinear adapts; by default what the file tells, or q and
            v of two.
        allow_pickle: see `read_tensors`.

    Returns:
        The file. Embeddings are known by their names; they stand among what is left out too, since
        they are no matrix products.

    Raises:
        AdapterError: the file is damaged or foreign, or α is missing.
    """
    tensors, metadata = read_tensors(path, allow_pickle=allow_pickle)
    known_alpha, known_slices = decode_facts(metadata.get(FACTS_KEY, ""))
    lora_alpha = known_alpha if lora_alpha is None else lora_alpha
    halves, embedded, left_out = _sort(tensors)
    if not halves and not embedded and not left_out:
        raise AdapterError(f"{path} holds no lora_A and lora_B; name a file of loralib's")
    lora_alpha = _checked_alpha(path, lora_alpha)
    modules: dict[str, LowRankUpdate] = {}
    fused: dict[str, tuple[Slice, ...]] = {}
    assumptions: list[str] = []
    embeddings = {path: _embedding(path, pair, lora_alpha) for path, pair in embedded.items()}
    for module, pair in halves.items():
        A, B = _pair(module, pair)
        count = _slice_count(module, A, B)
        named = slices or known_slices.get(module)
        one = module in known_slices or _FUSED_NAME.fullmatch(module)
        if count == 1 and not (named and len(named) == 1 and one):
            modules[module] = LowRankUpdate(A, B, lora_alpha / B.shape[1])
            continue
        chosen = _chosen(module, count, named)
        if count == 2 and named is None and not assumptions:
            assumptions.append(
                f"assumed: the two slices of {module} are q and v, as in the paper; "
                "the file does not tell (--slices)"
            )
        modules[module], fused[module] = _unfold(module, A, B, chosen, lora_alpha)
    if slices and not fused:
        raise AdapterError(f"{path} adapts no MergedLinear, so slices mean nothing; leave them out")
    return AdapterFile({}, modules, fused, left_out, embeddings, assumptions=assumptions)


def _checked_alpha(path: Path, lora_alpha: float | None) -> float:
    if lora_alpha is None:
        raise AdapterError(
            f"{path}: loralib's files do not hold α; give the one of its training (--alpha)"
        )
    if not (math.isfinite(lora_alpha) and lora_alpha > 0):
        raise AdapterError(f"lora_alpha is {lora_alpha!r}; it must be a positive number")
    return lora_alpha


def _slice_count(module: str, A: np.ndarray, B: np.ndarray) -> int:
    """Return how many slices a MergedLinear has; 1 may be a Linear."""
    count, rest = divmod(A.shape[0], B.shape[1])
    if rest or count not in (1, 2, 3) or B.shape[0] % count:
        raise AdapterError(
            f"{module}: A is {tuple(A.shape)} and B {tuple(B.shape)}, which fit neither "
            "loralib's Linear nor its MergedLinear"
        )
    return count


def encode_facts(lora_alpha: float, slices: Mapping[str, Sequence[str]]) -> str:
    """Return the text that `decode_facts` reads.

    Args:
        lora_alpha: α.
        slices: {path of a MergedLinear: which of q, k and v it adapts}.
    """
    return json.dumps({"lora_alpha": lora_alpha, "slices": {k: list(v) for k, v in slices.items()}})


def decode_facts(text: str) -> tuple[float | None, dict[str, tuple[str, ...]]]:
    """Return (α, {path of a MergedLinear: its slices}); (None, {}) of no text.

    Raises:
        AdapterError: the text is something else.
    """
    if not text:
        return None, {}
    try:
        facts = parse_json(text.encode())
        alpha = facts["lora_alpha"]
        slices = {path: tuple(roles) for path, roles in facts["slices"].items()}
        if type(alpha) not in (int, float) or not all(
            set(r) <= set(FUSED) for r in slices.values()
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AdapterError(
            "what the file notes of α and slices is damaged; save it again"
        ) from None
    return float(alpha), slices


Halves = dict[str, dict[str, np.ndarray]]  # {module: {"A", "B"}}


def _sort(tensors: Mapping[str, StoredTensor]) -> tuple[Halves, Halves, dict[str, list[str]]]:
    """Return the factors of matrices, those of embeddings, and the names of all that is left."""
    halves: Halves = {}
    embedded: Halves = {}
    left_out: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        key = without_wrappers(name)
        match = _KEY.fullmatch(key)
        if match is None:
            if ".lora_" in key:
                raise AdapterError(
                    f"tensor {key!r} is not loralib's; for PEFT's format name the folder with "
                    "its adapter_config.json"
                )
            left_out.setdefault("biases" if key.endswith("bias") else "weights", []).append(key)
        elif _CONVOLUTION.fullmatch(match["module"]):
            left_out.setdefault("convolutions", []).append(key)
        else:
            kind = embedded if _EMBEDDING.fullmatch(match["module"]) else halves
            kind.setdefault(match["module"], {})[match["part"]] = check_factor(key, tensor.numpy())
            if kind is embedded:
                left_out.setdefault("embeddings", []).append(key)
    return halves, embedded, left_out


def _pair(module: str, halves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if missing := {"A", "B"} - halves.keys():
        raise AdapterError(
            f"{module} has lora_{min(halves)} without its partner lora_{min(missing)}; "
            "fetch the adapter again"
        )
    return halves["A"], halves["B"]


def _embedding(module: str, halves: Mapping[str, np.ndarray], lora_alpha: float) -> LowRankUpdate:
    A, B = _pair(module, halves)
    if A.shape[0] != B.shape[1]:
        raise AdapterError(
            f"{module}: A is {tuple(A.shape)} and B {tuple(B.shape)}, which do not fit loralib's "
            "Embedding"
        )
    return LowRankUpdate(A, B, lora_alpha / B.shape[1])


def _chosen(module: str, count: int, slices: Sequence[str] | None) -> tuple[str, ...]:
    if count == len(FUSED):
        return FUSED
    chosen = tuple(name for name in FUSED if name in (slices or _USUAL))
    if len(chosen) != count or (slices and len(chosen) != len(slices)):
        raise AdapterError(
            f"{module} adapts {count} slices, and slices={','.join(slices or _USUAL)}; "
            f"name {count} of q, k and v"
        )
    return chosen


def _unfold(
    module: str, A: np.ndarray, B: np.ndarray, chosen: Sequence[str], lora_alpha: float
) -> tuple[LowRankUpdate, tuple[Slice, ...]]:
    """Return a MergedLinear's update over the whole fused matrix: B block-diagonal."""
    width, r = B.shape[0] // len(chosen), B.shape[1]
    fused = np.zeros((len(FUSED) * width, len(chosen) * r), B.dtype)
    parts = []
    for index, role in enumerate(chosen):
        rows = Rows(1, len(FUSED) * width, FUSED.index(role) * width, width)
        own = B[index * width : (index + 1) * width]
        fused[rows.offset : rows.offset + width, index * r : (index + 1) * r] = own
        parts.append(Slice(f"{module}[{role}]", r, rows))
    return LowRankUpdate(A, fused, lora_alpha / r), tuple(parts)
