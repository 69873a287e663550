"""A page without Python, as `ipywidgets.embed` writes it."""

from __future__ import annotations

from typing import Any

import ipywidgets


class Embeddable(ipywidgets.Widget):
    """A widget that such a page can draw: its module, which no page can fetch, comes with it.

    `embed_minimal_html` leaves out what is as the class has it, and so an anywidget's module
    (ipywidgets 8.1, whose private name this is).
    """

    def _get_embed_state(self, drop_defaults: bool = False) -> dict[str, Any]:  # noqa: ARG002
        found: dict[str, Any] = super()._get_embed_state(drop_defaults=False)
        return found
