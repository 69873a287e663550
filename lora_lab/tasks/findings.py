"""What is wrong with the texts of a data set, as far as that can be seen: one line a finding."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lora_lab.redaction import shown_redacted
from lora_lab.tasks.base import Task, same_letters, some
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.prompts import Example

Severity = Literal["error", "warning", "note"]
_SHOWN = 3  # numbers of rows that a finding names
_DOMINATES = 0.9  # the share of one class, or of one answer, from which that is said
_AT_LEAST = 20  # rows, for what is a share of them
_WORDS = 4  # from which an answer is a sentence
_MOST = 0.75  # the share of answers that end in a stop from which the others are odd
_OFTEN = 3  # times that others have a word
_WORD = re.compile(r"\w+")
_LIMIT = 16  # letters or tokens: no limit that somebody sets is lower
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u2060\ud800-\udfff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]{2,}")
_ACCENTS_ONLY = re.compile("[À-ÿ]{4,}")  # Cyrillic or Greek, read as Latin-1
_SENTENCE_END = re.compile(r"""[.!?…。！？:;)\]}"'»”’`>|*_-]\s*$""")
_BROKEN_OFF = re.compile(r"(\.\.\.|…|\[truncated\]|<truncated>)\s*$", re.I)


@shown_redacted
@dataclass(frozen=True)
class Finding:
    """One thing to look at before training.

    Attributes:
        kind: a word for it, such as "duplicates".
        severity: "error": the run would fail or learn nothing of use; "warning": it would learn
            something else than is meant; "note": to know.
        count: of how many examples, or classes, it is true.
        text: what was found.
        fix: what to do about it.
        rows: the places of the first ones in their part, from 0.
    """

    kind: str
    severity: Severity
    count: int
    text: str
    fix: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows)) + (", …" if self.count > len(self.rows) else "")
        return f"{self.text}{f' (rows {shown})' if self.rows else ''}; {self.fix}"


class Read(NamedTuple):
    """One example as people read it: what goes in, and what is to come out."""

    text: str
    answer: str


Parts = Mapping[str, Sequence[Read]]


def read(task: Task, example: Any) -> Read:
    """Return an example's texts."""
    if isinstance(task, LanguageModelingTask):
        return Read(example, "")
    if isinstance(task, ClassificationTask):
        return Read(task.input_text(example), example.label)
    if isinstance(example, Example):  # its references are for scoring
        return Read(example.prompt, example.completion)
    reference = task.reference(example)
    answer = reference[0] if isinstance(reference, tuple) and reference else reference
    turns = getattr(example, "messages", None)  # of a chat all turns tell it from another
    text = task.input_text(example) if turns is None else str(turns)
    return Read(text, str(answer))


def text_findings(task: Task, parts: Parts, cut: Sequence[int] = ()) -> Iterator[Finding]:
    """Yield what the texts show.

    Args:
        task: their task.
        parts: {"training": …, "validation": …, "test": …}, each in its order.
        cut: places of training answers that look cut as tokens.
    """
    train = parts["training"]
    yield from of_rows(
        "empty_prompts",
        "warning",
        _where(train, lambda row: not row.text.strip()),
        len(train),
        "{count} training examples have nothing to read",
        "fill them in, or leave these rows out",
    )
    yield from _repeated(task, train)
    yield from _shared(parts)
    if not isinstance(task, LanguageModelingTask):  # of texts alone there is no answer
        yield from _empty(train)
        yield from _echoes(train)
        yield from _one_answer(task, parts)
        if not task.head:  # else answers are names of classes, or numbers
            yield from _broken_off(train, cut)
    yield from _characters(parts)
    yield from _white_space(task, train)
    if not parts.get("validation"):
        line = "nothing is held out, so that the run cannot say what it has learned"
        yield Finding("held_out", "note", 0, line, "give a validation file")


def of_rows(
    kind: str, severity: Severity, rows: Sequence[int], total: int, text: str, fix: str
) -> Iterator[Finding]:
    """Yield a finding on some of a part's rows; none where there are none."""
    if rows:
        line = text.replace("{count}", f"{len(rows):,} of {total:,}")
        yield Finding(kind, severity, len(rows), line, fix, tuple(rows[:_SHOWN]))


