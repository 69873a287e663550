"""One prompt, answered by the base model and by the adapted one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import traitlets

from lora_lab.errors import RunError
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import Family
from lora_lab_widgets.background import Background
from lora_lab_widgets.defaults import example_prompt
from lora_lab_widgets.error_json import from_error
from lora_lab_widgets.live_adapter import Whose
from lora_lab_widgets.panel import MessagePanel, Tick

if TYPE_CHECKING:
    from lora_lab_widgets.session import Session

Answer = Callable[[str, int], tuple[str, str | None]]
"""(prompt, max_new_tokens) → (the base model's answer, the adapted one's or None)."""


class TryIt(MessagePanel):
    """A prompt and two answers, side by side.

    Generation runs on a thread, so that the page and the notebook stay usable; the answers reach
    the browser with the next call of `update`, which the heartbeat makes.

    Args:
        answer: called on a thread; what it raises is shown in the red strip.
        framing: what goes around the prompt now, for people.
        whose: returns the adapter that would answer now.
        prompt: what stands in the field at first.
        max_new_tokens: of each answer.
        tries: what is compared, as the task's family has it.
        writes: whether answers are written token by token.
    """

    module = "try_it"

    prompt = traitlets.Unicode().tag(sync=True)
    max_new_tokens = traitlets.Int(48, min=1, max=512).tag(sync=True)
    tries = traitlets.Unicode(Family.tries).tag(sync=True)  # "one prompt, answered"
    writes = traitlets.Bool(True).tag(sync=True)
    framing = traitlets.Unicode(read_only=True).tag(sync=True)  # what goes around the prompt
    busy = traitlets.Unicode(read_only=True).tag(sync=True)  # what it is at, "" when at rest
    # {"prompt", "base", "adapted", "seconds", "of": the adapter}, {} before the first comparison
    answers = traitlets.Dict(read_only=True).tag(sync=True)
    # Whether there is another adapter by now than the one that has answered.
    outdated = traitlets.Bool(False, read_only=True).tag(sync=True)

    def __init__(
        self,
        answer: Answer,
        framing: Callable[[], str] = lambda: "",
        whose: Callable[[], Whose] = lambda: ("", None),
        **kwargs: Any,
    ) -> None:
        self._answer, self._framing, self._whose = answer, framing, whose
        self._job: Background[tuple[str, tuple[str, str | None], Whose]] = Background()
        self._answered: Whose = "", None
        self._said = ""
        super().__init__(**kwargs)
        self.set_trait("framing", framing())

    @classmethod
    def of(cls, session: Session) -> Self:
        """Make the comparison of a workbench: its model answers, on the task that is picked."""
        plan = session.plan

        def of_task() -> tuple[str, bool]:
            family = family_of(plan.task, session.lm)
            return family.tries, family.writes

        def follow(change: Any) -> None:
            if change["old"].settings["task"] != change["new"].settings["task"]:
                panel.tries, panel.writes = of_task()
                if plan.task.validation:
                    panel.prompt = example_prompt(plan.task)

        tries, writes = of_task()
        panel = cls(
            lambda prompt, tokens: session.answer(prompt, tokens, panel.say),
            lambda: session.asked_task.framing,
            lambda: session.live_adapter.whose,
            prompt=example_prompt(plan.task),
            tries=tries,
            writes=writes,
        )
        plan.observe(follow, "planned")
        return panel

    def compare(self, prompt: str | None = None) -> bool:
        """Start generating; False, and nothing is done, while the last comparison is not over."""
        with self._lock:
            if self._job.busy:
                return False
            if prompt is not None:
                self.prompt = prompt
            asked, tokens = self.prompt, self.max_new_tokens
            self.say("generating…")
            self._job.start(lambda: self._ask(asked, tokens))
            self.set_trait("problem", None)
            self.set_trait("busy", self._said)
        return True

    def _ask(self, prompt: str, tokens: int) -> tuple[str, tuple[str, str | None], Whose]:
        whose = self._whose()
        answers = self._answer(prompt, tokens)
        if self._whose() != whose:
            raise RunError("another run began while the model answered; compare again")
        return prompt, answers, whose

    def say(self, text: str) -> None:
        """Set what the panel says that it is doing; from any thread, shown at the next update."""
        self._said = text

    def update(self, tick: Tick) -> None:
        """Show what has come in since."""
        del tick
        with self._lock:
            self.set_trait("framing", self._framing())
            outcome = self._job.take()
            if outcome is None:
                self.set_trait("busy", self._said if self._job.busy else "")
                self.set_trait("outdated", bool(self.answers) and self._answered != self._whose())
                return
            if outcome.error is not None or outcome.value is None:
                error = outcome.error or RuntimeError("no answer came back")
                self.problem = from_error(error)
            else:
                prompt, (base, adapted), self._answered = outcome.value
                self.set_trait("outdated", False)
                self.set_trait(
                    "answers",
                    {
                        "prompt": prompt,
                        "base": base,
                        "adapted": adapted,
                        "seconds": round(outcome.seconds, 1),
                        "of": self._answered[0],
                    },
                )
            self.set_trait("busy", "")

    def _handle(self, content: Mapping[str, Any]) -> None:
        if content.get("type") != "compare":
            return
        try:
            self.max_new_tokens = content.get("max_new_tokens", self.max_new_tokens)
        except traitlets.TraitError:
            self.problem = _BAD_LENGTH
            return
        self.compare(str(content.get("prompt", self.prompt)))


_BAD_LENGTH = {
    "message": "max new tokens must be a whole number from 1 to 512",
    "remedy": "",
    "details": "",
    "field": "max_new_tokens",
}
