"""Regular expressions of people and foreign files, matched without backtracking.

Python's `re` can take years over `(a+)+$`, holding the interpreter's lock, and a file brings both
the pattern and the names. Here a pattern is walked once with the set of all positions that it can
have reached, each position one bit of an integer; so the time is bounded, and a budget of steps
bounds it for everything that one config or file brings.

The `regex` package's timeout is no way out: it holds for matching only, and to compile
`a{999999999}b` takes all memory that there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from lora_lab._util.python_private import combined_flags, one_character, parsed_pattern
from lora_lab.errors import LoraLabError

Value = TypeVar("Value", int, float)

MOST_STEPS = 1_000_000  # for all patterns and names of one config or file: about a second
_MOST_CHARACTERS = 100_000  # of all patterns that are more than text
_PATH = re.compile(r"\^?(?:[^\\^$*+?{}\[\]|()\n]|\\[^A-Za-z0-9\n])+")  # text, and dots
_FLAGS = re.UNICODE | re.IGNORECASE | re.ASCII | re.DOTALL | re.VERBOSE
_CHARACTERS = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_PLACES = {
    **dict.fromkeys(("AT_BEGINNING", "AT_BEGINNING_STRING"), "start"),
    **dict.fromkeys(("AT_BOUNDARY", "AT_NON_BOUNDARY"), "boundary"),
    **dict.fromkeys(("AT_END", "AT_END_STRING"), "end"),
}


class Budget:
    """What all patterns of one config or file may take together.

    Attributes:
        steps: how many operations of patterns were tried so far; at most `MOST_STEPS`.
    """

    def __init__(self) -> None:
        self.steps = self._characters = 0
        self._places: dict[str, dict[str, int]] = {}

    def spend(self, steps: int) -> None:
        """Count operations."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise _RefusedError("takes too long to match")

    def read(self, pattern: str) -> None:
        """Count a pattern's characters."""
        self._characters += len(pattern)
        if self._characters > _MOST_CHARACTERS:
            raise _RefusedError("makes the patterns too long to read")

    def places(self, name: str) -> dict[str, int]:
        """Return where each character of a name stands; one bit a position."""
        if name not in self._places:
            where: dict[str, int] = {}
            for at, character in enumerate(name):
                where[character] = where.get(character, 0) | 1 << at
            self._places[name] = where
        return self._places[name]


