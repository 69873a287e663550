"""LoRA on parameters that modules hold themselves: routed experts in one tensor, a router's weight.

Each expert has an A and a B of its own, ΔW_e = s·B_e·A_e (PEFT's `target_parameters`). The module's
forward pass is its own, whichever it is: what changes is the weight that it reads there, which is
an attribute of the swapped class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.class_swap import with_mixin
from lora_lab._util.torch_private import children_of, functorch_is_active, parameters_of
from lora_lab.anatomy.children import ADAPTER_CHILD
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites
from lora_lab.methods.lora.targets import TargetSpec
from lora_lab.methods.lora.updated_weight import UpdatedWeight
from lora_lab.methods.own_modes import class_of, set_class
from lora_lab.spectra.update import LowRankUpdate


class ExpertsSite(nn.Module):
    """The factors of all experts of one tensor.

    Attributes:
        A: (experts, r, in).
        B: (experts, out, r).
        each: every expert's own site, views of A and B.
    """

    def __init__(self, planned: TargetSpec, config: LoraConfig, W: Tensor, *_: Any) -> None:
        super().__init__()
        self.site, self.scale, self.alpha = planned.site, planned.scale, planned.alpha
        r, (count, d, k) = planned.r, W.shape
        A, B = (torch.empty(count, *shape, device="meta") for shape in ((r, k), (d, r)))
        if not W.is_meta:
            started = [config.init.start(own, r, None, self.scale) for own in W]
            A, B = (torch.stack(factors) for factors in zip(*started, strict=True))
        dtype = torch.promote_types(W.dtype, torch.float32)
        self.A = nn.Parameter(A.to(W.device, dtype), requires_grad=not config.use_lorafa)
        self.B = nn.Parameter(B.to(W.device, dtype))
        self.magnitude = None
        self.each = tuple(ExpertSite(self, number) for number in range(count))

    @property
    def r(self) -> int:
        """The rank of every B_e·A_e."""
        return self.A.shape[1]

    @property
    def initial(self) -> None:
        """None: no start from W₀."""
        return None

    def delta(self) -> Tensor:
        """Return ΔW of all experts, (experts, out, in)."""
        return self.B @ self.A * self.scale

    def extra_repr(self) -> str:
        """Show shapes and scale in the model's repr."""
        return f"{self.site.role}, {len(self.each)} experts, r={self.r}, scale={self.scale:g}"


class ExpertSite:
    """One expert's factors: what the analyses take for a `LoraSite`."""

    initial = magnitude = None
    dropout = 0.0

    def __init__(self, every: ExpertsSite, number: int) -> None:
        self._every, self._number = every, number
        self.site = every.site.expert(number)
        self.scale, self.alpha = every.scale, every.alpha

    @property
    def A(self) -> Tensor:  # noqa: N802
        """A, (r, in)."""
        return self._every.A[self._number]

    @property
    def B(self) -> Tensor:  # noqa: N802
        """B, (out, r)."""
        return self._every.B[self._number]

    @property
    def r(self) -> int:
        """The rank of BA."""
        return self._every.r

    def parameters(self) -> Iterator[Tensor]:
        """Yield A and B, cut off from autograd, that tell whether they are learned."""
        for whole in (self._every.A, self._every.B):
            yield whole[self._number].detach().requires_grad_(whole.requires_grad)

    @property
    def update(self) -> LowRankUpdate:
        """ΔW with the parameters as they are now."""
        return LowRankUpdate(self.A, self.B, self.scale)

    def delta(self) -> Tensor:
        """Return ΔW = s·BA, (out, in)."""
        return self.B @ self.A * self.scale


def each_site(site: Any) -> tuple[LoraSite, ...]:
    """Return the sites of every expert, or the one site of what has none."""
    return cast("tuple[LoraSite, ...]", site.each if isinstance(site, ExpertsSite) else (site,))


