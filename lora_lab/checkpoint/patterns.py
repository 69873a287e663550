"""rank_pattern and alpha_pattern of a foreign file, matched without backtracking.

Python's `re` can take years over `(a+)+$`, and a file brings both the pattern and the names. Here
a pattern is walked once with the set of all positions that it can have reached, each position one
bit of an integer; so the time is bounded, and a budget of steps bounds it for the whole file.

The `regex` package's timeout is no way out: it holds for matching only, and to compile
`a{999999999}b` takes all memory that there is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from lora_lab.checkpoint.files import quoted
from lora_lab.errors import AdapterError

Value = TypeVar("Value", int, float)

_LONGEST = 2_000  # characters of a pattern
_MOST = 100_000  # characters of all patterns that are more than text
MOST_STEPS = 1_000_000  # for all patterns and names of one file: about a second
_LITERAL = re.compile(r"\^?(?:[^\\.^$*+?{}\[\]|()]|\\[^A-Za-z0-9])+")
# What the interpreter itself parses patterns with; its tree has been the same since 3.11.
_parser: Any = importlib.import_module("re._parser")
_CLASSES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
}


class Patterns(Generic[Value]):
    """{pattern: value} by PEFT's rule: the first that matches the end of a module's path wins.

    A match begins at the path's start or behind a dot, as in `(.*\\.)?(pattern)$`. Names that are
    only escaped are compared as text.

    Attributes:
        steps: how many operations of patterns were tried so far; at most `MOST_STEPS`.

    Raises:
        AdapterError: a pattern that is no regular expression, or needs more than one walk (looking
            around, referring back), or takes too long.
    """

    def __init__(self, field: str, patterns: Mapping[str, Value]) -> None:
        self._field = field
        self._values: list[Value] = list(patterns.values())
        self._whole: dict[str, int] = {}
        self._endings: dict[str, int] = {}
        self._others: list[tuple[int, str, Any]] = []
        self.steps = self._parsed = 0
        self._name = ""
        self._masks: dict[object, int] = {}
        for index, pattern in enumerate(patterns):
            if _LITERAL.fullmatch(pattern):
                text = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^"), flags=re.DOTALL)
                known = self._whole if pattern.startswith("^") else self._endings
                known.setdefault(text, index)
            else:
                self._others.append((index, pattern, self._parse(pattern)))

    def lookup(self, name: str, default: Value) -> Value:
        """Return the value of the first pattern that matches, else the default."""
        starts: list[int] = [0, *(at + 1 for at, character in enumerate(name) if character == ".")]
        literal = [self._whole.get(name), *(self._endings.get(name[at:]) for at in starts)]
        first = min((index for index in literal if index is not None), default=len(self._values))
        for index, pattern, tree in self._others:
            if index >= first:
                break
            ends = self._walk(tree, sum(1 << at for at in starts), name, pattern)
            if ends >> len(name) & 1:
                return self._values[index]
        return self._values[first] if first < len(self._values) else default

    def _parse(self, pattern: str) -> Any:
        self._parsed += len(pattern)
        if len(pattern) > _LONGEST or self._parsed > _MOST:
            raise self._refused(pattern, "makes the patterns too long to read")
        try:
            tree = _parser.parse(pattern)
            if tree.state.flags != re.UNICODE:
                raise self._refused(pattern, "sets flags, which are not read here")
            for op, _ in _operations(tree):
                if op.name not in _READ:
                    raise self._refused(pattern, f"uses {op.name.lower()}, which is not read here")
        except (re.error, RecursionError, OverflowError) as error:
            why = str(error).splitlines()[0]
            raise self._refused(pattern, f"is not a regular expression ({why})") from None
        return tree

    def _walk(self, tree: Any, starts: int, name: str, pattern: str) -> int:
        """Return where `tree` can end in `name`, given where it can begin; one bit a position."""
        reached = starts
        for op, argument in tree:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise self._refused(pattern, "takes too long to match")
            if not reached:
                return 0
            kind = op.name
            if kind == "AT":
                reached &= 1 if argument.name.startswith("AT_BEGINNING") else 1 << len(name)
            elif kind == "SUBPATTERN":
                reached = self._walk(argument[-1], reached, name, pattern)
            elif kind == "BRANCH":
                ways = [self._walk(branch, reached, name, pattern) for branch in argument[1]]
                reached = 0
                for way in ways:
                    reached |= way
            elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
                least, most, body = argument
                reached = self._repeat(least, most, body, reached, name, pattern)
            else:
                reached = (reached & self._mask(kind, argument, name)) << 1
        return reached

    def _repeat(
        self, least: int, most: Any, body: Any, starts: int, name: str, pattern: str
    ) -> int:
        reached = starts
        for _ in range(int(least)):
            before, reached = reached, self._walk(body, reached, name, pattern)
            if reached == before:  # it stays so, however often it is asked for
                break
        new, done = reached, 0
        while new and done < int(most) - int(least):
            new = self._walk(body, new, name, pattern) & ~reached
            reached |= new
            done += 1
        return reached

    def _mask(self, kind: str, argument: Any, name: str) -> int:
        """Return where in `name` stands a character that an operation takes; one bit a position."""
        if name != self._name:
            self._name, self._masks = name, {}
        key = argument if kind == "LITERAL" else (kind, id(argument))
        if key not in self._masks:
            taken = {c for c in set(name) if _is(c, kind, argument)}
            self._masks[key] = sum(1 << at for at, c in enumerate(name) if c in taken)
        return self._masks[key]

    def _refused(self, pattern: str, why: str) -> AdapterError:
        return AdapterError(
            f"{self._field} key {quoted(pattern)} {why}; write the modules' full names instead"
        )


_READ = {
    *("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "SUBPATTERN", "BRANCH"),
    *("MAX_REPEAT", "MIN_REPEAT", "AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"),
}


def _operations(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every operation of a parsed pattern, those within others too."""
    for op, argument in tree:
        yield op, argument
        kind = op.name
        if kind == "AT":
            yield argument, None
        elif kind == "SUBPATTERN":
            if argument[1] or argument[2]:
                raise re.error("flags within it")
            yield from _operations(argument[-1])
        elif kind == "BRANCH":
            for branch in argument[1]:
                yield from _operations(branch)
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            yield from _operations(argument[-1])


def _is(character: str, kind: str, argument: Any) -> bool:
    """Whether a character is what a one-character operation takes."""
    if kind == "LITERAL":
        return ord(character) == argument
    if kind == "NOT_LITERAL":
        return ord(character) != argument
    if kind == "ANY":
        return character != "\n"
    matches, negated = False, False
    for op, item in argument:
        part = op.name
        if part == "NEGATE":
            negated = True
        elif part == "LITERAL":
            matches |= ord(character) == item
        elif part == "RANGE":
            matches |= item[0] <= ord(character) <= item[1]
        else:
            matches |= re.match(_CLASSES[item.name], character) is not None
    return matches != negated
