"""PEFT's `LoraConfig` beside ours: its other fields, its task types, and its adapter_config.json.

A field that PEFT has and LoRA Lab has not is taken where its value means nothing, so that a call
that was written for PEFT needs only its import changed; any other value is refused by name.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_lab._util.json_files import MOST_BYTES, parse_json, read_bytes
from lora_lab.errors import ConfigError

CONFIG_FILE = "adapter_config.json"

# Settings of an initialization mean nothing, in PEFT too, with another one.
_OF_INITS = {name: f"{name}_config" for name in ("loftq", "lora_ga")}

# What each value other than the default would ask for, and the way out. "": any value will do.
_OTHERS = {
    # Facts about a file, and settings of what LoRA Lab sees by itself.
    **dict.fromkeys(("peft_type", "peft_version", "auto_mapping"), ""),
    **dict.fromkeys(("base_model_name_or_path", "revision", "fan_in_fan_out"), ""),
    **dict.fromkeys(("megatron_core", "qalora_group_size", "runtime_config"), ""),
    "megatron_config": "Megatron's parallel layers are not adapted; leave it out",
    **dict.fromkeys(_OF_INITS.values(), "leave it out; this initialization is not there"),
    "velora_config": "use use_lorafa=True, or gradient_checkpointing, to keep less",
    "alora_invocation_tokens": "an adapter acts on all tokens here; use PEFT",
    "use_qalora": "quantize the base and attach LoRA to it",
    "monteclora_config": "use PEFT",
    "layer_replication": "copy the layers in the model before the adapter is attached",
    "use_bdlora": "use PEFT",
    "arrow_config": "choose an adapter for each sample with ll.mixed_batch",
    "kasa_config": "use PEFT",
}


class TaskType(enum.StrEnum):
    """What a model is for, as PEFT's configs say it."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


# What PEFT trains whole by itself for a task, wherever a module's path ends so.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def without_others(values: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Return values without those of PEFT's fields that mean nothing.

    Args:
        values: {field: value}.
        own: the fields that `LoraConfig` has.

    Raises:
        ConfigError: one of them means something, which is not done here.
    """
    known = set(own)
    init = _OF_INITS.get(str(values.get("init_lora_weights")))
    for name in _OTHERS.keys() & values.keys() - known:
        value, fix = values[name], _OTHERS[name]
        if name in _OF_INITS.values() and name != init:
            continue
        if name == "peft_type" and getattr(value, "value", value) not in (None, "LORA"):
            raise ConfigError(f"peft_type is {value!r}; LoraConfig is LORA's, see ll.methods()")
        if fix and value not in (None, False, {}, [], ()):
            raise ConfigError(f"{name} is PEFT's, and not done here: {fix}")
    return {name: v for name, v in values.items() if name in known or name not in _OTHERS}


def task_name(value: object) -> str | None:
    """Return a task type as text.

    Raises:
        ConfigError: there is none of that name.
    """
    if value is None:
        return None
    name = getattr(value, "value", value)  # PEFT's own enum too
    if not isinstance(name, str) or name not in TaskType.__members__:
        known = ", ".join(TaskType.__members__)
        raise ConfigError(f"task_type is {value!r}; use one of {known}, or leave it out")
    return str(name)


def read_config(folder: str | Path, own: Iterable[str]) -> dict[str, Any]:
    """Return the fields in a folder's adapter_config.json.

    Raises:
        ConfigError: the file is missing, damaged or of another method, or has a value that means
            something which is not done here.
    """
    path = Path(folder).expanduser() / CONFIG_FILE
    try:
        values: Any = parse_json(read_bytes(path, MOST_BYTES, follow=True))
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {CONFIG_FILE}; name an adapter's folder") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); fetch the adapter again") from None
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise ConfigError(f"{path} describes {kind!r}, not LORA; ll.load_adapter reads others too")
    known = {*own, *_OTHERS}
    if unknown := sorted(values.keys() - known):
        warnings.warn(f"{path} has fields that are not known: {', '.join(unknown)}", stacklevel=3)
    return {name: value for name, value in values.items() if name in known}
