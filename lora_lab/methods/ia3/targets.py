"""Which vectors IA3 learns on a given model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab._util.patterns import Budget
from lora_lab.errors import ConfigError
from lora_lab.methods.ia3.config import IA3Config
from lora_lab.methods.lora.site_names import within
from lora_lab.methods.lora.targets import select

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Site


@dataclass(frozen=True)
class Vector:
    """One learned vector: it scales a site's output, or what its module reads."""

    site: Site
    feedforward: bool

    @property
    def place(self) -> str:
        """The site's name; a module's own where its input is scaled."""
        return self.site.module if self.feedforward else self.site.name

    @property
    def size(self) -> int:
        """Its length."""
        return self.site.in_features if self.feedforward else self.site.out_features


def resolve_vectors(anatomy: Anatomy, config: IA3Config) -> tuple[Vector, ...]:
    """Return the vectors of a config in the anatomy's order, those of one module together.

    Raises:
        ConfigError: a target that matches nothing or that IA3 has no vector for.
    """
    sites = within(select(anatomy, config.target_modules), config)
    scaled = _feedforward(anatomy, config, sites)
    vectors: dict[str, list[Vector]] = {}
    for site in sites:
        if site.kind not in ("linear", "conv"):
            raise ConfigError(
                f"IA3 is for linear layers and Conv2d, and {site.module} is none; leave it out of "
                "target_modules"
            )
        here = vectors.setdefault(site.module, [])
        if site.name not in scaled:
            here.append(Vector(site, False))
        elif not here:
            here.append(Vector(site, True))
    return tuple(vector for here in vectors.values() for vector in here)


def _feedforward(anatomy: Anatomy, config: IA3Config, sites: Iterable[Site]) -> set[str]:
    """Return the names of the targets whose input is scaled."""
    own = {site.name: site for site in sites}
    named = config.feedforward_modules
    if named is None:
        return {site.name for site in own.values() if site.role == "down"}
    scaled: set[str] = set()
    budget = Budget()
    for entry in [named] if isinstance(named, str) else dict.fromkeys(named):
        sites = select(anatomy, entry, "feedforward_modules", budget)
        found = {site.name for site in sites} & own.keys()
        if not found:
            raise ConfigError(
                f"feedforward_modules entry {entry!r} is none of the targets; name it in "
                "target_modules too, or leave it out"
            )
        scaled |= found
    for site in map(own.__getitem__, scaled):
        if site.kind == "conv":
            raise ConfigError(
                f"{site.module} is a convolution, of which only the output is scaled; leave it out "
                "of feedforward_modules"
            )
        whole = {other.name for other in anatomy.by_module[site.module]}
        if not whole <= scaled:
            raise ConfigError(
                f"{site.name} reads what the other slices of {site.module} read, and one vector "
                "scales it; name the module itself in target_modules and feedforward_modules"
            )
    return scaled