def same_text(text: str) -> str:
    """Return what two texts have in common that differ in case, white space and form only."""
    return same_letters(" ".join(text.split()))


def _where(rows: Sequence[Read], test: Callable[[Read], object]) -> list[int]:
    return [number for number, row in enumerate(rows) if test(row)]


def _empty(rows: Sequence[Read]) -> Iterator[Finding]:
    yield from of_rows(
        "empty_answers",
        "error",
        _where(rows, lambda row: not row.answer.strip()),
        len(rows),
        "{count} training answers are empty",
        "fill them in, or leave these rows out",
    )


def _repeated(task: Task, rows: Sequence[Read]) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    answers: defaultdict[str, set[str]] = defaultdict(set)
    again, other = [], []
    for number, row in enumerate(rows):
        text, answer = same_text(row.text), same_text(row.answer)
        if (text, answer) in seen:
            again.append(number)
        elif answers[text]:
            other.append(number)
        seen.add((text, answer))
        answers[text].add(answer)
    yield from of_rows(
        "duplicates",
        "warning",
        again,
        len(rows),
        "{count} training examples are copies of others",
        "leave the copies out, unless they are to weigh more",
    )
    classes = isinstance(task, ClassificationTask)
    yield from of_rows(
        "contradictions" if classes else "several_answers",
        "warning" if classes else "note",
        other,
        len(rows),
        "{count} training examples repeat a text of another one, with another "
        + ("class" if classes else "answer"),
        "decide for one class" if classes else "right where several answers are; else choose one",
    )


def _shared(parts: Parts) -> Iterator[Finding]:
    known = {same_text(row.text) for row in parts["training"]}
    for part, rows in parts.items():
        if part != "training":
            yield from of_rows(
                "leaked",
                "warning",
                _where(rows, lambda row: same_text(row.text) in known),
                len(rows),
                f"{{count}} {part} examples have a text that is trained on",
                "leave them out of one part; what is scored on them is remembered, not learned",
            )


def _echoes(rows: Sequence[Read]) -> Iterator[Finding]:
    yield from of_rows(
        "echoes",
        "warning",
        _where(rows, lambda r: r.answer.strip() and same_text(r.text) == same_text(r.answer)),
        len(rows),
        "{count} training answers are their own prompt",
        "look whether the right column is learned",
    )


def _one_answer(task: Task, parts: Parts) -> Iterator[Finding]:
    rows = parts["training"]
    answers = Counter(row.answer for row in rows)
    (common, count), *_ = answers.most_common(1) or [("", 0)]
    what = "class" if isinstance(task, ClassificationTask) else "answer"
    if len(rows) > 1 and count == len(rows):
        line = f"all {count:,} training examples have the same {what}, {_short(common)}"
        yield Finding("constant_answer", "error", count, line, "there is nothing to tell apart")
    elif len(rows) >= _AT_LEAST and count >= _DOMINATES * len(rows):
        line = (
            f"{count:,} of {len(rows):,} training examples have the same {what}, {_short(common)}; "
            f"who always says it is right {count / len(rows):.0%} of the time"
        )
        yield Finding(
            "one_answer", "warning", count, line, "balance them, or read more than accuracy"
        )
    if isinstance(task, ClassificationTask):
        yield from _classes(task, parts)


def _classes(task: ClassificationTask, parts: Parts) -> Iterator[Finding]:
    for part, rows in parts.items():
        found = {row.answer for row in rows}
        missing = [label for label in task.labels if label not in found]
        if missing and (rows or part == "training"):
            line = f"no {part} example has the class {some([*map(_short, missing)])}"
            severity: Severity = "error" if part == "training" else "warning"
            yield Finding("missing_class", severity, len(missing), line, "add some of it")
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in task.labels:
        alike[same_text(label)].append(repr(label))
    for names in alike.values():
        if len(names) > 1:
            alone = "differ in white space, case or Unicode form only"
            line = f"the classes {' and '.join(names)} {alone}"
            yield Finding("classes_alike", "error", len(names), line, "write them one way")


