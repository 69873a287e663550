"""What is no number is written nowhere: not into a model's weights, and not into a file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lora_lab.errors import AdapterError


class NotFiniteAdapterError(AdapterError):
    """An adapter, or what it would make of a weight, holds NaN or infinite values."""


def check_finite(adapter: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless all that an adapter would write is a number.

    Args:
        adapter: its name.
        tensors: by their names, of any dtype.

    Raises:
        NotFiniteAdapterError: names the first tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
            raise NotFiniteAdapterError(
                f"adapter {adapter!r} holds {count:,} NaN or infinite values at {name}, so nothing "
                "is written; go back to an earlier checkpoint, or train it again with a lower "
                "learning_rate"
            )


def check_sum(name: str, before: Tensor, after: Tensor) -> None:
    """Raise where a weight was a number, and what is to be written in its place is none.

    Args:
        name: of the weight in the model.
        before: W₀; what is no number there may stay so (a mask of −∞).
        after: the same in the dtype that it is written in.

    Raises:
        NotFiniteAdapterError: it names the weight.
    """
    if not after.is_floating_point() or after.isfinite().all():
        return
    if count := int((~after.isfinite() & before.isfinite().to(after.device)).sum()):
        dtype = str(after.dtype).removeprefix("torch.")
        raise NotFiniteAdapterError(
            f"{name} would hold {count:,} NaN or infinite values in {dtype}, so nothing is "
            "written; use bfloat16 or float32 if the adapter's own values are finite, else an "
            "earlier checkpoint"
        )
