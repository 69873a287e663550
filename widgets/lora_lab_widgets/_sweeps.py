"""The sweeps of a workbench: read from what is typed over the settings on show, and begun."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.budget.forecast import budget
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.local import Sweep
from lora_lab.training.config import TrainingConfig
from lora_lab_widgets._recipes import written_sweep
from lora_lab_widgets._sweep_plan import FieldError, SweepTexts, cells_of, read_texts
from lora_lab_widgets.live_adapter import ADAPTER
from lora_lab_widgets.methods import METHODS, mend, method_of
from lora_lab_widgets.sweep_panel import SweepPanel

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.training.run import Run
    from lora_lab_widgets._plans import Plans


class Sweeps:
    """What the sweep panel asks of a workbench.

    Args:
        lm: the model that the cells adapt.
        anatomy: its anatomy.
        plans: turn settings and ranks into configs.
        output_dir: where the sweeps' folders go.
        settings: returns those of the run panel.
        training: returns the fields of `TrainingConfig` that settings stand for.
        painted: returns {site: rank} of the grid.
        task: returns the task that is picked.
        run: returns the latest run, None before the first.
        needs_rest: raises where something trains; told what is about to be done.
        paint: takes {site: rank}, what the page shows of the grid.
        bench: of the grid.

    Attributes:
        panel: shows them.
    """

    def __init__(
        self,
        lm: LoadedModel,
        anatomy: Anatomy,
        plans: Plans,
        output_dir: Path,
        *,
        settings: Callable[[], Mapping[str, Any]],
        training: Callable[[Mapping[str, Any]], dict[str, Any]],
        painted: Callable[[], Mapping[str, int]],
        task: Callable[[], Task],
        run: Callable[[], Run | None],
        needs_rest: Callable[[str], None],
        paint: Callable[[dict[str, int]], None],
        bench: str,
    ) -> None:
        self._lm = lm
        self._anatomy = anatomy
        self._plans = plans
        self._output_dir = output_dir
        self._settings = settings
        self._training = training
        self._painted = painted
        self._task = task
        self._run = run
        self._needs_rest = needs_rest
        self.panel = SweepPanel(
            read=self.read,
            begin=self._begin,
            write=self._write,
            rate=self._rate,
            paint=paint,
            bench=bench,
        )

    @property
    def own(self) -> Sweep | None:
        """The sweep that trains this model now."""
        sweep = self.panel.sweep
        own = sweep is not None and sweep.lm.model is self._lm.model and sweep.snapshot.going
        return sweep if own else None

    def read(self, texts: Mapping[str, str]) -> tuple[SweepTexts, tuple[Cell, ...]]:
        """Return what was typed, and the cells that it makes of the settings on show.

        Raises:
            ConfigError, FieldError: a text that cannot be, or a cell that the model cannot use.
        """
        settings = self._settings()
        typed = read_texts(texts, self._anatomy, list(METHODS))
        try:
            training = TrainingConfig.from_dict(self._training(settings))
        except TypeError as error:
            raise ConfigError(f"the settings of the run cannot be: {error}") from None
        painted = self._painted()
        cells = cells_of(typed, settings, self._plans, self._anatomy, painted, training)
        for configs in {repr(cell.configs): cell.configs for cell in cells}.values():
            self._check(configs)
        return typed, cells

    def _check(self, configs: Sequence[MethodConfig]) -> None:
        """Refuse a cell that the model cannot use, and name the text to blame."""
        try:
            budget(self._anatomy, configs, sequence_length=1)
        except ConfigError as error:
            line = mend(method_of(configs), str(error))
            raise FieldError("r" if line.startswith("rank ") else "method", line) from None

    def _begin(self, cells: Sequence[Cell], name: str, asha: AshaConfig | None) -> Sweep:
        self._needs_rest("start a sweep")
        folder = self._output_dir.expanduser().resolve() / name
        made = Sweep(self._lm, self._task(), cells, folder, asha)
        with warnings.catch_warnings():
            # That the last run's adapter goes is what Start means here.
            warnings.filterwarnings("ignore", f"the sweep takes the adapter '{ADAPTER}' off")
            made.start()
        return made

    def _write(self, cells: Sequence[Cell], name: str, asha: AshaConfig | None) -> dict[str, Any]:
        return written_sweep(self._lm, self._task(), cells, name, asha, self._output_dir)

    def _rate(self) -> float | None:
        run = self._run()
        return run.snapshot.steps_per_second if run else None
