"""Which matrices OFT rotates on a given model, and in what blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError
from lora_lab.methods.lora.site_names import within
from lora_lab.methods.lora.targets import select
from lora_lab.methods.oft.config import OFTConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Site


@dataclass(frozen=True)
class Rotation:
    """The blocks on one layer's input.

    Attributes:
        site: the layer's, or the first of a fused matrix's.
        blocks: on the diagonal of R.
        size: features in each.
        learned: blocks that are learned: one where it is shared.
        note: what the config became here, or "".
    """

    site: Site
    blocks: int
    size: int
    learned: int
    note: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is learned: the entries above the diagonal of each Q."""
        return self.learned, self.size * (self.size - 1) // 2


def resolve_rotations(anatomy: Anatomy, config: OFTConfig) -> tuple[Rotation, ...]:
    """Return the rotations of a config, a layer each, in the anatomy's order.

    Raises:
        ConfigError: a target that matches nothing or that OFT cannot rotate.
    """
    sites = within(select(anatomy, config.target_modules), config)
    chosen = {site.name for site in sites}
    rotations: dict[str, Rotation] = {}
    for site in sites:
        if site.kind != "linear":
            raise ConfigError(
                f"OFT is for linear layers here, and {site.module} is none; leave it out of "
                "target_modules"
            )
        if site.module in rotations:
            continue
        whole = {other.name for other in anatomy.by_module[site.module]}
        if not whole <= chosen:
            raise ConfigError(
                f"{site.name} reads what the other slices of {site.module} read, and OFT rotates "
                f"that; name the module itself in target_modules: {site.module.rpartition('.')[2]}"
            )
        rotations[site.module] = _rotation(site, config)
    return tuple(rotations.values())


def _rotation(site: Site, config: OFTConfig) -> Rotation:
    width, wanted = site.in_features, config.oft_block_size or config.r
    given = divisor(width, wanted)
    size = given if config.oft_block_size else width // given
    if size < 2:
        raise ConfigError(
            f"{site.module} reads {width} features and its blocks would have one each, which turns "
            "nothing; use an oft_block_size of at least 2, or fewer blocks (r)"
        )
    name = "oft_block_size" if config.oft_block_size else "r"
    note = f"{name} {wanted} does not divide the {width} inputs of {site.module}; it is {given}"
    blocks = width // size
    learned = 1 if config.block_share else blocks
    return Rotation(site, blocks, size, learned, "" if given == wanted else f"{note} there")


def divisor(width: int, wanted: int) -> int:
    """Return the divisor of a width nearest to what is wanted; of two the lower, as PEFT."""
    if wanted >= width:
        return width
    higher = next(n for n in range(wanted, width + 1) if width % n == 0)
    lower = next(n for n in range(wanted, 0, -1) if width % n == 0)
    return lower if wanted - lower <= higher - wanted else higher
