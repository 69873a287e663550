"""What grows in a file of two names grows in neither's other place."""

import os

from lora_lab._util.unsharing import unshare


def test_a_file_with_a_second_name_gets_a_copy_of_its_own(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "metrics.jsonl"
    mine.write_text("my thesis")
    os.link(mine, theirs)
    unshare(theirs)
    theirs.open("a").write("more")
    assert (mine.read_text(), theirs.read_text()) == ("my thesis", "my thesismore")
    before = theirs.stat().st_ino
    unshare(theirs)
    assert theirs.stat().st_ino == before, "it is its own already"
    unshare(tmp_path / "nothing")
