"""The blocks of a model, which are the rows of its grid; a row and a role make a cell.

Every label of a layer is made here, and every map is laid out by `cells`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from lora_lab.errors import ModelError

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Site

_SHORT = {"encoder": "enc", "decoder": "dec"}


class Placed(Protocol):
    """What has a place in the grid: a `Site`, a recorded one, or a row of an analysis."""

    @property
    def name(self) -> str:
        """The site's name."""

    @property
    def stack(self) -> str:
        """The name of its stack, "" where the model has one."""

    @property
    def layer(self) -> int | None:
        """The index within its stack; None outside the layers."""

    @property
    def role(self) -> str:
        """The column."""


P = TypeVar("P", bound=Placed)


@dataclass(frozen=True)
class Row:
    """One layer of the grid."""

    stack: str
    layer: int

    @property
    def label(self) -> str:
        """What stands beside a row: "3", "enc 3", "dec 3", or with a longer stack name."""
        return f"{stack_label(self.stack)} {self.layer}".strip()

    @property
    def title(self) -> str:
        """What names it in a sentence: "layer 3", "enc 3"."""
        return self.label if self.stack else f"layer {self.layer}"


@dataclass(frozen=True)
class Block:
    """One block of a model.

    Attributes:
        path: of its module.
        row: its row of the grid.
        roles: {role: site}, in the model's order.
    """

    path: str
    row: Row
    roles: Mapping[str, Site]


def stack_label(stack: str) -> str:
    """Return what people read in a stack's place: "enc", "dec", or its whole name."""
    return _SHORT.get(stack, stack)


def row_of(site: Placed) -> Row | None:
    """Return a site's row; None outside the layers."""
    return None if site.layer is None else Row(site.stack, site.layer)


def site_label(site: Placed) -> str:
    """Return how people name a site: "layer 11 · v", "enc 3 · q", else its own name."""
    row = row_of(site)
    return site.name if row is None else f"{row.title} · {site.role}"


def cells(sites: Iterable[P]) -> dict[tuple[Row, str], P]:
    """Return {(row, role): site}, without the sites outside the layers.

    Raises:
        ModelError: two sites would have one cell.
    """
    found: dict[tuple[Row, str], P] = {}
    for site in sites:
        row = row_of(site)
        if row is None:
            continue
        other = found.setdefault((row, site.role), site)
        if other is not site:
            raise ModelError(
                f"{other.name} and {site.name} are both {site.role} of {row.title}, "
                "and a cell of the grid holds one matrix"
            )
    return found


def blocks_of(sites: Iterable[Site], paths: Mapping[Row, str]) -> tuple[Block, ...]:
    """Return the blocks that hold these sites, in the order in which they first come.

    Args:
        sites: those outside the layers are in no block.
        paths: {row: path of its module}.

    Raises:
        ModelError: two sites would have one cell.
    """
    roles: defaultdict[Row, dict[str, Site]] = defaultdict(dict)
    for (row, role), site in cells(sites).items():
        roles[row][role] = site
    return tuple(Block(paths[row], row, inside) for row, inside in roles.items())
