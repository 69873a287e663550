"""The plan that a workbench shows: what settings and ranks make, its price, its code, its name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import method_name, to_python
from lora_lab_widgets.methods import about, automatic, instead, mend, numbers

if TYPE_CHECKING:
    import torch

    from lora_lab.anatomy.types import Anatomy
    from lora_lab.budget.costs import Memory
    from lora_lab.models.load import Card
    from lora_lab_widgets._plans import Plans
    from lora_lab_widgets._prices import Prices
    from lora_lab_widgets.header import Header
    from lora_lab_widgets.rank_grid import RankGrid
    from lora_lab_widgets.run_panel import RunPanel
    from lora_lab_widgets.savings import Plan, Savings


class PlanOnShow:
    """Turns what the run panel and the grid hold into a plan, and shows it in every panel.

    Args:
        card: of the model.
        anatomy: of the model.
        plans: turn settings and ranks into configs.
        prices: what a plan costs.
        panel: holds the settings, and says what the method does.
        grid: holds the ranks, and shows the code.
        savings: shows the price.
        header: names model, method and task.
        device: returns the one that the model is on.
        synthetic: whether the task of a name is.
    """

    def __init__(
        self,
        card: Card,
        anatomy: Anatomy,
        plans: Plans,
        prices: Prices,
        *,
        panel: RunPanel,
        grid: RankGrid,
        savings: Savings,
        header: Header,
        device: Callable[[], torch.device],
        synthetic: Callable[[str], bool],
    ) -> None:
        self._card = card
        self._anatomy = anatomy
        self._plans = plans
        self._prices = prices
        self._panel = panel
        self._grid = grid
        self._savings = savings
        self._header = header
        self._device = device
        self._synthetic = synthetic
        self._settled = True  # not while settings and ranks are being changed together
        self._planned: tuple[MethodConfig, ...] | None = None  # None: the settings make no plan

    def configs(self) -> tuple[MethodConfig, ...]:
        """Return what would be trained now.

        Raises:
            ConfigError: nothing is painted, or a setting cannot be.
        """
        settings = self._panel.settings
        return self._plans.configs(settings, self._grid.ranks, settings["max_steps"])

    def put(self, settings: Mapping[str, Any], painted: dict[str, int] | None) -> None:
        """Change settings and ranks together; nothing is shown of half of them, nor yet of both.

        Args:
            settings: those that change.
            painted: {site: rank}; None: the grid stays as it is.
        """
        with self._unsettled():
            self._panel.settings = {**self._panel.settings, **settings}
            if painted is not None:
                self._grid.ranks = painted

    def show(self) -> bool:
        """Show what settings and ranks make now: its price, its code, or why it cannot be.

        Returns False, and shows nothing, while the two are being changed together.
        """
        if not self._settled:
            return False
        is_lora = self._plans.is_lora(self._panel.settings)
        cost, bad = None, ""
        try:
            self._planned = self.configs()
            if not is_lora:
                cost = self._prices.budget(self._planned)
        except (ConfigError, TypeError) as error:  # TypeError: max_steps is no number yet
            self._planned, bad = None, str(error)
        planned = self._planned or ()
        self._savings.ranks = dict(self._grid.ranks)
        if is_lora:
            self._savings.show_ranks()
        else:
            self._savings.show(repr(self._planned), cost)
        self._grid.set_code(
            f"import lora_lab as ll\n\nconfig = {to_python(planned)}" if planned else ""
        )
        self._describe(bad)
        return True

    def summary(self) -> str:
        """Return the plan in a few words."""
        if self._planned is None or self._plans.is_lora(self._panel.settings):
            return self._grid.summary()
        return " · ".join(filter(None, (method_name(self._planned), numbers(self._planned))))

    def dry_run(self, plan: Plan | None) -> Callable[[], Memory]:
        """Return what measures the plan on a thread, or raises why it cannot be.

        Args:
            plan: as the savings show it; None: full fine-tuning.
        """
        if plan is None:
            return self._prices.dry_run(())
        if self._planned is not None:
            return self._prices.dry_run(self._planned)

        def refuse() -> Memory:
            raise ConfigError(self._panel.plan["line"])

        return refuse

    @contextlib.contextmanager
    def _unsettled(self) -> Iterator[None]:
        self._settled = False
        try:
            yield
        finally:
            self._settled = True

    def _describe(self, bad: str) -> None:
        """Name the method in every panel, or say why it cannot be."""
        settings, planned = self._panel.settings, self._planned or ()
        self._panel.methods = self._plans.choices(settings)
        try:
            method = self._plans.method(settings)
        except ConfigError:
            self._panel.plan = {"line": bad, "bad": True}
            return
        steps = settings["max_steps"]
        self._panel.plan = {
            "line": mend(method, bad) or about(method, planned, self._anatomy),
            "bad": bool(bad),
            "automatic": automatic(self._anatomy, self._grid.ranks, steps)
            if isinstance(steps, int)
            else {},
        }
        self._grid.inert = instead(method, planned)
        self._title(method_name(planned) if planned else method.name, numbers(planned))

    def _title(self, method: str, own_numbers: str) -> None:
        task = self._panel.settings["task"]
        synthetic = " · synthetic" if self._synthetic(task) else ""
        chips = [self._card.name, method, f"{task}{synthetic}", own_numbers]
        self._header.chips = [chip for chip in chips if chip]
        self._header.device = f"{_device_name(self._device())} · {self._card.dtype}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
