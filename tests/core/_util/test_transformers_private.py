"""Two threads that call one tokenizer set in it how it cuts and pads; each has its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import lora_lab as ll
from lora_lab._util import transformers_private
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

CUTS = {"truncation": True, "max_length": 3, "padding": "max_length"}
TEXTS = ["a b c <s> d", "e</s>", ""]


@pytest.mark.parametrize("load", [tiny_tokenizer, lambda: ll.load_model("mini-llama").tokenizer])
def test_it_reads_and_writes_the_same_and_what_is_set_is_its_own(load: Any) -> None:
    theirs = load()
    theirs.add_tokens(["<new>"])
    theirs.add_special_tokens({"additional_special_tokens": ["<special>"]})
    texts = [*TEXTS, "x<new>y<special>z"]
    own = transformers_private.own_tokenizer(theirs)
    assert type(own) is type(theirs)
    assert own(texts)["input_ids"] == theirs(texts)["input_ids"]
    ids = own(texts)["input_ids"]
    assert own.batch_decode(ids) == theirs.batch_decode(ids)
    assert own.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    theirs(texts, truncation=True, max_length=2, padding="max_length")
    assert own.backend_tokenizer.truncation is None
    assert own.backend_tokenizer.padding is None
    theirs.pad_token, theirs.padding_side = "<new>", "left"
    theirs.add_tokens(["<newer>"])
    assert own.pad_token != "<new>"
    assert len(own) == len(theirs) - 1


def cutting(theirs: Any, rows: list[Any]) -> type:
    """Return a tokenizer's class, of which `theirs` cuts texts whenever another one is to read."""

    class Cutting(type(theirs)):  # type: ignore[misc]
        def set_truncation_and_padding(self, *args: Any, **more: Any) -> None:
            super().set_truncation_and_padding(*args, **more)
            if threading.current_thread().name.startswith("lora-lab"):
                cell = threading.Thread(target=lambda: rows.append(theirs(["a b c d e"], **CUTS)))
                cell.start()
                cell.join()

    return Cutting


def test_a_cell_that_cuts_while_a_run_reads_cuts_nothing_of_the_runs(tmp_path: Any) -> None:
    found, rows = [], []
    for is_beside in (False, True):
        lm = tiny_lm()
        if is_beside:
            lm.tokenizer.__class__ = cutting(lm.tokenizer, rows)
        run = ll.train(lm, tiny_task(8, 2), CONFIG, output_dir=tmp_path, max_steps=2, max_length=32,
                       eval_examples=2, kept_texts=0)  # fmt: skip
        result = run.result(60)
        found.append((result.losses, result.metrics))
    assert {len(row["input_ids"][0]) for row in rows} == {3}
    assert found[0] == found[1]
