"""A comparison's page: its table, its curves, and the fronts that somebody has noted."""

from __future__ import annotations

import dataclasses

from lora_lab.reports import write_comparison_report
from tests.core.analysis.test_choices import choices, row


def test_it_has_the_table_the_curves_and_the_fronts(tmp_path):
    first = dataclasses.replace(row("LoRA"), seconds=3.0, peak_memory=2**30)
    second = dataclasses.replace(row("<b>FT", (0.1, 0.2)), trainable=1000, seconds=9.0)
    found = dataclasses.replace(choices(first, second), note="few rates")
    path = write_comparison_report(found, tmp_path / "new" / "page.html")
    text = path.read_text("utf-8")
    for words in (
        "2 methods on t",
        "rates chosen on 50 held-out examples, scores on 50 others",
        "Against trainable parameters",
        "Against seconds of training",
        "Against peak memory",
        "1 row left out: not noted there",
        "few rates",
        "&lt;b&gt;FT",
    ):
        assert words in text
    assert "<b>FT" not in text.split('<script type="application/json"')[0]
    assert "own text</h2>" not in text
    assert text.count('class="plot"') == 4
