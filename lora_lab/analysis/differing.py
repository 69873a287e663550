"""In what runs of one method differ: what has to stand beside each of them in a table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from lora_lab.analysis.records import training_settings
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.plain import method_from_dict, recorded_text
from lora_lab.methods.registry import method_of
from lora_lab.runs.records import RunRecord
from lora_lab.runs.training_config import warmup
from lora_lab.tasks.metrics import KEPT, KEPT_DATA, metric_of

_OF_KEPT = "kept_texts", "kept_data"  # what is measured beside the task
# None of these changes what a run learns: a score means the same with any of their values.
NO_MATTER = (
    *_OF_KEPT,
    *("save_steps", "gradient_checkpointing", "recompute_mlp", "report_to"),
    "init_draws",  # from where random numbers are, not how they are spread
)
Text = Literal["setting", "size"]
_ORDERLESS = "target_modules", "exclude_modules", "modules_to_save"


def of_kept(metric: str) -> tuple[str, ...]:
    """Return the settings of `NO_MATTER` that matter to a metric of what is kept."""
    return _OF_KEPT if metric_of(metric) in (KEPT, KEPT_DATA) else ()


def full_settings(record: RunRecord) -> dict[Any, Any]:
    """Return all that a run was asked for, flat: {(part of the method, field): value}.

    The part is its place among the run's configs, or "" of the training. A field that the run is
    older than has its default, so that it is the same as in a later run.
    """
    training = training_settings(record)
    training["warmup_steps"] = warmup(training["max_steps"], training["warmup_steps"])
    found: dict[Any, Any] = {("", name): value for name, value in training.items()}
    for number, own in enumerate(record.config["configs"]):
        found |= {(number, name): value for name, value in _whole(own).items()}
    start = record.config.get("start_from")
    return found | ({("", "start_from"): record.start_from} if start else {})


def same_but(settings: Mapping[Any, Any], free: Collection[str]) -> str:
    """Return a text that is the same of all runs that differ at most in these training settings."""
    kept = {str(key): value for key, value in settings.items() if not _is_free(key, free)}
    return json.dumps(kept, sort_keys=True, default=str)


def _is_free(key: tuple[Any, str], free: Collection[str]) -> bool:
    return key[0] == "" and key[1] in free


def settings_in_words(records: Sequence[RunRecord], free: Collection[str]) -> list[str]:
    """Return each run's setting as a table has it, with every field in which two of them differ.

    Args:
        records: runs that train one method, each the first of a row.
        free: training settings that are told elsewhere, or not at all.
    """
    told = zip(map(_setting, records), told_apart(records, free, "setting"), strict=True)
    return ["; ".join(filter(None, own)) for own in told]


def told_apart(records: Sequence[RunRecord], free: Collection[str], kind: Text) -> list[str]:
    """Return of each run the fields in which two of them differ, "" where none is.

    Args:
        records: runs that train one method.
        free: training settings that are told elsewhere, or not at all.
        kind: the text of `Method` that stands before; a field that it tells is left out.

    Raises:
        KeyError: a config.json that is no run's.
    """
    settings = [full_settings(record) for record in records]
    values: defaultdict[Any, set[str]] = defaultdict(set)
    for own in settings:
        for key in dict.fromkeys(key for each in settings for key in each):
            values[key].add(_json(own.get(key)))
    varied = [key for key, seen in values.items() if len(seen) > 1 and not _is_free(key, free)]
    told = []
    for record, own in zip(records, settings, strict=True):
        words, configs = [], dict(enumerate(record.config["configs"]))
        for part, name in varied:
            mine = own.get((part, name))
            seen = (each.get((part, name)) for each in settings)
            others = [value for value in seen if _json(value) != _json(mine)]
            if part not in configs or not _says(configs[part], name, others, kind):
                words.append(f"{_label(record, part, name)} = {_text(mine)}")
        told.append(", ".join(words))
    return told


def _setting(record: RunRecord) -> str:
    parts = (recorded_text(own, "setting") for own in record.config["configs"])
    return "; ".join(filter(None, parts))


def _says(own: Mapping[str, Any], name: str, others: Sequence[Any], kind: Text) -> bool:
    """Whether a method's own text tells a value of a field from all others."""
    mine = recorded_text(own, kind)
    return all(recorded_text({**own, name: value}, kind) not in ("", mine) for value in others)


def _label(record: RunRecord, part: Any, name: str) -> str:
    try:
        method = method_of(method_from_dict(record.config["configs"][part]))
    except (ConfigError, IndexError, TypeError):  # of the training, or of nothing known here
        return name
    usual = (field for field in method.fields if not field.more)  # else PEFT's name says more
    return next((field.label for field in usual if field.name == name), name)


def _whole(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the fields that it lacks; as it is where it is unknown."""
    try:
        config: MethodConfig = as_config(method_from_dict(own))
    except ConfigError:
        return dict(own)
    names = [f.name for f in fields(config)]  # type: ignore[arg-type]
    values = {name: getattr(config, name) for name in names}
    for name in _ORDERLESS:
        if isinstance(values.get(name), (list, tuple)):
            values[name] = sorted(values[name], key=str)
    return {"class": own.get("class"), **values}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing_settings(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return {setting: its value in each run} of all in which two of them differ, and no other.

    Beside method and training that is the base model, its dtype, the data and what they start
    from. Where a run has no such setting its value is "–".

    Args:
        records: runs of any methods; of a config.json that is none nothing but its facts is told.
    """
    settings, facts = [], []
    for record in records:
        try:
            settings.append(full_settings(record))
        except (AttributeError, KeyError, TypeError, ValueError):
            settings.append({})
        facts.append(_facts(record))
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for own in facts for name in own):
        told = _varied(name, [own.get(name) for own in facts])
        if name in _HASHES and told:
            told = {name: _shortened(told[name])}
        found |= told
    for key in dict.fromkeys(key for own in settings for key in own):
        part, name = key
        owner = next(r for r, own in zip(records, settings, strict=True) if key in own)
        label = _label(owner, part, name)
        # Two fields may go by one label, and so may the same field of two parts.
        if label in found or (part != "" and part > 0):
            label = f"{name} of part {part + 1}" if part != "" else name
        found |= _varied(label, [own.get(key) for own in settings])
    return found


def _varied(name: str, values: Sequence[Any]) -> dict[str, list[str]]:
    if len({_json(value) for value in values}) < 2:
        return {}
    return {name: ["–" if value is None else _text(value) for value in values]}


def _shortened(hashes: Sequence[str]) -> list[str]:
    """Return the beginnings of hashes, as long as it takes to tell them apart."""
    told = (n for n in range(6, 65) if len({h[:n] for h in hashes}) == len({*hashes}))
    least = next(told, None)  # a longer one is nobody's hash
    return [text[:least] for text in hashes]


_FACTS = {
    ("model", "name"): "base model",
    ("model", "dtype"): "dtype",
    ("task", "name"): "task",
    ("task", "examples"): "training examples",
    ("task", "framing"): "framing of prompts",
    ("fingerprints", "data"): "rows",
    ("fingerprints", "held_out"): "held-out rows",
    ("fingerprints", "base"): "base's weights",
    ("fingerprints", "task"): "classes and decoding",
}

_HASHES = [words for (group, _), words in _FACTS.items() if group == "fingerprints"]


def _facts(record: RunRecord) -> dict[str, Any]:
    """Return what a config.json tells of a run beside its settings."""
    facts: dict[str, Any] = {}
    for (group, key), words in _FACTS.items():
        own = record.config.get(group)
        value = own.get(key) if isinstance(own, dict) else None
        if value is not None:
            facts[words] = value
    return facts
