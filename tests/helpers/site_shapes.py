"""The shape of a site's matrix."""

from __future__ import annotations

from lora_lab.anatomy import Site


def shape_of(site: Site | None) -> tuple[int, int]:
    assert site is not None
    return site.out_features, site.in_features
