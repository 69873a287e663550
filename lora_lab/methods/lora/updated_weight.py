"""W₀ + s·BA of routed experts as what their forward pass reads: built only where it has to be.

The forward passes of mixtures index their weights by expert, or hand them whole to a batched or a
grouped product. All of these are answered as x·W₀ + s·(x·A)·B, so that nothing of W₀'s size is
made or kept for the backward pass; whatever else is done with the weight is done with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

# torch's products of many groups of rows, and the loop that transformers has for them.
_GROUPED = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")
_ALIGNED = 16  # bytes, which rows of a grouped product's operands start at


class UpdatedWeight:
    """W₀ + s·BA in the place of a parameter, (experts, out, in) or (experts, in, out), or one.

    Args:
        weight: W₀, as stored.
        A: (…, r, in), cast to W₀'s dtype.
        B: (…, out, r), likewise.
        scale: s.
        transposed: W₀ is stored (…, in, out).
    """

    def __init__(
        self, weight: Tensor, A: Tensor, B: Tensor, scale: float, transposed: bool
    ) -> None:
        self.weight, self.A, self.B, self.scale = weight, A, B, scale
        self.transposed = transposed

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(L, R) with W₀ + s·LR as it is stored."""
        A, B = (factor.to(self.device, self.dtype) for factor in (self.A, self.B))
        return (A.mT, B.mT) if self.transposed else (B, A)

    @property
    def shape(self) -> torch.Size:
        """W₀'s."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """W₀'s."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """W₀'s."""
        return self.weight.device

    def dim(self) -> int:
        """Return W₀'s number of dimensions."""
        return self.weight.dim()

    def data_ptr(self) -> int:
        """Return W₀'s address: whoever asks looks at the alignment."""
        return self.weight.data_ptr()

    def built(self) -> Tensor:
        """Return W₀ + s·BA."""
        left, right = self.factors
        if self.weight.dim() == 2:
            return torch.addmm(self.weight, left, right, alpha=self.scale)
        return torch.baddbmm(self.weight, left, right, alpha=self.scale)

    def transpose(self, first: int, second: int) -> UpdatedWeight | Tensor:
        """Return it with out and in exchanged; other dimensions are those of the sum."""
        n = self.dim()
        if {first % n, second % n} != {n - 2, n - 1}:
            return self.built().transpose(first, second)
        return UpdatedWeight(self.weight.mT, self.A, self.B, self.scale, not self.transposed)

    def __getitem__(self, index: Any) -> UpdatedWeight | Tensor:
        number = isinstance(index, int) and not isinstance(index, bool)
        numbers = isinstance(index, Tensor) and index.dim() < 2 and index.dtype != torch.bool
        if self.dim() < 3 or not (number or numbers):
            return self.built()[index]
        parts = self.weight[index], self.A[index], self.B[index]
        return UpdatedWeight(*parts, self.scale, self.transposed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.built(), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        _types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer products from the factors, and everything else from the sum."""
        options = dict(kwargs or {})
        if len(args) > 1 and isinstance(args[1], cls) and isinstance(args[0], Tensor):
            x, weight, *more = args
            if func is F.linear and weight.dim() == 2:
                return weight._linear(x, *more, **options)
            if func in _PRODUCTS and not (more or options):
                left, right = weight.factors
                return torch.add(func(x, weight.weight), (x @ left) @ right, alpha=weight.scale)
            if getattr(func, "__name__", "").removesuffix(".default") in _GROUPED:
                return weight._grouped(func, x, *more, **options)
        if func in _PRODUCTS and isinstance(args[0], cls) and isinstance(args[1], Tensor):
            weight, x = args
            left, right = weight.factors
            return torch.add(func(weight.weight, x), left @ (right @ x), alpha=weight.scale)
        return func(*map(_whole, args), **{name: _whole(own) for name, own in options.items()})

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(cast(Any, self), other)

    def _linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        left, right = self.factors
        update = F.linear(F.linear(x, right), left)
        return torch.add(F.linear(x, self.weight, bias), update, alpha=self.scale)

    def _grouped(
        self, product: Callable[..., Tensor], x: Tensor, *more: Any, **options: Any
    ) -> Any:
        """Return a grouped product; ranks are filled up with zeros to what its kernel can take."""
        rest = -self.A.shape[-2] % (_ALIGNED // self.weight.element_size())
        A, B = F.pad(self.A, (0, 0, 0, rest)), F.pad(self.B, (0, rest))
        own = UpdatedWeight(self.weight, A, B, self.scale, self.transposed)
        left, right = own.factors
        update = product(product(x, left, *more, **options), right, *more, **options)
        return torch.add(product(x, self.weight, *more, **options), update, alpha=self.scale)


_PRODUCTS = {
    *(torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm),
    *(Tensor.__matmul__, Tensor.__rmatmul__),
}


def _whole(argument: Any) -> Any:
    if isinstance(argument, UpdatedWeight):
        return argument.built()
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(_whole, argument))
    return argument


def _by_operator(name: str) -> Callable[..., Any]:
    def answer(self: UpdatedWeight, *others: Any) -> Any:
        return getattr(self.built(), name)(*map(_whole, others))

    return answer


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "neg", "pow", "len", "iter"):
    setattr(UpdatedWeight, f"__{_name}__", _by_operator(f"__{_name}__"))
