"""Layers whose weight is computed from other tensors, so that a sum written into it is lost.

`torch.nn.utils.parametrizations` and the older `torch.nn.utils.weight_norm` make the weight anew
for every pass. Where its sources can be set so that they give the merged weight, as weight
normalization's can, those are what merging writes; else it is refused before anything is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from lora_lab._util.format import a_kind
from lora_lab._util.torch_private import (
    buffers_of,
    convolve,
    parameters_of,
    pre_hooks_of,
    with_parameter,
)
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.errors import AdapterError, as_cause
from lora_lab.methods.lora.layers import base_class
from lora_lab.methods.lora.own_forward import (
    base_output,
    base_tensor,
    hold_weight,
    instance_forward,
)

Sources = list[tuple[nn.Parameter, Tensor]]

_ROUNDINGS = 16  # of the weight's dtype, between a merged weight and what its sources give
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = tuple(kind.forward for kind in (nn.Linear, nn.Embedding, *_CONVOLUTIONS))


def is_stored(layer: nn.Module) -> bool:
    """Whether a layer's weight is a tensor of its own, which what is written into stays in."""
    weight = hold_weight(layer)
    own = (*parameters_of(layer).values(), *buffers_of(layer).values())
    return any(tensor is weight for tensor in own)


def unmerged_weight(layer: nn.Module, original: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Return a layer's W₀, of the shape of its weight.

    Args:
        layer: with a floating-point weight, stored or computed.
        original: gives W₀ of a parameter of the model, whatever is written into it meanwhile.
    """
    if is_stored(layer):
        return original(cast(nn.Parameter, base_tensor(layer)))
    if (norm := _old_weight_norm(layer)) is not None:
        direction, length = (original(p) for p in _direction_and_length(layer))
        return direction * (length / torch.norm_except_dim(direction, 2, norm.dim))
    if (twin := _twin(layer)) is not None:
        for own, parameter in zip(_originals(twin), _originals(_list(layer)), strict=True):
            own.data = original(parameter).clone()
        return cast(Tensor, twin()).detach()
    return base_tensor(layer).detach()


def merged_layer(
    path: str,
    layer: nn.Module,
    original: Callable[[nn.Parameter], Tensor],
    merge: Callable[[Tensor], Tensor],
    dtype: torch.dtype | None = None,
) -> Sources:
    """Return (parameter, its value in the merged layer): the weight, or what it is computed from.

    Args:
        path: the layer's.
        layer: with a floating-point weight, stored or computed.
        original: see `unmerged_weight`.
        merge: makes W₀ the merged weight, in float32 or better.
        dtype: of the values; each parameter's own by default.

    Raises:
        AdapterError: no values of its sources give the merged weight.
    """
    weight = unmerged_weight(layer, original)
    merged = merge(weight)
    if is_stored(layer):
        return [(cast(nn.Parameter, hold_weight(layer)), merged.to(dtype or weight.dtype))]
    return [
        (source, value.to(dtype or source.dtype))
        for source, value in solved(path, layer, merged.to(weight.dtype))
    ]


def check_unshared(
    model: nn.Module, layers: Mapping[str, nn.Module], tied: Collection[nn.Module] = ()
) -> None:
    """Raise where merging a layer would change another one, which has the very same weight.

    Args:
        model: all of it.
        layers: {path: a layer whose merged weight is written}.
        tied: layers that the adapter changes in the same way.

    Raises:
        AdapterError: it names both.
    """
    owners = {id(layer.weight): path for path, layer in layers.items() if is_stored(layer)}
    for path, module in modules_within(model):
        for parameter in parameters_of(module).values():
            owner = owners.get(id(parameter))
            if owner is not None and module is not layers[owner] and module not in tied:
                raise AdapterError(
                    f"{owner} and {path} share one weight, which cannot hold what the adapter "
                    "makes of each; keep the adapter beside the base, or give them a weight each "
                    "before attaching"
                )


def check_layer(
    path: str,
    layer: nn.Module,
    original: Callable[[nn.Parameter], Tensor],
    merge: Callable[[Tensor], Tensor],
) -> None:
    """Raise `AdapterError` unless a layer would compute with what `merged_layer` returns."""
    check_forward(path, layer)
    if not is_stored(layer):
        merged_layer(path, layer, original, merge)


@torch.no_grad()
def solved(path: str, layer: nn.Module, merged: Tensor) -> Sources:
    """Return (source of the weight, value) so that a layer computes with the merged weight.

    Args:
        path: the layer's.
        layer: whose weight is not stored.
        merged: W₀ + ΔW, in the dtype of the weight.

    Raises:
        AdapterError: no such values are known.
    """
    if (norm := _old_weight_norm(layer)) is not None:
        direction, length = _direction_and_length(layer)
        return [(direction, merged), (length, torch.norm_except_dim(merged, 2, norm.dim))]
    if (twin := _twin(layer)) is not None and (check := _twin(layer)) is not None:
        try:
            twin.right_inverse(merged.clone())
            for own, solution in zip(_originals(check), _originals(twin), strict=True):
                own.data = solution.data
            given = cast(Tensor, check())
        except Exception as error:  # whatever a parametrization says of what it cannot be
            raise _refused(path, layer) from as_cause(error)
        limit = _ROUNDINGS * torch.finfo(merged.dtype).eps * merged.abs().max()
        if (given - merged).abs().max() <= limit:
            found = zip(_originals(_list(layer)), _originals(twin), strict=True)
            return [(parameter, solution.data) for parameter, solution in found]
    raise _refused(path, layer)


def check_forward(path: str, layer: nn.Module) -> None:
    """Raise unless a layer's forward pass is the product with its weight that merging takes it for.

    A layer that quantizes its weight, reads another tensor, or has a forward put in its class's
    place is tried on a few numbers. What cannot be tried, such as a layer of other arguments, is
    taken at its word.

    Raises:
        AdapterError: its output does not follow its weight.
    """
    base = cast(Any, base_class(layer))
    own = instance_forward(layer) is not None
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or (base.forward in _PLAIN and not own):
        return
    weight = cast(nn.Parameter, hold_weight(layer)).detach()
    random = torch.Generator().manual_seed(0)
    change = torch.randn(weight.shape, generator=random, device="cpu").to(weight) * weight.std()
    if isinstance(layer, nn.Linear):
        x = torch.randn(2, 3, layer.in_features, generator=random, device="cpu").to(weight)
    else:
        size = (2 * k * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
        x = torch.randn(1, layer.in_channels, *size, generator=random, device="cpu").to(weight)
    try:
        with torch.no_grad():
            follows = not own or _is_near(
                base_output(layer, x) - base_output(layer, torch.zeros_like(x)),
                _product(layer, x, weight),
            )
            if base.forward not in _PLAIN:
                twins = [with_parameter(layer, "weight", w) for w in (weight, weight + change)]
                before, after = (base.forward(twin, x) for twin in twins)
                follows &= _is_near(after - before, _product(layer, x, change))
    except Exception:
        return
    if not follows:
        what = f"{a_kind(base)} with a forward of its own" if own else a_kind(base)
        raise AdapterError(
            f"{path} is {what}, whose output is not the product with its weight "
            "(it quantizes it, or reads another tensor), so that a sum in the weight would not be "
            "what was trained; keep the adapter beside the base, or leave the layer out of "
            "target_modules"
        )


def _product(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a weight makes of x in a layer's place, without its bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight)
    return convolve(layer, x, weight)


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    limit = (0.01 + 4 * torch.finfo(wanted.dtype).eps) * wanted.norm()
    return bool((found - wanted).norm() <= limit)


def _refused(path: str, layer: nn.Module) -> AdapterError:
    makers = [type(p).__name__.lstrip("_") for p in _list(layer)] if _is_parametrized(layer) else []
    how = f" ({', '.join(makers)})" if makers else ""
    return AdapterError(
        f"{path} has no weight of its own: it is computed anew for every pass{how}, and W₀ + ΔW "
        "cannot be what comes out; keep the adapter beside the base, or make the weight a plain "
        "one before attaching (torch.nn.utils.parametrize.remove_parametrizations)"
    )


def _is_parametrized(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def _list(layer: nn.Module) -> Any:
    """Return the parametrizations of a layer's weight."""
    return cast(Any, layer.parametrizations)["weight"]


def _twin(layer: nn.Module) -> Any:
    """Return a copy of the parametrizations to try things on; None where there are none."""
    return copy.deepcopy(_list(layer)).eval() if _is_parametrized(layer) else None


def _originals(parametrizations: Any) -> Iterator[nn.Parameter]:
    """Yield what a weight is computed from, and none of the parametrizations' own parameters."""
    if parametrizations.is_tensor:
        yield parametrizations.original
    else:
        for index in range(parametrizations.ntensors):
            yield getattr(parametrizations, f"original{index}")


def _old_weight_norm(layer: nn.Module) -> WeightNorm | None:
    found = (hook for hook in pre_hooks_of(layer).values() if isinstance(hook, WeightNorm))
    return next((hook for hook in found if hook.name == "weight"), None)


def _direction_and_length(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return cast(nn.Parameter, layer.weight_v), cast(nn.Parameter, layer.weight_g)
