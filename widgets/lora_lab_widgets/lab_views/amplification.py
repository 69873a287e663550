"""Table 7 for every site: W₀ along ΔW's directions, along its own, along random ones."""

from __future__ import annotations

from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.amplify import amplifications
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class AmplificationView(View):
    """How much ΔW amplifies what W₀ hardly emphasizes."""

    key: ClassVar[str] = "amplification"
    title: ClassVar[str] = "Amplification"
    question: ClassVar[str] = (
        "How strong is W₀ along ΔW's directions, and how far does ΔW amplify them? The paper's "
        "table 7, for every matrix."
    )
    terms: ClassVar[tuple[str, ...]] = ("amplification", "size")
    widest: ClassVar[int] = 1100

    def controls(self) -> list[dict[str, Any]]:
        """Return none: it is about every site."""
        return []

    def wanted(self) -> tuple[Any, ...] | None:
        """Return whether there is an adapter."""
        return () if self.live_adapter.adapter is not None else None

    def empty(self) -> str:
        """Say what is missing."""
        return self.live_adapter.nothing

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Measure every site."""
        del values, before
        watch.tell("waiting for the next step…")
        step, sites = self.live_adapter.copy()
        weight = watch.counting(self.live_adapter.base_weight, len(sites), "W₀'s directions")
        return Measured(amplifications(sites, weight), step)

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw the three norms of every site."""
        return figures.amplification_figure(data, theme=theme, width=width)

    def words(self, data: Any) -> str:
        """Say what stands out."""
        return captions.amplification_summary(data)
