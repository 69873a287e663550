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

from lora_lab._util.yaml import read_yaml, to_yaml
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.plain import method_from_dict, method_to_dict
from lora_lab.runs.records import RunRecord
from lora_lab.runs.training_config import UNTOLD, TrainingConfig

_HEAD = "labels", "num_labels"  # of a model: they follow from its task
_SETTINGS = {
    "model": ("name", "dtype", "device", *_HEAD),
    "task": (
        *("name", "prompt", "completion", "template", "text", "label", "target", "pair"),
        *("validation", "test", "encoding", "sep", "seed", "in_memory", "max_steps", "batch_size"),
    ),
}
_FIELDS = "model", "task", "configs", "training", "output_dir", "name", "start_from"
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
        if unknown := values.keys() - set(_FIELDS):
            raise ConfigError(
                f"{where} has an unknown field {one_line(repr(min(unknown)))}; known are "
                f"{', '.join(_FIELDS)}"
            )
        start_from = values.get("start_from")
        methods = values.get("configs", [] if start_from else [{"class": "LoraConfig"}])
        training = values.get("training") or {}
        output_dir, name = values.get("output_dir", "runs"), values.get("name")
        named = [own for own in (output_dir, name, start_from) if own is not None]
        if not all(isinstance(own, str) and "\0" not in own for own in named):
            raise ConfigError(f"{where}: output_dir, name and start_from must be text")
        try:
            if not isinstance(methods, list) or not (methods or start_from):
                raise ConfigError(f"configs is {methods!r}; it must be a list of methods")
            if not isinstance(training, Mapping):
                raise ConfigError(f"training is {training!r}; it must hold settings")
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
                training=TrainingConfig.from_dict(training),
                output_dir=output_dir or "runs",
                name=name,
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
    given, known = values.get(what), _SETTINGS[what]
    if isinstance(given, str):
        return {"name": given}
    names = _FILES if what == "task" else str
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), names):
        raise ConfigError(f"{what} is {given!r}; it must be a name, such as {_EXAMPLES[what]}")
    if unknown := given.keys() - set(known):
        raise ConfigError(f"{what} has an unknown setting {min(unknown)!r}; known are {known}")
    for name, value in given.items():
        kind = names if name == "name" else _TYPES.get(name, str)
        if (
            isinstance(value, list)
            and kind is _FILES
            and not all(isinstance(v, str) for v in value)
        ):
            raise ConfigError(f"the {what}'s {name} is {value!r}; its files must be text")
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ConfigError(f"the {what}'s {name} is {value!r}; it must be {_WORDS[kind]}")
    return dict(given)


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
        raise unlike(record, record.problem or error) from error
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


_COLUMN = str | int  # a table without names has numbers for its columns
_FILES = str | list  # a task's parts may be of several files
_TYPES: dict[str, Any] = {  # of settings; else text
    "labels": list,
    "in_memory": list,
    **dict.fromkeys(("num_labels", "seed", "max_steps", "batch_size"), int),
    **dict.fromkeys(("prompt", "completion", "text", "label", "target", "pair"), _COLUMN),
    **dict.fromkeys(("validation", "test"), _FILES),
}
_WORDS = {
    str: "text",
    list: "a list",
    int: "a whole number",
    _COLUMN: "text, or a column's number",
    _FILES: "a file, or a list of some",
}
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
