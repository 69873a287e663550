"""ΔW's spectrum beside W₀'s, with the edge of noise."""

from __future__ import annotations

from typing import Any, ClassVar

from lora_lab import captions, figures
from lora_lab.analysis.spectrum import spectrum_view
from lora_lab.spectra.update import SiteUpdate
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class SpectrumView(View):
    """The singular values of one site's ΔW and W₀."""

    key: ClassVar[str] = "spectrum"
    title: ClassVar[str] = "Spectrum"
    question: ClassVar[str] = (
        "How many directions does ΔW use, and how strong are they beside those of W₀?"
    )
    terms: ClassVar[tuple[str, ...]] = ("spectrum", "edge")
    of_one_site: ClassVar[bool] = True

    def controls(self) -> list[dict[str, Any]]:
        """Return the choice of a site."""
        return [self.site_choice()]

    def wanted(self) -> tuple[Any, ...] | None:
        """Return the site."""
        return super().wanted() if self.values.get("site") else None

    def empty(self) -> str:
        """Say what is missing."""
        return self.live_adapter.nothing

    def live(self, snapshot: Snapshot | None) -> Any:
        """Return the step of the factors that training hands out, if they are this site's."""
        factors = snapshot.factors if snapshot else None
        here = factors is not None and factors.site.name == self.values.get("site")
        return factors.step if factors is not None and here else None

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        """Measure one site."""
        del before
        watch.tell("measuring W₀'s spectrum…")
        site = copy_of(self, values["site"])
        W = self.live_adapter.base_weight(values["site"])
        return Measured(spectrum_view(site, W, step=site.step), site.step)

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        """Draw both spectra."""
        return figures.spectrum_against_base_figure(data, theme=theme, width=width, height=300)

    def words(self, data: Any) -> str:
        """Say what the spectra show."""
        return captions.spectrum_against_base_summary(data)


def copy_of(view: View, name: str) -> SiteUpdate:
    """Return a copy of one site's ΔW, without a pause where there is one."""
    live_adapter = view.live_adapter
    factors, adapter = live_adapter.factors(name), live_adapter.adapter
    if factors is None or adapter is None or name not in adapter.sites:
        return live_adapter.copy(name)[1][0]
    return factors
