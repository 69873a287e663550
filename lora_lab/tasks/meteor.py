"""METEOR 1.5 (Denkowski and Lavie, 2014), by its authors' own program where that is installed.

The program is in Java, and its tables of synonyms and paraphrases are its own: no other counts the
same. `pip install pycocoevalcap` brings them, as coco-caption and the script of the E2E challenge
have them; a Java of version 8 or later has to be there. Nothing of that needs a network, but each
evaluation loads the tables: 20 seconds of one core, and 1.2 GB while it lasts.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lora_lab._util.quiet import first_line
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.intervals import Interval, between, drawn
from lora_lab.tasks.nlg_scores import captions
from lora_lab.tasks.text_scores import References

_PACKAGE, _JAR = "pycocoevalcap", "meteor-1.5.jar"
_OPTIONS = "-l en -norm"
_SECONDS = 1800.0  # for all answers
_TRIAL_SECONDS = 120.0  # for one word, before anything is trained
_LIGHT = "-m exact"  # matches that need no tables
# Of English, as tuned to people's rankings: recall's weight, the shape and the weight of the
# penalty, content words', and those of a match's kind: exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_KINDS = np.array([1.0, 0.6, 0.8, 0.6])
_FIELDS = 23  # lengths, matches, chunks, as its MeteorStats prints them


def meteor(predictions: Sequence[str], references: References) -> float:
    """Return corpus METEOR from 0 to 100, of the words that METEOR's -norm cuts itself."""
    return _score(_stats(predictions, references).sum(0))


def meteor_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `meteor`, by the bootstrap."""
    return _between(_stats(predictions, references))


def coco_meteor(predictions: Sequence[str], references: References) -> float:
    """Return corpus METEOR from 0 to 100 of texts cut as coco-caption does; see `nlg_scores`."""
    return _score(_stats(*_cut(predictions, references)).sum(0))


def coco_meteor_interval(predictions: Sequence[str], references: References) -> Interval:
    """Return the 95 % interval of `coco_meteor`, by the bootstrap."""
    return _between(_stats(*_cut(predictions, references)))


def no_meteor(references: References) -> str:  # noqa: ARG001
    """Return why METEOR cannot be counted here; "" where it can."""
    if _folder() is None:
        return f"its program and tables are not here; pip install {_PACKAGE}, which has them"
    if shutil.which("java") is None:
        return "its program needs Java, and no java is on the PATH; install one (8 or later)"
    return _trial()


def signature(references: References) -> str:  # noqa: ARG001
    """Return what counts it."""
    return f"METEOR 1.5 {_OPTIONS}, of {_PACKAGE} {importlib.metadata.version(_PACKAGE)}"


def _cut(predictions: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    cut: Callable[[str], list[str]] = captions(references)
    plain = [" ".join(cut(text)) for text in predictions]
    return plain, [[" ".join(cut(text)) for text in texts] for texts in references]


def _folder() -> Path | None:
    """Return where the program lies."""
    found = importlib.util.find_spec(_PACKAGE)
    places = [] if found is None else [*(found.submodule_search_locations or ())]
    folders = (Path(place) / "meteor" for place in places)
    return next((folder for folder in folders if (folder / _JAR).is_file()), None)


@functools.lru_cache(maxsize=1)
def _trial() -> str:
    """Return why the program does not run, as it is found once; "" where it does."""
    try:
        _printed((_line("a word", ["a word"]),), *_LIGHT.split())
    except TaskError as error:
        return str(error)
    return ""


def _stats(predictions: Sequence[str], references: References) -> np.ndarray:
    """Return the statistics of each answer against the reference that suits it best, (n, 23).

    Raises:
        TaskError: the program does not run, or prints something else.
    """
    return _printed(tuple(map(_line, predictions, references)))


def _line(prediction: str, references: Sequence[str]) -> str:
    return " ||| ".join(["SCORE", *map(_plain, references), _plain(prediction)])


@functools.lru_cache(maxsize=1)  # the score, and then its interval
def _printed(lines: Sequence[str], *options: str) -> np.ndarray:
    """Return the numbers that the program prints for each line."""
    folder = _folder()
    assert folder is not None, "no_meteor has been asked"
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", _JAR, "-", "-", "-stdio"]
    try:
        ran = subprocess.run(
            [*command, *_OPTIONS.split(), *options],
            cwd=folder,
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            timeout=_TRIAL_SECONDS if options else _SECONDS,
            check=True,
        )
        found = np.array([line.split() for line in ran.stdout.splitlines()], float)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = " ".join(str(getattr(error, "stderr", None) or "").split())[:200]
        raise TaskError(
            f"METEOR's program does not run: {first_line(error)} {said}".rstrip()
        ) from as_cause(error)
    if found.shape != (len(lines), _FIELDS):
        raise TaskError(f"METEOR's program printed {found.shape} numbers for {len(lines)} answers")
    found.flags.writeable = False  # it is kept for the next who asks
    return found


def _plain(text: str) -> str:
    """Return a text in one line, without what parts texts in the program's input."""
    return " ".join(text.replace("|||", " ").split()) or "."


def _between(stats: np.ndarray) -> Interval:
    return between([_score(stats[rows].sum(0)) for rows in drawn(len(stats))])


def _score(total: np.ndarray) -> float:
    """Return METEOR from 0 to 100 of statistics that are summed up over answers.

    Content and function words of the answer and of the reference, matches of each kind, and the
    chunks in which matched words stand in the same order; Denkowski and Lavie, sections 2 and 3.
    """
    (said, right, said_function, right_function), rest = total[:4], total[4:]
    matches = rest[:16].reshape(4, 4).T  # content words of both, then function words of both
    chunks, said_matched, right_matched = rest[16:]

    def share(content: np.ndarray, function: np.ndarray, length: float, plain: float) -> float:
        words = _DELTA * (length - plain) + (1 - _DELTA) * plain
        found = (_KINDS * (_DELTA * content + (1 - _DELTA) * function)).sum()
        return float(found / words) if words else 0.0

    precision = share(matches[0], matches[2], said, said_function)
    recall = share(matches[1], matches[3], right, right_function)
    if not precision or not recall:
        return 0.0
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    whole = said_matched == said and right_matched == right and chunks == 1
    apart = 0.0 if whole else chunks / ((said_matched + right_matched) / 2)
    return 100 * float(mean * (1 - _GAMMA * apart**_BETA))
