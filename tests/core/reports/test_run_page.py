import json
import re

import numpy as np
import pytest

from lora_lab.analysis import Analysis, SiteAnalysis
from lora_lab.budget.reading import MemoryReading
from lora_lab.errors import RunError
from lora_lab.reports.run_page import write_report
from tests.helpers.figure_inputs import budget, losses, view
from tests.helpers.html_pages import EVIL, read


def row(name, norm, layer=0):
    return SiteAnalysis(
        name=name,
        layer=layer,
        role="q",
        r=2,
        singular_values=np.array([norm, 0], np.float32),
        effective_rank=1.0,
        stable_rank=1.0,
        frobenius_norm=norm,
        amplification=12.5,
        random_amplification=float("nan"),
    )


def write(path, **changes):
    settings = {
        "title": "SmolLM2",
        "subtitle": "LoRA · mini-e2e (synthetic)",
        "config_python": 'll.LoraConfig(r=8, target_modules=("q", "v"))',
        "budget": budget(),
        "losses": losses(40),
        "metrics": {"bleu_before": 3.21, "bleu_after": 38.2},
        "analysis": Analysis("default", tuple(row(f"layer{i}", i + 1.0, i) for i in range(20))),
        "views": [view()],
        "samples": [("name[Alimentum]", "It is a pub.", "A star in Rome.", "It is a bar.")],
        "environment": {"torch": "2.13.0"},
    }
    return write_report(path, **(settings | changes))


def test_the_report_tells_the_whole_run(tmp_path):
    page = read(
        write(tmp_path / "new" / "report.html", reading=MemoryReading(1, 2**30, "MPS memory"))
    )
    for told in (
        *("SmolLM2", "mini-e2e (synthetic)", "0.92 M", "trainable of 134.5 M (0.69 %)", "−60 %"),
        *("3.21 → 38.2", "BLEU (cased), before → after", "MPS memory", "batch 8 × 128 tokens"),
        *("Training loss from 3.234 at step 1", "effective rank 3.25 of 8", "random level 0.00521"),
        *("The 12 largest updates of 20", "layer19", "12.5", "ll.LoraConfig(r=8, target_modules="),
        *("name[Alimentum]", "A star in Rome.", "It is a bar.", "It is a pub.", "2.13.0"),
    ):
        assert told in page.text, told
    assert "layer7" not in page.text  # the 13th largest
    assert not list(tmp_path.glob("**/*.part"))


def test_it_needs_nothing_from_outside(tmp_path):
    page = read(write(tmp_path / "report.html"))
    library, figures, draw = page.scripts
    assert "plotly.js" in library[:500]
    assert not {"link", "iframe", "object"} & set(page.tags)
    named = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith("data:image/png;base64,") for value in named), "maps, as pictures"
    assert "showSendToCloud: false" in draw
    drawn = json.loads(figures)
    # Savings, loss, rank map, spectrum and overlap; each for both themes.
    assert len(drawn) == 5
    assert all(set(both) == {"light", "dark"} for both in drawn.values())
    places = [value for name, value in page.attributes if name == "id"]
    assert set(drawn) <= set(places)


def test_what_comes_from_outside_is_escaped(tmp_path):
    page = read(
        write(
            tmp_path / "report.html",
            title=EVIL,
            subtitle=EVIL,
            config_python=EVIL,
            metrics={f"{EVIL}_before": 2.0, f"{EVIL}_after": 1.0},
            analysis=Analysis("default", (row(EVIL, 1.0),)),
            views=[view(site=EVIL)],
            samples=[(EVIL, EVIL, EVIL, EVIL)],
            environment={EVIL: EVIL},
        )
    )
    assert len(page.scripts) == 3
    assert "img" not in page.tags
    # Title twice, subtitle, config, metric, table row, heading and summary of the site, four of
    # the sample, two of the environment.
    assert page.text.count(EVIL) == 14
    json.loads(page.scripts[1])


def test_a_run_that_never_stepped_has_a_report_too(tmp_path):
    page = read(
        write(tmp_path / "report.html", losses=[], metrics={}, views=[view(zero=True)], samples=[])
    )
    assert "No step was trained." in page.text
    assert "ΔW is zero" in page.text
    assert "Answers" not in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"cannot write .*; free some space or choose another folder"
    ):
        write(tmp_path / "file" / "report.html")


def test_a_report_is_replaced_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert "SmolLM2" in read(write(path)).text
