"""The base model beside an adapter's file: W₀ of every site, as it was before training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab.analysis.leading import BaseWeight
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.anatomy.wrappers import module_at
from lora_lab.checkpoint.adapter_file import rows_of
from lora_lab.checkpoint.factors import AdapterFactors
from lora_lab.errors import ModelError
from lora_lab.methods.lora.layers import owned_rows
from lora_lab.spectra.update import SiteUpdate

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


class Base:
    """A loaded base model and the weights of an adapter's sites in it.

    Attributes:
        lm: the model.
        anatomy: of the model.
    """

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm
        self.anatomy: Anatomy = anatomy(lm.model)
        self._sites: dict[str, Site] = {}

    def weight(self, site_name: str) -> Tensor:
        """Return W₀ (out, in) of one of the sites that `beside` was given.

        Raises:
            ModelError: the weight is quantized.
        """
        site = self._sites[site_name]
        weight = owned_rows(self._stored(site), site)
        return weight.reshape(site.out_features, site.in_features)

    def beside(self, factors: AdapterFactors) -> tuple[SiteUpdate, ...]:
        """Return an adapter's sites, with what its init took out of this base, if anything."""
        self._sites |= {site.site.name: site.site for site in factors.sites}
        if not factors.changed_base.startswith("pissa"):
            return factors.sites
        return tuple(self._pissa(factors.sites))

    def _pissa(self, sites: Iterable[SiteUpdate]) -> Iterable[SiteUpdate]:
        """Yield the sites with PiSSA's start: s·B₀A₀ is the module's r strongest triplets."""
        for site, update, _ in sites:
            stored = self._stored(site)
            whole = stored.T if site.transposed else stored
            U, s, Vt = BaseWeight(whole).leading(update.r)
            B_0 = (U * (s / update.scale))[rows_of(site.rows)]
            initial = Vt.astype(update.A.dtype), B_0.astype(update.B.dtype)
            yield SiteUpdate(site, update._replace(initial=initial))

    def _stored(self, site: Site) -> Tensor:
        weight: Any = module_at(self.lm.model, site.module).weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ModelError(f"{site.module} holds no floating-point weights; load it unquantized")
        return weight.detach()
