"""How A and B start: at random, from W₀'s own strongest directions, or from what a layer reads.

An initialization is a function of (weight, r, activations, scale), registered under the name that
`init_lora_weights` has for it; one in a notebook registers itself likewise. EVA and CorDA, which
start from data, have files of their own.

PiSSA and OLoRA start at a part of W₀ and train the rest away from it. Their papers take that part
out of W₀; here W₀ stays as it is and ΔW = s(BA − B₀A₀) with the start kept frozen, which is the
same function, and nothing has to be given back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_lab.methods.own_generator import generator
from lora_lab.spectra.directions import top_directions

if TYPE_CHECKING:
    from torch import Tensor

    Start = Callable[..., tuple[Tensor, Tensor]]
    Ranks = dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Initialization:
    """One value of `init_lora_weights`.

    Attributes:
        start: returns A (r, in) and B (out, r) of (weight, r, activations, scale): W₀ (out, in);
            the rank; the rows that the layer reads, (tokens, in) in float32, or None; s.
        from_base: BA is not zero at the start, and ΔW is counted from there.
        needs_activations: `attach` has to be given batches; `train` takes the run's first ones.
        options: the field of `LoraConfig` that `start` is called with too, as `options`.
        sample: what is made of the rows of each sample, before they are put together.
        asks: it draws from `own_generator.generator()`, or not at all.
        ranks: returns {site: (r, α)} of ({site: the config's}, {site: the rows that it reads}), and
            of `options`; an r of 0 leaves a site out. None: they are the config's.
    """

    start: Start
    from_base: bool = False
    needs_activations: bool = False
    options: str = ""
    sample: Callable[[Tensor], Tensor] | None = None
    ranks: Callable[..., Ranks] | None = None
    asks: bool = False


INITIALIZATIONS: dict[bool | str, Initialization] = {}
_COUNT = "_N"  # where a name ends in a number


def register_init(
    name: bool | str,
    *,
    from_base: bool = False,
    needs_activations: bool = False,
    options: str = "",
    sample: Callable[[Tensor], Tensor] | None = None,
    ranks: Callable[..., Ranks] | None = None,
    asks: bool = False,
) -> Callable[[Start], Start]:
    """Let `init_lora_weights` have a name; "…_N" stands for any number of 1 to 1000 in place of N.

    Args:
        name: what users write.
        from_base, needs_activations, options, sample, ranks, asks: see `Initialization`.
    """

    def register(start: Start) -> Start:
        INITIALIZATIONS[name] = Initialization(
            start, from_base, needs_activations, options, sample, ranks, asks
        )
        return start

    return register


def find_init(name: object) -> Initialization | None:
    """Return the initialization of a name; None: there is none."""
    if not isinstance(name, (bool, str)):
        return None
    if name in INITIALIZATIONS:
        return INITIALIZATIONS[name]
    head, _, count = str(name).rpartition("_")
    found = INITIALIZATIONS.get(head + _COUNT)
    if found is None or not re.fullmatch("[1-9][0-9]{0,2}|1000", count):
        return None
    return replace(found, start=partial(found.start, count=int(count)))


@register_init(True, asks=True)
def kaiming(weight: Tensor, r: int, *_: Any) -> tuple[Tensor, Tensor]:
    """Return A kaiming-uniform(√5) and B zero, as loralib and PEFT do."""
    A, B = _empty(weight, r)
    return _kaiming(A), B


@register_init(False, asks=True)
def both_random(weight: Tensor, r: int, *_: Any) -> tuple[Tensor, Tensor]:
    """Return both kaiming-uniform(√5), so that ΔW ≠ 0 from the start."""
    A, B = _empty(weight, r)
    return _kaiming(A), _kaiming(B)


@register_init("gaussian", asks=True)
def gaussian(weight: Tensor, r: int, *_: Any) -> tuple[Tensor, Tensor]:
    """Return A ~ N(0, 1/r²) and B zero, as PEFT's "gaussian"."""
    A, B = _empty(weight, r)
    return A.normal_(std=1 / r, generator=generator()), B


@register_init("pissa", from_base=True)
def pissa(
    weight: Tensor, r: int, _activations: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return A = √S·Vᵀ and B = U√S of W₀/s's r strongest directions (Meng et al., 2024)."""
    return square_roots(*top_directions(weight.float(), r), scale)


@register_init("pissa_niter_N", from_base=True)
def fast_pissa(
    weight: Tensor, r: int, _activations: Tensor | None, scale: float, *, count: int
) -> tuple[Tensor, Tensor]:
    """Return PiSSA's from a randomized SVD of `count` iterations."""
    import torch

    U, S, V = torch.svd_lowrank(weight.float(), q=r, niter=count)
    return square_roots(U, S, V.T, scale)


@register_init("olora", from_base=True)
def olora(weight: Tensor, r: int, *_: Any) -> tuple[Tensor, Tensor]:
    """Return A = R and B = Q of W₀ = QR, the first r of each (Büyükakyüz, 2024).

    The first r columns of Q are those of the first r columns' own QR, and R is QᵀW₀: O(out·in·r),
    where the whole decomposition takes O(out·in·min(out, in)).
    """
    import torch

    W = weight.float()
    Q, _ = torch.linalg.qr(W[:, :r])
    return Q.T @ W, Q


def square_roots(U: Tensor, S: Tensor, Vt: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B with scale·BA = U·diag(S)·Vᵀ, the singular values in equal parts in both."""
    root = (S / scale).sqrt()
    return root[:, None] * Vt, U * root


def _empty(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return A, not filled, and B, zero; on the CPU: a seed gives the same on every device."""
    import torch

    out_features, in_features = weight.shape
    drawn: Any = {"device": "cpu", "dtype": torch.float32}  # whatever the defaults are
    return torch.empty(r, in_features, **drawn), torch.zeros(out_features, r, **drawn)


def _kaiming(factor: Tensor) -> Tensor:
    from torch import nn

    # U(−1/√in, 1/√in)
    return nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator())
