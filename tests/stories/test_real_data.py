"""`benchmarks.real_data`: what its tables say of a goal, and what they must not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from benchmarks import real_data
from benchmarks._real_data_tables import doubt, goal, write_tables
from lora_lab.tasks.metrics import metric_of


def study(metric: str = "accuracy", reported_on: int = 200, **values: list[float]) -> Any:
    """An outcome with LoRA at 0.2 % (small) and 2 % (large), and FT."""
    sizes = {"small": ("LoRA", 200), "large": ("LoRA", 2000), "full": ("FT", 100_000)}
    rows = [
        {"method": method, "trainable": size, "values": own, "scores": {metric: own}}
        for name, (method, size) in sizes.items()
        if (own := values.get(name)) is not None
    ]
    found = {"metric": metric, "reported_on": reported_on, "rows": rows}
    return {"found": found, "parameters": 100_000, "majority": 50.0}


@pytest.mark.parametrize(
    ("metric", "small", "full", "said"),
    [
        ("accuracy", [78.0, 80.0], [80.0, 82.0], "NOT MET"),  # 79 against 81 − 1.41
        ("accuracy", [78.0, 82.0], [80.0, 82.0], "met"),
        ("accuracy", [90.0, 91.0], [80.0, 82.0], "met"),
        ("loss", [1.00, 1.02], [0.98, 1.00], "NOT MET"),  # 1.01 against 0.99 + 0.0141
        ("loss", [1.00, 1.00], [0.98, 1.00], "met"),
    ],
)
def test_the_goal_is_fts_mean_less_its_spread(
    metric: str, small: list[float], full: list[float], said: str
) -> None:
    # What a larger LoRA came to has no part in it.
    told = goal(study(metric, small=small, full=full, large=[99.0, 99.0]), metric)
    assert f"**{said}**" in told
    assert "LoRA at 0.20%" in told


def test_without_ft_or_a_small_lora_it_cannot_be_judged() -> None:
    for values in ({"large": [90.0, 91.0], "full": [80.0, 81.0]}, {"small": [90.0, 91.0]}):
        assert "cannot be judged" in goal(study(**values), "accuracy")


def test_what_no_method_has_over_the_commonest_class_carries_no_claim() -> None:
    # Of 200 rows a half is told to 1.96·√(0.25 / 200) = 6.9 %.
    low = study(small=[55.0, 57.0], full=[56.0, 57.0])
    assert "has 50.0, which 200 rows tell to ± 6.9: no method is above it" in doubt(low)
    assert "no claim" not in doubt(study(small=[55.0, 57.0], full=[58.0, 58.0]))
    assert "no claim" in doubt(study("matthews", 400, full=[9.0, 9.5]))  # 1.96 / √400 = 9.8 %
    assert "no claim" not in doubt(study("matthews", 400, full=[11.0, 12.0]))
    assert doubt(study("loss", full=[1.0, 1.0])) == ""


def test_the_committed_page_is_that_of_the_committed_outcomes(tmp_path: Path) -> None:
    found = _outcomes()
    write_tables(found, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text("utf-8") == real_data.TABLES.read_text("utf-8")
    kept = {path.stem for path in real_data.KEPT.glob("*.json")}
    assert kept == {outcome["name"] for outcome in found}


def _outcomes() -> list[dict[str, Any]]:
    kept = [real_data.KEPT / f"{name}.json" for name in real_data.STUDIES]
    return [json.loads(path.read_text("utf-8")) for path in kept if path.exists()]


def _table(page: str, heading: str) -> list[dict[str, str]]:
    """The rows below a heading of the page, by column."""
    lines = page.split(f"\n## {heading}", 1)[1].split("\n## ")[0].splitlines()
    header, _, *rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    return [dict(zip(header, row, strict=True)) for row in rows]


def _agrees(cell: str, values: list[float]) -> bool:
    """Whether "1.23 ± 0.045" is the mean and the standard deviation (n − 1), as rounded there."""
    mean, spread = (float(part.replace(",", "")) for part in cell.split(" ± "))
    n, own = len(values), sum(values) / len(values)
    deviation = (sum((value - own) ** 2 for value in values) / (n - 1)) ** 0.5
    return mean == pytest.approx(own, rel=6e-3) and spread == pytest.approx(deviation, rel=6e-2)


def test_every_number_of_the_committed_page_is_in_its_json() -> None:
    page = real_data.TABLES.read_text("utf-8")
    for kept in _outcomes():
        rows = _table(page, f"{kept['name']}, ")
        base = rows.pop()
        found = sorted(kept["found"]["rows"], key=lambda row: row["trainable"])
        for row, own in zip(rows, found, strict=True):
            assert row["method"].startswith(own["method"])
            assert int(row["trainable"].replace(",", "")) == own["trainable"]
            assert float(row["share"].rstrip("%")) == pytest.approx(
                100 * own["trainable"] / kept["parameters"], abs=0.005
            )
            assert f"**{own['learning_rate']:g}**" in row["rate, of those tried"]
            assert len(own["scores"][kept["found"]["metric"]]) == kept["seeds"]
            for name, values in own["scores"].items():
                assert _agrees(row[metric_of(name).title], values), name
            if own["kept"]:
                assert _agrees(row["kept loss"], own["kept"])
        for name, value in kept["found"]["base_scores"].items():
            shown = float(base[metric_of(name).title].replace(",", ""))
            assert shown == pytest.approx(value, rel=6e-3)


def test_the_committed_goals_follow_from_the_json() -> None:
    # Mean of the best LoRA of at most 0.5 % against FT's mean less its deviation, by hand.
    page = real_data.TABLES.read_text("utf-8")
    told = iter(_table(page, "In short")) if _outcomes() else iter(())
    for kept in _outcomes():
        for name in kept["goal_by"]:
            row, sign = next(told), -1 if name == "loss" else 1
            most = 0.005 * kept["parameters"]
            by: dict[str, list[list[float]]] = {"LoRA": [], "FT": []}
            for own in kept["found"]["rows"]:
                if own["method"] == "FT" or (own["method"] == "LoRA" and own["trainable"] <= most):
                    by[own["method"]].append([sign * value for value in own["scores"][name]])
            assert row["set"] == kept["name"]
            if not all(by.values()):  # not both have been measured
                assert row["goal"] == "not judged"
                continue
            best = max(sum(values) / len(values) for values in by["LoRA"])
            (full,) = by["FT"]
            mean = sum(full) / len(full)
            spread = (sum((value - mean) ** 2 for value in full) / (len(full) - 1)) ** 0.5
            assert row["goal"] in (("met" if best >= mean - spread else "NOT MET"), "no claim")
    assert next(told, None) is None


def test_the_page_says_how_far_the_own_rates_are() -> None:
    page = real_data.TABLES.read_text("utf-8")
    rows = iter(_table(page, "Own learning rates") if _outcomes() else ())
    for kept in _outcomes():
        for own in kept["chosen"]["rows"]:
            row = next(rows)
            rates = {rate: sum(values) for rate, values in own["curve"]}
            pick = min if kept["found"]["metric"] == "loss" else max
            best = {rate for rate in rates if rates[rate] == pick(rates.values())}
            assert float(row["best here"]) == own["learning_rate"] in best
            assert (row[""] == "at the edge") == (own["learning_rate"] in (min(rates), max(rates)))
            times = own["learning_rate"] / float(row["own rate"])
            assert float(row["times"]) == pytest.approx(times, rel=0.06)


def test_a_study_is_kept_method_by_method_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = real_data.Study(
        model="mini-llama",
        files=(),
        task=lambda _: ll.load_task("mini-e2e"),
        tried=(
            (ll.LoraConfig(r=1, target_modules=["q"]), (1e-9, 1e-2)),
            (ll.FullConfig(), (1e-9, 1e-4)),
        ),
        metric="loss",
        goal_by=("loss",),
        train_examples=8,
        seeds=2,
        training={
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "eval_examples": 4,
            "kept_texts": 0,
            "save_steps": 0,
        },
    )
    monkeypatch.setattr(real_data, "STUDIES", {"tiny": tiny})
    monkeypatch.setattr(real_data, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(real_data, "TABLES", tmp_path / "page.md")
    call = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs")]
    real_data.main(call)
    kept = json.loads((tmp_path / "kept" / "tiny.json").read_text("utf-8"))
    cells = (tmp_path / "runs" / "tiny-8" / "cells.jsonl").read_text("utf-8").splitlines()
    assert len(cells) == 2 * (2 + 1), "each rate with one seed, the best one with the other"
    assert (kept["missing"], kept["train_examples"]) == ([], 8)
    for chosen, found in zip(kept["chosen"]["rows"], kept["found"]["rows"], strict=True):
        assert [rate for rate, _ in chosen["curve"]] == [*tiny.tried[found["place"]][1]]
        assert chosen["learning_rate"] == found["learning_rate"]
        assert [len(values) for values in found["scores"].values()] == [2] * len(found["scores"])
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "## tiny, mini-llama" in page
    assert "| LoRA (r = 1, q) | " in page
    assert "| FT | " in page
    assert "Goal by held-out loss: **" in page
    assert "| tiny | held-out loss | " in page
    assert "| tiny | 192 | 2 | FT | " in page
    real_data.main(call)
    again = (tmp_path / "runs" / "tiny-8" / "cells.jsonl").read_text("utf-8").splitlines()
    assert again == cells, "nothing is trained twice"
    real_data.main(["--tables"])
    assert (tmp_path / "page.md").read_text("utf-8") == page


def test_data_that_is_not_there_is_said_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_data, "TABLES", tmp_path / "page.md")
    real_data.main(["--data", str(tmp_path), "--runs", str(tmp_path), "--only", "sst2"])
    assert f"sst2 SKIPPED: no sst2/train.tsv in {tmp_path}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        real_data.main([])
