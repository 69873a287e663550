"""YAML as people write it in run files: plain values only, 2e-4 is a number, no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lora_lab._util.files import user_path
from lora_lab._util.json_files import read_bytes, whole_text
from lora_lab.errors import ConfigError
from lora_lab.redaction import redacted_values

_LONGEST = 400  # letters of a whole number
_DEEPEST = 32  # brackets in each other
_LARGEST = 2**20  # bytes; a run file is a page


class _Loader(yaml.SafeLoader):
    """the safe loader, put right where YAML 1.1 surprises."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Aliases of aliases blow a page up to gigabytes; nobody needs one here.
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias is not read", event.start_mark)
        if (tag := getattr(event, "tag", None)) is not None:  # !!binary, !!set: no plain values
            said = f"the tag {tag[:80]!r} is not read"
            raise yaml.composer.ComposerError(None, None, said, event.start_mark)
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, kind: Any) -> None:
        # The scanner looks at every open bracket for each that it meets.
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "it is nested too deep", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # To base 60, which YAML 1.1 has, the time grows with the square of the length.
        if len(node.value) > _LONGEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number has {len(node.value)} digits", node.start_mark
            )
        number: int = super().construct_yaml_int(node)
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        try:  # to base 60, too
            number: float = super().construct_yaml_float(node)
        except OverflowError:
            said = f"a number has {len(node.value)} digits"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from None
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no name; put it in quotes", node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
# A date is no plain value: text, as in JSON.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)
# YAML 1.1 takes 2e-4 for a string, because it has no point.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def value_of(text: str) -> Any:
    """Return a value that somebody typed, as a run file has it: 2e-4, true, [a, b], a word.

    Raises:
        ConfigError: it is none.
    """
    try:
        return whole_text(yaml.load(text[:_LONGEST], Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{text[:80]!r} is no value: {_one_line(error)}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        ConfigError: it is not there, not YAML, or no mapping.
    """
    path = user_path(path, ConfigError)
    try:
        text = read_bytes(path, _LARGEST, follow=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise ConfigError(
            f"{path} is too large for a run file; name the file with its settings"
        ) from None
    try:
        value = whole_text(yaml.load(text.decode(), Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no settings; see `lora-lab train --help` for an example")
    return value


def to_yaml(value: dict[str, Any]) -> str:
    """Return plain values as YAML, in their order, without secrets."""
    return yaml.safe_dump(redacted_values(value), sort_keys=False, allow_unicode=True, width=100)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
