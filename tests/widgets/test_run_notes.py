"""What a run notes, in its panel."""

from __future__ import annotations

import json

from lora_lab.training.snapshot import Snapshot
from tests.helpers.run_desk import Desk, Recorder, tick


def test_the_runs_notes_are_shown_and_sent_once() -> None:
    desk = Desk(Snapshot(run_id="r-1"))
    panel = desk.panel()
    sent = Recorder(panel).messages
    desk.notes.append("2 of 10 rows were left out")
    tick(panel)
    assert panel.notes == ["2 of 10 rows were left out"]
    tick(panel, seq="a-2")
    assert ["notes" in json.dumps(message) for message in sent] == [True, False]
