"""What two runs share by their seeds is said beside what their updates share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lora_lab as ll
from lora_lab import captions
from lora_lab.analysis.shared_chance import shared_chance
from lora_lab.reports import inspect_adapter
from lora_lab.runs.records import RunRecord
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def run(id_: str, seed: int = 0, r: int = 8, data: str | None = "a", **more: Any) -> RunRecord:
    config = {
        "method": "LoRA",
        "lora": {"r": r, "init_lora_weights": True},
        "training": {"seed": seed},
        "fingerprints": {"data": data, "body": "m"},
        **more,
    }
    return RunRecord(id_, Path("runs", id_), config, None)


def test_one_seed_is_said_with_what_follows_from_it() -> None:
    one = run("1")
    assert shared_chance(one, run("2", seed=1)) == ""
    assert shared_chance(one, run("2")).startswith(
        "both runs have seed 0, and with it the order of the examples and the start of A at each"
    )
    other_rank = shared_chance(one, run("2", r=64))
    assert "the order of the examples" in other_rank
    assert "A" not in other_rank
    assert "order of the examples" not in shared_chance(one, run("2", data="b"))
    assert shared_chance(one, run("2", r=64, data="b")) == ""


def test_other_ranks_of_any_method_start_elsewhere() -> None:
    ada = [run(str(r), configs=[{"class": "AdaLoraConfig", "init_r": r}]) for r in (4, 12)]
    lora = [{"class": "LoraConfig", "r": r, "rank_pattern": {}} for r in (8, 64)]
    both = [run(str(own["r"]), configs=[own, {"class": "PrefixEmbedConfig"}]) for own in lora]
    some = [run(n, configs=[lora[0] | {"rank_pattern": {n: 2}}]) for n in ("q_proj", "v_proj")]
    for one, other in (ada, both, some):
        assert "the start of A" not in shared_chance(one, other)
        again = RunRecord("9", Path("runs/9"), one.config, None)
        assert "the start of A at each matrix" in shared_chance(one, again)


def test_earlier_versions_drew_all_starts_from_one_stream() -> None:
    old = run("2", r=64, data="b", fingerprints={"data": "b", "base": "m"})
    said = shared_chance(run("1", fingerprints={"data": "a", "base": "m"}), old)
    assert "the first rows of A at the first matrix, as earlier versions drew them" in said


def test_a_run_that_began_with_the_other_has_its_directions() -> None:
    begun = run("2", seed=1, start_from={"run": "1", "step": 60})
    for pair in ((run("1"), begun), (begun, run("1"))):
        assert shared_chance(*pair).startswith("run 2 started from the other one's adapter")
    assert shared_chance(begun, begun) == "both are of one run"


def test_of_what_is_not_known_nothing_is_said() -> None:
    assert shared_chance(None, run("1")) == ""
    assert shared_chance(run("1"), RunRecord("3", Path("runs/3"), {}, None)) == ""
    bare = run("1")
    del bare.config["training"]
    assert shared_chance(bare, run("2")) == ""


def test_an_inspection_says_it_and_so_does_a_map(tmp_path: Path) -> None:
    folders = []
    for r, seed in ((2, 0), (3, 0), (3, 1)):
        made = ll.train(
            tiny_lm(), tiny_task(), CONFIG.replace(r=r), output_dir=tmp_path, max_steps=2,
            eval_examples=0, seed=seed,
        )  # fmt: skip
        made.result(60)
        folders.append(made.folder)
    found = inspect_adapter(folders[0], against=folders[1])
    assert any("both runs have seed 0" in note for note in found.to_json()["notes"])
    assert "both runs have seed" not in str(inspect_adapter(folders[0], against=folders[2]))
    noted = dataclasses.replace(found.overlaps[0], note="both runs have seed 0")
    assert captions.phi_summary(noted).endswith("Note: both runs have seed 0.")