class ParameterSites(LayerSites):
    """One adapter's sites on the parameters of one module."""

    plain = False

    def updated(self, name: str, weight: Tensor) -> UpdatedWeight | Tensor:
        """Return a parameter with its update, or as it is where there is no site for it."""
        for site in self.sites:
            if site.site.parameter == name:
                own = site.A, site.B, site.scale, site.site.transposed
                updated = UpdatedWeight(weight, *own)
                whole = torch.compiler.is_compiling() or functorch_is_active()
                return updated.built() if whole else updated
        return weight

    def merged_parameters(
        self,
        layer: nn.Module,
        original: Callable[[nn.Parameter], Tensor],
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (parameter, W₀ + ΔW) one by one, added in float32 or better and rounded once.

        Args:
            layer: the module.
            original: gives W₀ of a parameter of the model, whatever is written into it meanwhile.
            dtype: of the sums; each parameter's own by default.
        """
        for site in self.sites:
            weight = held_parameter(layer, site.site.parameter)
            precise = torch.promote_types(weight.dtype, torch.float32)
            delta = site.delta().detach()
            delta = delta.mT if site.site.transposed else delta
            yield weight, (original(weight).to(precise) + delta).to(dtype or weight.dtype)


def adapt_parameters(module: nn.Module, name: str, sites: ParameterSites, active: Active) -> None:
    """Add an adapter's sites below a module whose parameters they are for; see `layers.adapt`."""
    adapted: Any = module
    sites.train(module.training)
    if not isinstance(module, AdaptedLayer):
        own = parameters_of(module).items()
        names = tuple(key for key, p in own if p is not None and p.dim() > 1)
        adapted.lora, adapted._active = nn.ModuleDict(), active
        set_class(module, _adapted_class(class_of(module), names))
    children_of(adapted.lora)[name] = sites


def held_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """Return a module's parameter as it is, without an update."""
    return cast(nn.Parameter, parameters_of(module)[name])


class AdaptedParameters(AdaptedLayer):
    """Mixed into a module's class while adapters stand below its parameters."""

    is_read = True  # nobody has to wait for a call of its forward: see `watch`
    read_names: tuple[str, ...]  # the parameters that are read with their updates

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return the module's own output; its weights are read with their updates."""
        base: Any = getattr(self, "base_class", None) or type(self)
        return base.forward(self, *args, **options)

    # A forward on the instance, such as accelerate's, reads the weights as the class's does.
    __setattr__ = nn.Module.__setattr__
    __delattr__ = nn.Module.__delattr__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled by the base's class: see `AdaptedLayer`."""
        make, args, *state = cast(Any, super().__reduce_ex__(protocol))
        if args[:1] == (self.base_class,):
            return _new_adapted, (self.base_class, self.read_names, *args[2:]), *state
        return make, args, *state


@functools.cache
def _adapted_class(base: Any, names: tuple[str, ...]) -> Any:
    """Return the subclass of a module's class that reads these parameters with their updates."""
    members: dict[str, Any] = {
        "base_class": base,
        "transposed": False,
        "plain_product": False,
        "read_names": names,
        "__module__": base.__module__,
        **{name: property(functools.partial(_read, name=name)) for name in names},
    }
    return with_mixin(AdaptedParameters, base, f"Adapted{base.__name__}", members)


def _new_adapted(base: type[nn.Module], names: tuple[str, ...], *args: Any) -> nn.Module:
    """Return an adapted module that has no state yet."""
    adapted: type[nn.Module] = _adapted_class(cast(Any, base), names)
    return adapted.__new__(adapted, *args)


def _read(module: nn.Module, name: str) -> UpdatedWeight | Tensor:
    """Return a module's parameter with the active adapter's update."""
    weight = cast(Tensor, parameters_of(module)[name])
    active: Active | None = module.__dict__.get("_active")
    lora = children_of(module).get(ADAPTER_CHILD)
    if active is None or lora is None:
        return weight
    sites = children_of(lora)
    if active.samples is not None:
        for adapter in filter(None, active.samples):
            if adapter in sites:
                path = cast(ParameterSites, sites[adapter]).path
                raise AdapterError(
                    f"{path} gets tokens that a router picked, and nobody knows whose sample they "
                    f"are; run the samples of {adapter!r} apart, not in a mixed_batch"
                )
        return weight
    own = sites.get(cast(str, active.name))
    return weight if own is None else cast(ParameterSites, own).updated(name, weight)