def _broken_off(rows: Sequence[Read], also: Sequence[int]) -> Iterator[Finding]:
    answers = [row.answer for row in rows]
    cut = {*also, *(n for n, answer in enumerate(answers) if _BROKEN_OFF.search(answer))}
    cut.update(at_one_length([len(answer) for answer in answers]))
    cut.update(_in_a_sentence(answers))
    yield from of_rows(
        "cut_answers",
        "warning",
        sorted(cut),
        len(rows),
        "{count} training answers look broken off (in the midst of a sentence, or at one length)",
        "look for a limit where they were made: the model learns to break off, too",
    )


def _in_a_sentence(answers: Sequence[str]) -> Iterator[int]:
    """Yield the places of answers that stop where no sentence does, if most end in a stop.

    A stop alone may simply be missing. So the last word is one that others have, and never at
    their end (the, and, of …); or no word of theirs, and the beginning of one.
    """
    words = {
        n: found for n, text in enumerate(answers) if len(found := _WORD.findall(text)) >= _WORDS
    }
    ended = {number for number in words if _SENTENCE_END.search(answers[number])}
    if len(words) < _AT_LEAST or len(ended) < _MOST * len(words):
        return
    ends = {words[number][-1].casefold() for number in ended}
    within = Counter(word.casefold() for found in words.values() for word in found[:-1])
    known = sorted(word for word, count in within.items() if count >= _OFTEN)
    for number in words.keys() - ended:
        last = words[number][-1].casefold()
        behind = known[bisect(known, last) :][:1]
        begins = last not in within and behind != [] and behind[0].startswith(last)
        if last not in ends and (within[last] >= _OFTEN or begins):
            yield number


def at_one_length(lengths: Sequence[int]) -> list[int]:
    """Return the places of the longest, where so many are as long that something cut them."""
    counts = Counter(lengths)
    longest = max(counts, default=0)
    near = max((counts[longest - n] for n in range(1, 4)), default=0)
    if longest < _LIMIT or len(counts) < 3 or counts[longest] < 3 * max(1, near):
        return []
    return [number for number, length in enumerate(lengths) if length == longest]


def _characters(parts: Parts) -> Iterator[Finding]:
    rows = parts["training"]
    both = [f"{row.text}\n{row.answer}" for row in rows]
    yield from of_rows(
        "wrong_encoding",
        "warning",
        [number for number, text in enumerate(both) if "\ufffd" in text or misread(text)],
        len(rows),
        "{count} training examples have letters that were decoded wrongly (Ã©, â€™, �)",
        "name the file's encoding: load_task(…, encoding=…)",
    )
    yield from of_rows(
        "control_characters",
        "warning",
        [number for number, text in enumerate(both) if _CONTROL.search(text)],
        len(rows),
        "{count} training examples have control characters, or others that nobody sees",
        "take them out, unless the model is to write them",
    )


def misread(text: str) -> bool:
    """Return whether a text has UTF-8 that was read as Latin-1 or Windows-1252, or the like."""
    if text.isascii():
        return False
    return bool(_ACCENTS_ONLY.search(text)) or any(
        _as_utf8(found[0]) for found in _NOT_ASCII.finditer(text)
    )


def _as_utf8(letters: str) -> bool:
    try:
        raw = b"".join(
            bytes([ord(letter)]) if ord(letter) < 256 else letter.encode("cp1252")
            for letter in letters
        )
        return len(raw.decode("utf-8")) < len(letters)
    except UnicodeError:
        return False


def _white_space(task: Task, rows: Sequence[Read]) -> Iterator[Finding]:
    if isinstance(task, ClassificationTask):
        wrong = [label for label in task.labels if label != label.strip()]
        if wrong:
            line = f"classes begin or end with white space: {', '.join(map(repr, wrong[:4]))}"
            yield Finding("white_space", "warning", len(wrong), line, "strip their names")
        return
    for what, column in (("prompts", 0), ("answers", 1)):
        found = [n for n, row in enumerate(rows) if row[column] != row[column].strip()]
        if 0 < len(found) < len(rows) or what == "answers":
            yield from of_rows(
                "white_space",
                "note",
                found,
                len(rows),
                f"{{count}} training {what} begin or end with white space",
                "it is learned with the rest; strip it where it means nothing",
            )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
