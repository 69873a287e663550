"""What the analyses need of an adapter's site, and the singular triplets of its ΔW."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import as_other, computable, to_numpy
from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError, ModelError


class AdaptedSite(Protocol):
    """What is needed of a site: its factors as tensors or NumPy arrays.

    A site whose init moved W₀ (PiSSA, OLoRA, LoRA-GA) also carries `initial`, its (A₀, B₀) at that
    moment. Its ΔW is scale·(BA − B₀A₀), of rank ≤ 2r, and its W₀ the original weight, before it
    was moved. Without the attribute, or with None, ΔW is scale·BA.

    With DoRA (`magnitude`) this is the low-rank part only: the learnt lengths change W₀ beyond it,
    by an update of full rank.
    """

    site: Site
    A: Any  # (r, in)
    B: Any  # (out, r)
    scale: float


def update_triplets(site: AdaptedSite) -> tuple[Any, Any, Any]:
    """Return the thin SVD of a site's ΔW, in its factors' library; see `spectra`.

    Raises:
        AdapterError: NaN or infinite factors.
    """
    A, B = _own_factors(site)
    initial = _initial(site)
    if initial is None:
        return spectra.singular_triplets(A, B, site.scale)
    parts = [(A, B, site.scale), (*map(computable, initial), -site.scale)]
    return spectra.singular_triplets_of_sum(parts)


def update_factors(site: AdaptedSite) -> tuple[Any, Any]:
    """Return A (m, in) and B (out, m) with ΔW = scale·BA, in the factors' library.

    m is r, or 2r where training began at `initial`: BA − B₀A₀ = (B − B₀)A + B₀(A − A₀). The
    differences are exact to the bit while they are small, so that ΔW is 0 at the start, and not
    what rounding leaves of two large products.
    """
    A, B = _own_factors(site)
    A, B = same_library(A, A), same_library(B, B)
    initial = _initial(site)
    if initial is None:
        return A, B
    A_0, B_0 = (same_library(computable(factor), A) for factor in initial)
    return _joined(A, A - A_0, axis=0), _joined(B - B_0, B_0, axis=1)


def factors_beside(site: AdaptedSite, W: Any) -> tuple[Any, Any]:
    """Return A (m, in) and B (out, m) with ΔW = scale·BA, in W's library and on its device.

    m is r, or 2r where the init moved W₀: the two updates are then one above the other.

    Raises:
        AdapterError: ΔW does not have W's shape.
    """
    check_fits(site.site.name, site.A, site.B, W)
    A, B = update_factors(site)
    return same_library(A, W), same_library(B, W)


def check_fits(site_name: str, A: Any, B: Any, W: Any) -> None:
    """Raise `AdapterError` unless BA has the shape of W."""
    d, k = B.shape[-2], A.shape[-1]
    if tuple(W.shape) != (d, k):
        raise AdapterError(
            f"{site_name}: ΔW is {d} × {k} but W₀ is {' × '.join(map(str, W.shape))}; "
            "this adapter belongs to another base model"
        )


@contextlib.contextmanager
def naming(site_name: str) -> Iterator[None]:
    """Put a site's name before the errors raised inside."""
    try:
        yield
    except (AdapterError, ModelError) as error:
        if str(error).startswith(f"{site_name}: "):
            raise
        raise type(error)(f"{site_name}: {error}") from None


def _own_factors(site: AdaptedSite) -> tuple[Any, Any]:
    """Return A and B; of a site that AdaLoRA has left no triplet, zeros of rank 1."""
    A, B = computable(site.A), computable(site.B)
    if A.shape[0]:
        return A, B
    if isinstance(A, np.ndarray):
        return np.zeros_like(A, shape=(1, A.shape[1])), np.zeros_like(B, shape=(B.shape[0], 1))
    return A.new_zeros(1, A.shape[1]), B.new_zeros(B.shape[0], 1)


def _initial(site: AdaptedSite) -> tuple[Any, Any] | None:
    return getattr(site, "initial", None)


def same_library(x: Any, W: Any) -> Any:
    """Return x in W's library, on its device, cut off from autograd."""
    if isinstance(W, np.ndarray):
        return x if isinstance(x, np.ndarray) else to_numpy(x)
    return as_other(x, W) if isinstance(x, np.ndarray) else x.detach().to(W.device)


def _joined(x: Any, y: Any, axis: int) -> Any:
    if isinstance(x, np.ndarray):
        return np.concatenate([x, y], axis)
    import torch

    return torch.cat([x, y], axis)