class Expression:
    """One regular expression.

    Args:
        field: where it stands, for the error's text: "target_modules".
        text: the expression.
        error: what is raised.
        budget: of all that is matched for one config or file.

    Raises:
        LoraLabError: it is no regular expression, or needs more than one walk (refers back), or
            takes too long; of the class that was given.
    """

    def __init__(
        self, field: str, text: str, error: type[LoraLabError], budget: Budget | None = None
    ) -> None:
        self._field, self._text, self._error = field, text, error
        self._budget = budget or Budget()
        self._nodes = self._said(lambda: self._parsed(text))

    def fullmatch(self, name: str) -> bool:
        """Whether all of a name matches."""
        return self.ends(name, 1) >> len(name) & 1 == 1

    def match_end(self, name: str) -> bool:
        """Whether the end of a path matches, from its start or from behind a dot (PEFT's rule)."""
        starts = 1 | self._budget.places(name).get(".", 0) << 1
        return self.ends(name, starts) >> len(name) & 1 == 1

    def ends(self, name: str, starts: int) -> int:
        """Return where a match can end, given where it can begin; one bit a position."""
        return self._said(lambda: _walk(self._nodes, starts, name, self._budget))

    def _parsed(self, text: str) -> list[_Node]:
        self._budget.read(text)
        try:
            tree = parsed_pattern(text)
        except (re.error, OverflowError) as error:
            raise _RefusedError(f"is not a regular expression ({_line(error)})") from None
        if tree.state.flags & ~_FLAGS:
            raise _RefusedError("sets flags that are not read here")
        return _nodes(tree, tree.state.flags)

    def _said(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except RecursionError as error:
            why = f"is not a regular expression ({_line(error)})"
        except _RefusedError as error:
            why = str(error)
        text = repr(self._text)
        text = text if len(text) <= 80 else f"{text[:80]}…"
        raise self._error(
            f"{self._field}: {text} {why}; write the modules' full names instead"
        ) from None


class Patterns(Generic[Value]):
    """{pattern: value} by PEFT's rule: the first that matches the end of a module's path wins.

    A match begins at the path's start or behind a dot, as in `(.*\\.)?(pattern)$`. Paths, escaped
    or not, are looked up as text, however many there are.

    Raises:
        LoraLabError: as `Expression`.
    """

    def __init__(
        self, field: str, patterns: Mapping[str, Value], error: type[LoraLabError]
    ) -> None:
        self._field, self._error = field, error
        self.budget = Budget()
        self._values: list[Value] = list(patterns.values())
        self._whole, self._endings = _Paths(), _Paths()
        self._others: list[tuple[int, Expression]] = []
        for index, pattern in enumerate(patterns):
            if _PATH.fullmatch(pattern):
                known = self._whole if pattern.startswith("^") else self._endings
                known.add(pattern.removeprefix("^"), index)
            else:
                self._others.append((index, Expression(field, pattern, error, self.budget)))

    def lookup(self, name: str, default: Value) -> Value:
        """Return the value of the first pattern that matches, else the default."""
        return self.lookup_any((name,), default)

    def lookup_any(self, names: Iterable[str], default: Value) -> Value:
        """Return the value of the first pattern that matches one of the names, else the default."""
        asked = tuple(dict.fromkeys(names))
        first = min(self._paths_of(asked), default=len(self._values))
        for index, expression in self._others:
            if index >= first:
                break
            if any(map(expression.match_end, asked)):
                return self._values[index]
        return self._values[first] if first < len(self._values) else default

    def matching(self, names: Iterable[str]) -> set[int]:
        """Return the numbers of the patterns that match one of the names, first or not."""
        known = tuple(dict.fromkeys(names))
        found = {i for i, own in self._others if any(map(own.match_end, known))}
        return found.union(self._paths_of(known))

    def _paths_of(self, names: Iterable[str]) -> Iterator[int]:
        for name in names:
            found = [self._whole.matching(name)]
            found += map(self._endings.matching, endings(name))
            for tried, numbers in found:
                yield from numbers
                try:
                    self.budget.spend(tried)
                except _RefusedError as error:
                    raise self._error(f"{self._field} {error}; escape the dots of paths") from None


class _Paths:
    """Patterns of text in which a dot stands for any one character, found without a walk.

    They are kept by their length and by where their dots are: what a text has there is left out.
    """

    def __init__(self) -> None:
        self._kept: dict[int, dict[tuple[int, ...], dict[str, list[int]]]] = {}

    def add(self, pattern: str, number: int) -> None:
        characters = re.findall(r"\\?.", pattern)
        dots = tuple(at for at, own in enumerate(characters) if own == ".")
        text = _without("".join(own[-1] for own in characters), dots)
        shapes = self._kept.setdefault(len(characters), {})
        shapes.setdefault(dots, {}).setdefault(text, []).append(number)

    def matching(self, text: str) -> tuple[int, list[int]]:
        """Return what the search took, and the numbers of those that match all of a text."""
        shapes = {} if "\n" in text else self._kept.get(len(text), {})
        found = [known.get(_without(text, dots), []) for dots, known in shapes.items()]
        return sum(1 + len(dots) // 4 for dots in shapes), [
            number for numbers in found for number in numbers
        ]


def _without(text: str, places: tuple[int, ...]) -> str:
    starts = (0, *(at + 1 for at in places))
    return "\n".join(text[i:j] for i, j in zip(starts, (*places, None), strict=True))


def endings(name: str) -> list[str]:
    """Return a dotted path's ends: itself, and what stands behind each dot."""
    return [name, *(name[at + 1 :] for at, character in enumerate(name) if character == ".")]


class _RefusedError(Exception):
    """Why an expression is not matched."""


class _Node(NamedTuple):
    """One operation of a parsed expression."""

    kind: str
    value: Any = None  # of "literal": the character; of "set": its _Set; of "look": whether, behind
    least: int = 0
    most: int = 0
    body: Any = ()  # the operations within; of "branch" several lists


class _Set:
    """A class of characters, as `re` itself has it."""

    def __init__(self, matches: Callable[[str], Any]) -> None:
        self._matches = matches
        self._known: dict[str, bool] = {}
        self._last: tuple[Mapping[str, int], int] = {}, 0

    def where(self, places: Mapping[str, int]) -> int:
        """Return where in a name its characters stand; one bit a position."""
        if places is not self._last[0]:
            self._last = places, sum(bits for c, bits in places.items() if self._has(c))
        return self._last[1]

    def _has(self, character: str) -> bool:
        if character not in self._known:
            self._known[character] = self._matches(character) is not None
        return self._known[character]


def _nodes(tree: Any, flags: int) -> list[_Node]:
    """Return the operations of what `re` parsed; what needs more than one walk is refused."""
    found = []
    for op, argument in tree:
        kind = op.name
        if kind == "LITERAL" and not flags & re.IGNORECASE:
            found.append(_Node("literal", chr(argument)))
        elif kind in _CHARACTERS:
            found.append(_Node("set", _Set(one_character(tree, op, argument, flags))))
        elif kind == "AT" and argument.name in _PLACES:
            word = _Set(re.compile(r"\w", flags & re.ASCII).match)
            edge = _PLACES[argument.name]
            ends = argument.name == "AT_END"
            value = (word, argument.name == "AT_BOUNDARY") if edge == "boundary" else ends
            found.append(_Node(edge, value))
        elif kind == "SUBPATTERN":
            _, more, fewer, inner = argument
            found.append(_Node("group", body=_nodes(inner, combined_flags(flags, more, fewer))))
        elif kind == "BRANCH":
            found.append(_Node("branch", body=[_nodes(way, flags) for way in argument[1]]))
        elif kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = argument
            found.append(_Node("repeat", None, int(least), int(most), _nodes(inner, flags)))
        elif kind in ("ASSERT", "ASSERT_NOT"):
            least, most = argument[1].getwidth()
            if argument[0] < 0 and least != most:
                raise _RefusedError("is not a regular expression (look-behind of no fixed width)")
            behind = least if argument[0] < 0 else 0
            found.append(_Node("look", (kind == "ASSERT", behind), body=_nodes(argument[1], flags)))
        elif kind == "FAILURE":
            found.append(_Node("branch"))
        else:
            raise _RefusedError(f"uses {kind.lower()}, which is not read here")
    return found


def _walk(nodes: list[_Node], reached: int, name: str, budget: Budget) -> int:
    """Return where the operations can end in a name, given where they can begin."""
    budget.spend(len(nodes))
    places = budget.places(name)
    for node in nodes:
        if not reached:
            return 0
        kind = node.kind
        if kind == "literal":
            reached = (reached & places.get(node.value, 0)) << 1
        elif kind == "set":
            reached = (reached & node.value.where(places)) << 1
        elif kind == "group":
            reached = _walk(node.body, reached, name, budget)
        elif kind == "branch":
            before, reached = reached, 0
            for way in node.body:
                reached |= _walk(way, before, name, budget)
        elif kind == "repeat":
            reached = _repeat(node, reached, name, budget)
        elif kind == "look":
            reached = _look(node, reached, name, budget)
        else:
            reached &= _edges(node, name, places)
    return reached


def _edges(node: _Node, name: str, places: Mapping[str, int]) -> int:
    """Return the positions that an operation without a character takes."""
    if node.kind == "start":
        return 1
    if node.kind == "end":  # $ stands before a last line's end too
        return 1 << len(name) | (node.value and name.endswith("\n")) << max(len(name) - 1, 0)
    word, wanted = node.value
    inside = word.where(places)
    edges = inside ^ inside << 1
    return edges if wanted else ~edges


def _repeat(node: _Node, reached: int, name: str, budget: Budget) -> int:
    for _ in range(node.least):
        before, reached = reached, _walk(node.body, reached, name, budget)
        if reached == before:  # it stays so, however often it is asked for
            break
    only = node.body[0] if len(node.body) == 1 else None
    if only and only.kind == "set" and node.most - node.least >= len(name):
        taken = only.value.where(budget.places(name))  # a run of them, in one addition's carries
        return reached | ((taken + (reached & taken)) ^ taken)
    new, done = reached, 0
    while new and done < node.most - node.least:
        new = _walk(node.body, new, name, budget) & ~reached
        reached |= new
        done += 1
    return reached


def _look(node: _Node, reached: int, name: str, budget: Budget) -> int:
    """Return those of the positions at which something does, or does not, stand around them."""
    wanted, behind = node.value
    kept = 0
    for at in range(len(name) + 1):
        if reached >> at & 1:
            budget.spend(1)
            start = 1 << at >> behind
            ends = _walk(node.body, start, name, budget) if start else 0
            if bool(ends >> at & 1 if behind else ends) == wanted:
                kept |= 1 << at
    return kept


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0]
