"""A run as a file: what the workbench writes and `lora-lab train` runs, on any machine.

    model: {name: smollm2-135m}             # what load_model takes; a plain name will do
    task: {name: mini-e2e}                  # what load_task takes; a plain name will do
    configs:                                # one method, or several combined
      - {class: LoraConfig, r: 8, lora_alpha: 16, target_modules: [q, v]}
    training: {max_steps: 60, learning_rate: 2e-3}
    output_dir: runs
    name: e2e
    start_from: runs/20260131-142501-4f2a   # a run or an adapter, by folder or id; else a fresh one

A run's own config.json is such a file too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_lab._util.json_files import fitted, misfit, words_of
from lora_lab._util.yaml import read_yaml, to_yaml
from lora_lab.errors import ConfigError, RunError, as_cause
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.plain import method_from_dict, method_to_dict
from lora_lab.runs.records import RunRecord
from lora_lab.runs.schema import ModelSettings, RunFile, TaskSettings
from lora_lab.runs.training_config import UNTOLD, TrainingConfig
from lora_lab.tasks.decoding import Decoding

_HEAD = "labels", "num_labels"  # of a model: they follow from its task
_SETTINGS = {"model": ModelSettings, "task": TaskSettings}
_PATHS = "output_dir", "name", "start_from"
_LONGEST = 300  # letters


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of, by name: nothing is loaded yet.

    Attributes:
        model: the arguments of `load_model`; a head follows from the task.
        task: the arguments of `load_task`.
        configs: the method's; several are combined; none: those of `start_from`.
        training: how it trains.
        output_dir: where the run's folder goes.
        name: part of the folder's name.
        start_from: what `train` takes.
    """

    model: Mapping[str, Any]
    task: Mapping[str, Any]
    configs: tuple[MethodConfig, ...] = (LoraConfig(),)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output_dir: str = "runs"
    name: str | None = None
    start_from: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or has a field or value that cannot be.
        """
        return cls.from_dict(read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the run file") -> RunConfig:
        """Build from plain values; see the head of this file."""
        if "fingerprints" in values:  # a run's config.json
            values = _of_run(values, where)
        known = RunFile.__annotations__
        if unknown := values.keys() - known.keys():
            raise ConfigError(
                f"{where} has an unknown field {one_line(repr(min(unknown)))}; known are "
                f"{', '.join(known)}"
            )
        start_from = values.get("start_from")
        methods = values.get("configs", [] if start_from else [{"class": "LoraConfig"}])
        try:
            if (odd := misfit(values, RunFile)) in _PATHS:
                raise ConfigError("output_dir, name and start_from must be text")
            if odd or not (methods or start_from):
                odd = odd or "configs"
                raise ConfigError(f"{odd} is {values[odd]!r}; it must {words_of(RunFile, odd)}")
            task = settings(values, "task")
            if task.get("in_memory"):
                raise ConfigError(
                    f"the task was made of rows in memory ({task['name']}), which no file can "
                    "name; write them to one, such as frame.to_json('rows.jsonl', "
                    "orient='records', lines=True), and load_task that"
                )
            return cls(
                model=settings(values, "model"),
                task=task,
                configs=tuple(map(method_from_dict, methods)),
                training=TrainingConfig.from_dict(values.get("training") or {}),
                output_dir=values.get("output_dir") or "runs",
                name=values.get("name"),
                start_from=start_from,
            )
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{where}: {within_a_line(error)}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads."""
        return {
            "model": dict(self.model),
            "task": dict(self.task),
            "configs": [_plain(method_to_dict(config)) for config in self.configs],
            "training": self.training.to_dict(),
            "output_dir": self.output_dir,
            **({"name": self.name} if self.name else {}),
            **({"start_from": self.start_from} if self.start_from else {}),
        }

    def to_yaml(self) -> str:
        """Return the file's text."""
        return to_yaml(self.to_dict())


def settings(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the arguments of a loader from plain values.

    Args:
        values: a run file's, or the sources in a run's config.json.
        what: "model" or "task": which of them, and whose loader.

    Raises:
        ConfigError: it has no name, a setting that the loader does not have, or one of another
            type.
    """
    given, kind = values.get(what), _SETTINGS[what]
    if isinstance(given, str):
        return {"name": given}
    names = (str, list) if what == "task" else str
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), names):
        raise ConfigError(f"{what} is {given!r}; it must be a name, such as {_EXAMPLES[what]}")
    known = tuple(kind.__annotations__)
    if unknown := given.keys() - set(known):
        raise ConfigError(f"{what} has an unknown setting {min(unknown)!r}; known are {known}")
    if (name := misfit(given, kind)) is not None:
        must = words_of(kind, name)
        raise ConfigError(f"the {what}'s {name} is {given[name]!r}; it must {must}")
    if given.get("decoding") is not None:
        Decoding.of(given["decoding"])
    return dict(fitted(given, kind))


def read_configs(record: RunRecord) -> tuple[tuple[MethodConfig, ...], TrainingConfig]:
    """Return the methods of a run and how it trained, from its config.json.

    Raises:
        RunError: a class or a field that is none of ours.
    """
    try:
        training = TrainingConfig.from_dict({**UNTOLD, **record.config["training"]})
        methods = tuple(map(method_from_dict, record.config["configs"]))
        if not methods:
            raise ConfigError("it names no method")
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise unlike(record, record.problem or error) from as_cause(error)
    return methods, training


def unlike(record: RunRecord, why: object) -> RunError:
    """Return the error of a run whose config.json holds what no run's does."""
    where = record.folder / "config.json"
    return RunError(f"{where} cannot be gone on from: {one_line(why)}; start a new run")


def one_line(said: object) -> str:
    """Return what a run's files say, as much of it as belongs into a line."""
    text = " ".join(str(said).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def within_a_line(error: object) -> str:
    """Return an error's text, the middle of a very long one left out: its end names the fix."""
    text = str(error)
    return text if len(text) <= 4 * _LONGEST else f"{text[:_LONGEST]} … {text[-_LONGEST:]}"


_EXAMPLES = {"model": "smollm2-135m", "task": "mini-e2e"}


def _of_run(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    sources = values.get("sources")
    sources = sources if isinstance(sources, Mapping) else {}
    for what in ("model", "task"):
        if not isinstance(sources.get(what), Mapping):
            known = values.get(what)
            name = known.get("name") if isinstance(known, Mapping) else "something"
            raise ConfigError(
                f"{where}: {name} is a {what} of your own, which no file can name; use "
                f"load_{what} for what shall go to another machine"
            )
    model = {key: value for key, value in sources["model"].items() if key not in _HEAD}
    training = values.get("training")
    if isinstance(training, Mapping):
        training = {**UNTOLD, **training}
    return {
        "model": model | {"device": "auto"},
        "task": sources["task"],
        "configs": values.get("configs"),
        "training": training,
        "start_from": sources.get("start_from"),
    }


def _plain(value: Any) -> Any:
    """Return tuples as lists, which YAML has."""
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value
