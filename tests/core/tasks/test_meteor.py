"""METEOR: its authors' program, what it printed, and what is said where it is not installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError, TaskError
from lora_lab.tasks import load_task, meteor
from lora_lab.tasks.metrics import COCO_METEOR, METEOR
from tests.helpers import e2e_metrics
from tests.helpers.tiny_run import tiny_lm, tiny_task

SAID, RIGHT = e2e_metrics.example()
# Printed by meteor-1.5.jar -stdio -l en -norm, as pycocoevalcap 1.2 has it, for the example as it
# stands: the statistics of each answer, its score, and the corpus's behind "EVAL".
PRINTED = json.loads((e2e_metrics.RECORDED / "meteor.json").read_text("utf-8"))
THERE = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
JAVA = """#!{python}
import json, sys
sent = sys.stdin.buffer.read().decode().splitlines()
print(json.dumps([sys.argv[1:], sent]), file=open({told!r}, "a"))
{body}
"""


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Have no test know what another found."""
    for kept in (meteor._trial, meteor._printed):
        kept.cache_clear()
    yield
    for kept in (meteor._trial, meteor._printed):
        kept.cache_clear()


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """A package of the program's name, and a java that runs this body; where it tells its input."""
    site, bin_, told = tmp_path / "site", tmp_path / "bin", tmp_path / "told.json"
    (site / "pycocoevalcap" / "meteor").mkdir(parents=True)
    (site / "pycocoevalcap" / "__init__.py").touch()
    (site / "pycocoevalcap" / "meteor" / "meteor-1.5.jar").touch()
    info = site / "pycocoevalcap-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pycocoevalcap\nVersion: 1.2\n")
    bin_.mkdir()
    java = bin_ / "java"
    java.write_text(JAVA.format(python=sys.executable, told=str(told), body=body))
    java.chmod(0o755)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    importlib.invalidate_caches()
    return told


PRINTS = f"lines = {PRINTED['stats']!r}; print(*lines[: len(sent)], sep='\\n')"


def test_the_score_of_statistics_is_the_programs_own() -> None:
    stats = np.array([line.split() for line in PRINTED["stats"]], float)
    assert stats.shape == (len(SAID), 23)
    for row, score in zip(stats, PRINTED["scores"], strict=True):
        assert meteor._score(row) == pytest.approx(100 * score, rel=1e-9)
    assert meteor._score(stats.sum(0)) == pytest.approx(100 * PRINTED["corpus"], rel=1e-9)


def test_whole_texts_that_are_alike_have_100_and_others_0() -> None:
    words, none = 6.0, np.zeros(16)
    alike = np.concatenate([[words, words, 2, 2], np.zeros(16), [1, words, words]])
    alike[4:8] = 4, 4, 2, 2  # exact matches: content words of both, function words of both
    assert meteor._score(alike) == pytest.approx(100.0)
    assert meteor._score(np.concatenate([[6, 6, 2, 2], none, [0, 0, 0]])) == 0.0
    assert meteor._score(np.zeros(23)) == 0.0


@pytest.mark.parametrize("metric", [METEOR, COCO_METEOR], ids=lambda metric: metric.name)
def test_answers_go_to_the_program_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: ll.tasks.Metric
) -> None:
    told = installed(tmp_path, monkeypatch, PRINTS)
    before = dict(os.environ)
    assert metric.unfit is not None
    assert metric.unfit(RIGHT) == ""
    assert metric.compute(SAID, RIGHT) == pytest.approx(100 * PRINTED["corpus"], rel=1e-9)
    low, high = metric.between(SAID, RIGHT) or (0.0, 0.0)
    assert low < metric.compute(SAID, RIGHT) < high
    (trial, word), (arguments, sent) = map(json.loads, told.read_text().splitlines())
    assert trial[-2:] == ["-m", "exact"], "without its tables, and once"
    assert len(word) == 1
    assert arguments[-5:] == ["-", "-stdio", "-l", "en", "-norm"]
    assert len(sent) == len(SAID)
    first = sent[0].split(" ||| ")
    assert (first[0], len(first)) == ("SCORE", 2 + len(RIGHT[0]))
    assert (first[-1] == SAID[0]) == (metric is METEOR), "coco's is without punctuation"
    assert metric.signature is not None
    assert metric.signature(RIGHT) == "METEOR 1.5 -l en -norm, of pycocoevalcap 1.2"
    assert dict(os.environ) == before, "the kernel's environment is its own"
    metric.compute(["a ||| b\nc", ""], [["ä"], ["x", "y"]])
    _, strange = json.loads(told.read_text().splitlines()[-1])
    said = "a b c" if metric is METEOR else "a | | | b c"  # which parts nothing
    assert strange == [f"SCORE ||| ä ||| {said}", "SCORE ||| x ||| y ||| ."]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "sys.exit('Error: Unable to access jarfile\\nat line 2')",
            "does not run: Command .*Error",
        ),
        ("print('no numbers')", "does not run: could not convert"),
        ("pass", r"printed \(0,\) numbers for 1 answers"),
    ],
)
def test_a_program_that_does_not_run_leaves_it_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, line: str
) -> None:
    installed(tmp_path, monkeypatch, body)
    assert METEOR.unfit is not None
    with pytest.raises(TaskError, match=line):
        METEOR.compute(["a"], [["a"]])
    why = METEOR.unfit([["a"]])
    assert why.startswith("METEOR's program")
    assert "\n" not in why


def test_a_program_that_hangs_is_ended_and_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, "import signal; signal.pause()")
    monkeypatch.setattr(meteor, "_TRIAL_SECONDS", 0.5)
    assert METEOR.unfit is not None
    assert "timed out after 0.5 seconds" in METEOR.unfit([["a"]])


def test_half_a_letter_costs_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = installed(tmp_path, monkeypatch, PRINTS)
    METEOR.compute(["a \ud800 b"], [["c"]])
    assert json.loads(told.read_text())[1] == ["SCORE ||| c ||| a ? b"]


def e2e(tmp_path: Path) -> Path:
    rows = [f'"name[A{i}], area[riverside]","A{i} is by the river."' for i in range(20)]
    path = tmp_path / "trainset.csv"
    path.write_text("\n".join(["mr,ref", *rows]) + "\n")
    return path


@pytest.mark.skipif(THERE, reason="it is installed")
def test_where_it_is_not_installed_runs_say_so_and_what_to_install(tmp_path: Path) -> None:
    task = dataclasses.replace(tiny_task(8, 8), metrics=load_task(e2e(tmp_path)).metrics)
    assert COCO_METEOR in task.metrics
    found = ll.evaluate(tiny_lm(), task, part="validation")
    assert "meteor_coco" not in found.scores
    line = "METEOR (coco) is left out: its program and tables are not here; pip install "
    assert any(note.startswith(line) for note in found.notes)
    with pytest.raises(ConfigError, match=r"metric is 'meteor_coco', which says nothing of .*pip"):
        ll.compare(
            tiny_lm(), task, [ll.BitFitConfig()], metric="meteor_coco", output_dir=tmp_path / "runs"
        )


def test_without_java_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, "pass")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert METEOR.unfit is not None
    assert METEOR.unfit([["a"]]).startswith("its program needs Java")


@pytest.mark.skipif(not THERE, reason="pycocoevalcap or java is not installed")
def test_the_program_itself() -> None:
    assert METEOR.compute(SAID, RIGHT) == pytest.approx(100 * PRINTED["corpus"], rel=1e-9)
    assert METEOR.compute(["the same words"], [["the same words"]]) == pytest.approx(100.0)
