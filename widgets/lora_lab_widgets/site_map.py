"""The layer × role map of one number a site: here the effective rank of ΔW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import traitlets

from lora_lab.anatomy.blocks import site_label
from lora_lab.anatomy.types import Anatomy
from lora_lab_widgets.panel import MessagePanel


def _by_place(values: Mapping[str, float], site_map: SiteMap) -> list[float | None]:
    # Not by name: this goes to the browser again and again.
    return [values.get(name) for name in site_map.places]


class SiteMap(MessagePanel):
    """A heat map with layers to the right and roles downwards; a click or an arrow key selects.

    Args:
        anatomy: whose grid to show; sites outside the layers have no place in it.

    Attributes:
        values: {site name: effective rank}; what is not in it is drawn as empty.
        ranks: {site name: r}, the largest value that a site could have.
        selected: the name of the selected site, "" for none.
        places: the names of the sites, in the order in which the browser gets `values` and `ranks`.
    """

    module = "site_map"

    rows = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    roles = traitlets.List(traitlets.Unicode(), read_only=True).tag(sync=True)
    # [name, label, row, role], the latter two as indices
    sites: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)
    values = traitlets.Dict().tag(sync=True, to_json=_by_place)
    ranks = traitlets.Dict().tag(sync=True, to_json=_by_place)
    selected = traitlets.Unicode().tag(sync=True)

    def __init__(self, anatomy: Anatomy, **kwargs: Any) -> None:
        cells = [
            [site.name, site_label(site), row, column]
            for row, block in enumerate(anatomy.blocks)
            for column, role in enumerate(anatomy.roles)
            if (site := block.roles.get(role)) is not None
        ]
        self.places: tuple[str, ...] = tuple(str(cell[0]) for cell in cells)
        super().__init__(**kwargs)
        self.set_trait("rows", [row.label for row in anatomy.rows])
        self.set_trait("roles", list(anatomy.roles))
        self.set_trait("sites", cells)

    def summary(self) -> str:
        """Return the size of the grid."""
        return f"{len(self.rows)} layers × {len(self.roles)} roles"

    @traitlets.validate("values")
    def _round(self, proposal: Any) -> dict[str, float]:
        # As many decimals as are read, so that a number is rounded once; JSON has no NaN.
        values: Mapping[str, float] = proposal["value"]
        return {name: round(float(v), 1) for name, v in values.items() if math.isfinite(v)}

    def _handle(self, content: Mapping[str, Any]) -> None:
        # A message, not a trait written by the browser: each trait has one writer.
        if content.get("type") == "select" and content.get("site") in self.places:
            self.selected = content["site"]
