"""PEFT's configs beside ours: their other fields, their task types, and adapter_config.json.

A field that PEFT has and LoRA Lab has not is taken where its value means nothing, so that a call
that was written for PEFT needs only its import changed; any other value is refused by name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from lora_lab._util.files import user_path
from lora_lab._util.json_files import MOST_BYTES, parse_json, read_bytes
from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig

C = TypeVar("C", bound=type)

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

# The values that ask for nothing, where they are not None and what is empty or False.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "r": (None, 8),  # as it stands in every file; PEFT warns of others, and goes without
    "init_lora_weights": (None, True),
    "task_type": (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"),  # no head is trained
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


class PeftConfig(MethodConfig):
    """A config that PEFT has too: it takes all fields of PEFT's.

    Attributes:
        peft_name: PEFT's `peft_type`.
        not_done: {field of PEFT's that is none here: what to do in place of it}.
    """

    peft_name: ClassVar[str]
    not_done: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping; see `Config.from_dict`."""
        return super().from_dict(_without_others(cls, values))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read the config of an adapter's folder, PEFT's or one that `save_adapter` wrote.

        As in PEFT, `inference_mode` is what the file says, which is usually True:
        ``LoraConfig.from_pretrained(folder).replace(inference_mode=False)`` is to be trained.

        Args:
            folder: that holds an adapter_config.json.

        Raises:
            ConfigError: there is none, it is another method's, or has what is not done here.
        """
        return cls.from_dict(read_config(cls, folder))


def takes_peft_fields(config: C) -> C:
    """Let a `PeftConfig` be called with those of PEFT's fields too that mean nothing."""
    own: Any = config
    init = own.__init__

    @functools.wraps(init)
    def taking(self: Any, *given: Any, **fields: Any) -> None:
        init(self, *given, **_without_others(own, fields))

    own.__init__ = taking
    return config


def _without_others(config: type[PeftConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without those of PEFT's fields that mean nothing.

    Raises:
        ConfigError: one of them means something, which is not done here.
    """
    known, others = _names(config), {**_OTHERS, **config.not_done}
    init = _OF_INITS.get(str(values.get("init_lora_weights")))
    for name in others.keys() & values.keys() - known:
        value, fix = values[name], others[name]
        if name in _OF_INITS.values() and name != init:
            continue
        if name == "peft_type" and getattr(value, "value", value) not in (None, config.peft_name):
            raise ConfigError(
                f"peft_type is {value!r}; {config.__name__} is {config.peft_name}'s, see "
                "ll.methods()"
            )
        if fix and value not in _NOTHING.get(name, (None, False, {}, [], ())):
            raise ConfigError(f"{name} is PEFT's, and not done here: {fix}")
    return {name: v for name, v in values.items() if name in known or name not in others}


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


def read_config(config: type[PeftConfig], folder: str | Path) -> dict[str, Any]:
    """Return the fields in a folder's adapter_config.json.

    Raises:
        ConfigError: the file is missing, damaged or of another method, or has a value that means
            something which is not done here.
    """
    path = user_path(folder, ConfigError) / CONFIG_FILE
    try:
        values: Any = parse_json(read_bytes(path, MOST_BYTES, follow=True))
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {CONFIG_FILE}; name an adapter's folder") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); fetch the adapter again") from None
    if not isinstance(values, dict) or values.get("peft_type") != config.peft_name:
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise ConfigError(
            f"{path} describes {kind!r}, not {config.peft_name}; ll.load_adapter reads others too"
        )
    known = {*_names(config), *_OTHERS, *config.not_done}
    if unknown := sorted(values.keys() - known):
        warnings.warn(f"{path} has fields that are not known: {', '.join(unknown)}", stacklevel=3)
    return {name: value for name, value in values.items() if name in known}


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}
