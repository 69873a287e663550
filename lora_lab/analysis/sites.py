"""What the analyses need of an adapter's site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError, ModelError
from lora_lab.spectra.update import LowRankUpdate


class AdaptedSite(Protocol):
    """A place in a model and its ΔW: a `LoraSite`, or the `SiteUpdate` of a file or a snapshot.

    With DoRA (`magnitude`) the update is the low-rank part only: the learned lengths change W₀
    beyond it, by an update of full rank.
    """

    @property
    def site(self) -> Site:
        """The place."""

    @property
    def update(self) -> LowRankUpdate:
        """ΔW, its factors as tensors or NumPy arrays."""


class AdapterLike(Protocol):
    """What is needed of an adapter; `LoraAdapter` is one."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The adapted sites by name."""

    def base_weight(self, site_name: str) -> Any:
        """Return W₀ (out, in) of a site."""


@contextlib.contextmanager
def naming(site_name: str) -> Iterator[None]:
    """Put a site's name before the errors raised inside."""
    try:
        yield
    except (AdapterError, ModelError) as error:
        if str(error).startswith(f"{site_name}: "):
            raise
        raise type(error)(f"{site_name}: {error}") from None
