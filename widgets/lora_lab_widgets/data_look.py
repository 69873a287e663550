"""A look at the data before the first step: lengths, the first example, what seems wrong."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab._util.format import format_share, plural
from lora_lab.errors import ConfigError
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.look import Look
from lora_lab_widgets.background import Background
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.panel import PanelWidget, Tick

if TYPE_CHECKING:
    from lora_lab_widgets.plan import PlanModel
    from lora_lab_widgets.session import Session

SETTLED = 0.5  # seconds that the settings have to stand unchanged before the data are looked at
_TOKENS = 200  # of the first example

Key = tuple[str, int]  # task, max_length


class DataLook(PanelWidget):
    """What the task that is picked looks like to the model.

    It is looked at on a thread, once for each task and max_length, and while nothing trains; what
    is found reaches the browser with the next heartbeat.

    Attributes:
        look: what is shown; {} before the first look.
        seen: how many of the rows a run as planned sees; "" where its steps are no number yet.
        busy: what it is at, "" when at rest.
        problem: why the data could not be looked at, or None.
    """

    module = "data_look"
    look = traitlets.Dict().tag(sync=True)
    seen = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)
    problem = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._known: dict[Key, tuple[Any, Look | Exception]] = {}  # with the task looked at
        self._job: Background[Look] = Background()
        self._doing: tuple[Key, Any] | None = None
        self._wanted: tuple[Key, Any] | None = None
        self._shown: Look | Exception | None = None
        self._since = 0.0

    def update(self, tick: Tick) -> None:
        """Take what has come in, start what is due, and show what is known."""
        self._take()
        self.seen = seen_rows(self._session.plan)
        wanted = self._wish()
        if wanted != self._wanted:
            self._wanted, self._since = wanted, time.monotonic()
        if wanted is None:
            return
        key, task = wanted
        looked_at, found = self._known.get(key, (None, None))
        if looked_at is not task:  # another has taken its name
            found = None
        if found is None and not tick.busy and time.monotonic() - self._since >= SETTLED:
            lm, length = self._session.lm, key[1]
            if self._job.start(lambda: task.look(lm, max_length=length)):
                self._doing = wanted
        self.busy = "looking at the data…" if self._doing else ""
        if found is not None and found is not self._shown:
            self._shown = found
            self._show(found)

    def _wish(self) -> tuple[Key, Any] | None:
        plan = self._session.plan
        length = plan.settings["max_length"]
        if not isinstance(length, int) or length < 1:  # it is being typed
            return None
        return (plan.settings["task"], length), plan.task

    def _take(self) -> None:
        outcome, doing = self._job.take(), self._doing
        if outcome is None or doing is None:
            return
        self._doing = None
        key, task = doing
        self._known[key] = task, outcome.value or outcome.error or RuntimeError("no answer came")

    def _show(self, found: Look | Exception) -> None:
        problem: Any = from_error(found) if isinstance(found, Exception) else None
        with self.hold_trait_notifications():
            self.problem = problem
            self.look = {} if isinstance(found, Exception) else _plain(found)

    def summary(self) -> str:
        """Return how much was found."""
        if not isinstance(self._shown, Look):
            return "nothing looked at"
        return f"{self._shown.task}: {plural(len(self._shown.findings), 'finding')}"

    def fallback_html(self) -> str:
        """Return the look as a notebook shows it."""
        shown = self._shown
        return shown._repr_html_() if isinstance(shown, Look) else super().fallback_html()


def seen_rows(plan: PlanModel) -> str:
    """Return how many training rows a run as planned sees, in words; "" where nobody can say."""
    with contextlib.suppress(ConfigError, TypeError):
        rows = len(plan.task.train)
        training = TrainingConfig.from_dict(plan.training()).for_examples(rows)
        size, an_epoch = training.step_size, training.steps_per_epoch(rows)
        seen = training.max_steps * size
        if training.num_train_epochs is not None:  # an epoch's last step takes what is left
            epochs, steps = divmod(training.max_steps, an_epoch)
            seen = epochs * rows + min(rows, steps * size)
        if seen < rows:
            return f"{seen:,} of {rows:,} rows will be seen: {format_share(seen, rows)}"
        times = f"{seen / rows:.1f}".removesuffix(".0")
        return (
            f"all {rows:,} rows will be seen, {'once' if times == '1' else f'{times} times each'}"
        )
    return ""


def _plain(look: Look) -> dict[str, Any]:
    """Return what the browser shows of a look."""
    return {
        "lines": look.summary(),
        "bars": [{**bar._asdict(), "over": look.is_over(bar)} for bar in look.histogram()],
        "first": [[token.text, token.learned] for token in look.first[:_TOKENS]],
        "more": len(look.first) > _TOKENS,
        "findings": [[finding.severity, str(finding)] for finding in look.findings],
    }
