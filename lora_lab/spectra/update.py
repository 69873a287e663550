"""ΔW = s·BA as one value: files hold it, sites yield it, layers add it, analyses look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from array_api_compat import array_namespace, device

from lora_lab._util.arrays import computable, same_library, to_numpy
from lora_lab.errors import AdapterError
from lora_lab.spectra._arrays import Array
from lora_lab.spectra.lowrank import singular_triplets, singular_triplets_of_sum

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Rows, Site


class LowRankUpdate(NamedTuple):
    """ΔW = s·BA, or s·(BA − B₀A₀) where the factors started from W₀; never built.

    The factors are NumPy arrays or torch tensors, whole matrices or the rows of a fused one.

    Attributes:
        A: (r, in).
        B: (out, r), `out` counting only the rows that the update owns.
        scale: s.
        rows: the rows of a fused matrix that it owns; None: all.
        initial: (A₀, B₀) that training started from, where an init (PiSSA, OLoRA) took them from
            W₀: ΔW is of rank ≤ 2r then, against W₀ as it was. None: ΔW is s·BA.
    """

    A: Array
    B: Array
    scale: float = 1.0
    rows: Rows | None = None
    initial: tuple[Array, Array] | None = None

    @property
    def r(self) -> int:
        """The rank of BA."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return self.B.shape[0], self.A.shape[1]

    def terms(self) -> list[LowRankUpdate]:
        """Return the products that ΔW is the sum of: s·BA, and −s·B₀A₀ if there is such a part."""
        if self.initial is None:
            return [self]
        A_0, B_0 = self.initial
        return [self._replace(initial=None), LowRankUpdate(A_0, B_0, -self.scale, self.rows)]

    def triplets(self) -> tuple[Array, Array, Array]:
        """Return the thin SVD U (out, m), s (m,), Vt (m, in); see `singular_triplets`.

        Raises:
            AdapterError: NaN or infinite factors.
        """
        own, *started = (term._computable() for term in self.terms())
        if not started:
            return singular_triplets(own.A, own.B, own.scale)
        return singular_triplets_of_sum([(t.A, t.B, t.scale) for t in (own, *started)])

    def joined(self) -> LowRankUpdate:
        """Return the same ΔW as one product s·BA, of rank r or 2r, cut off from autograd.

        BA − B₀A₀ = (B − B₀)A + B₀(A − A₀). The differences are exact to the bit while they are
        small, so that ΔW is 0 at the start, and not what rounding leaves of two large products.
        """
        own, *started = (term._computable() for term in self.terms())
        A, B = same_library(own.A, own.A), same_library(own.B, own.B)
        if started:
            A_0, B_0 = (same_library(factor, A) for factor in started[0][:2])
            A, B = _concat([A, A - A_0], axis=0), _concat([B - B_0, B_0], axis=1)
        return LowRankUpdate(A, B, self.scale, self.rows)

    def beside(self, W: Array) -> LowRankUpdate:
        """Return `joined` in W's library and on its device.

        Raises:
            AdapterError: ΔW does not have W's shape.
        """
        self.check_fits(W)
        joined = self.joined()
        return joined._replace(A=same_library(joined.A, W), B=same_library(joined.B, W))

    def copied(self) -> LowRankUpdate:
        """Return it with copies of A and B, which nothing else changes, cut off from autograd."""
        A, B = (same_library(x, x) for x in (self.A, self.B))
        xp = array_namespace(A)
        return self._replace(A=xp.asarray(A, copy=True), B=xp.asarray(B, copy=True))

    def to_numpy(self) -> LowRankUpdate:
        """Return a float32 copy of `joined` in NumPy."""
        joined = self.joined()
        return joined._replace(A=to_numpy(joined.A), B=to_numpy(joined.B))

    def rescaled(self, scale: float) -> LowRankUpdate:
        """Return the same ΔW = s·BA with another s: B bit for bit where it is s already.

        Else the quotient of the two is multiplied into B in float64 and rounded once.
        """
        if scale == self.scale:
            return self
        xp = array_namespace(self.B)
        B = xp.astype(self.B, xp.float64) * (self.scale / scale)
        return self._replace(B=xp.astype(B, self.B.dtype), scale=scale)

    def plus(self, *others: LowRankUpdate) -> LowRankUpdate:
        """Return the sum with other s·BA of the same rows, exact: ranks add up; s is this one's."""
        every = [self, *(other.rescaled(self.scale) for other in others)]
        A = _concat([update.A for update in every], axis=0)
        return self._replace(A=A, B=_concat([update.B for update in every], axis=1))

    def truncated(self, r: int) -> LowRankUpdate:
        """Return the nearest ΔW = s·BA of rank r (Eckart & Young): its r strongest triplets.

        √σ of each is in A and in s·B. Nothing is lost where ΔW has no more than r.
        """
        U, s, Vt = self.triplets()
        root = s[:r] ** 0.5
        A, B = root[:, None] * Vt[:r], U[:, :r] * root / self.scale
        return LowRankUpdate(A, B, self.scale, self.rows)

    def check_fits(self, W: Array) -> None:
        """Raise `AdapterError` unless ΔW has the shape of W."""
        if tuple(W.shape) != tuple(self.shape):
            raise AdapterError(
                f"ΔW is {self.shape[0]} × {self.shape[1]} but W₀ is "
                f"{' × '.join(map(str, W.shape))}; this adapter belongs to another base model"
            )

    def _computable(self) -> LowRankUpdate:
        """Return it where LAPACK's routines exist; what AdaLoRA has left no triplet, as zeros."""
        A, B = computable(self.A), computable(self.B)
        if not self.r:
            xp = array_namespace(A)
            A = xp.zeros((1, A.shape[1]), dtype=A.dtype, device=device(A))
            B = xp.zeros((B.shape[0], 1), dtype=B.dtype, device=device(B))
        return self._replace(A=A, B=B)


class SiteUpdate(NamedTuple):
    """ΔW at one place in a model, apart from any model.

    Attributes:
        site: the place.
        update: its ΔW.
        step: the optimizer step that it is of; None: not known.
    """

    site: Site
    update: LowRankUpdate
    step: int | None = None


def _concat(arrays: list[Array], axis: int) -> Array:
    return array_namespace(arrays[0]).concat(arrays, axis=axis)
