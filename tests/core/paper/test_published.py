"""The papers' tables: what they print agrees with itself, with our counts, and takes own rows.

Averages and percentages below are recomputed from the rows; PAPER's marks come from the counts.
"""

from __future__ import annotations

from html import escape

import pytest

import lora_lab as ll
from lora_lab.configs import BitFitConfig, LoraConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.paper import TABLE_7, TABLES, table
from tests.helpers.ended_runs import record

LORA_TABLES, ADALORA_TABLES = range(1, 19), range(1, 16)


@pytest.mark.parametrize("number", LORA_TABLES)
def test_every_table_of_the_lora_paper_is_here(number):
    assert all(len(row) == len(table(number).header) for row in table(number).rows)


@pytest.mark.parametrize("number", ADALORA_TABLES)
def test_every_table_of_the_adalora_paper_is_here(number):
    found = table(number, "AdaLoRA")
    assert found.rows
    assert all(len(row) == len(found.header) for row in found.rows)
    assert found.unit in str(found)
    assert escape(found.unit) in found._repr_html_()


def test_a_table_that_is_not_here_names_those_that_are():
    with pytest.raises(
        ConfigError, match=r"table '16' of AdaLoRA is not here; there are 1, .*, 15$"
    ):
        table(16, "AdaLoRA")
    with pytest.raises(ConfigError, match="'LoRA', 'AdaLoRA'"):
        table(1, "QLoRA")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="BLEU"):
        table(3).column("TER")


def test_it_is_found_by_the_name_that_people_use():
    assert ll.paper.table("Table 6") is table(6)


def test_table_1_says_the_slow_down_of_its_own_milliseconds():
    rows = table(1).rows
    for adapter in rows[1:]:
        for bare, cell in zip(rows[0][1:], adapter[1:], strict=True):
            slower = float(cell.split()[0]) / float(bare.split()[0]) - 1
            assert float(cell.split("(+")[1].rstrip("%)")) == pytest.approx(100 * slower, abs=0.06)


def test_averages_are_those_of_their_rows():
    found = table(2)
    tasks = [found.column(name) for name in found.header[3:-1]]
    for average, *scores in zip(found.column("Avg"), *tasks, strict=True):
        assert average == pytest.approx(sum(scores) / 8, abs=0.051)
    found = table(1, "AdaLoRA")
    names = [name for name in found.header if name not in ("method", "parameters", "average")]
    for row, average in enumerate(found.column("average")):
        score = {name: found.column(name)[row] for name in names}
        mnli = (score.pop("MNLI-m") + score.pop("MNLI-mm")) / 2
        qqp = (score.pop("QQP accuracy") + score.pop("QQP F1")) / 2
        assert average == pytest.approx((mnli + qqp + sum(score.values())) / 8, abs=0.03)


@pytest.mark.parametrize("number", [2, 3, 4, 15])
def test_marked_are_the_numbers_of_parameters_that_do_not_come_out(number):
    found = table(number)
    place = found.header.index("parameters")
    printed = [row[place] for row in found.rows]
    counted = [row for row in TABLES if row.table == f"Table {number}"]
    if number == 15:  # begins with table 4's FT
        counted += [row for row in TABLES if row.printed == "175,255.8"]
    wrong = {float(row.printed.replace(",", "")) for row in counted if row.verdict[0] == "d"}
    marked = {float(cell[:-3].replace(",", "")) for cell in printed if cell.endswith("M ‡")}
    assert marked == wrong
    assert {float(row.printed.replace(",", "")) for row in counted} <= set(
        found.column("parameters")
    )


@pytest.mark.parametrize("row", TABLES, ids=lambda row: f"{row.table}-{row.method}-{row.setting}")
def test_the_scores_beside_our_counts_are_those_of_the_table(row):
    found = table(row.table)
    columns = [found.column(name) for name in found.header]
    size = "r" if row.table == "Table 5" else "parameters"
    wanted = row.configs[0].r if size == "r" else float(row.printed.replace(",", ""))
    rows = [
        {column[place] for column in columns}
        for place, value in enumerate(found.column(size))
        if value == wanted
    ]
    assert any(set(row.scores.values()) <= cells for cells in rows)


def test_table_7_is_what_the_amplification_view_shows():
    found = table(7)
    assert found.column("ΔW_q") == tuple(row.along_delta for row in TABLE_7)
    assert found.column("‖ΔW_q‖_F") == tuple(row.delta_norm for row in TABLE_7)


def test_own_runs_stand_below_with_the_spread_of_their_seeds():
    runs = [
        record(loss=2.0, training={"seed": 0}, bleu_lowercase_after=40.0, trainable=460_800),
        record(loss=4.0, training={"seed": 1}, bleu_lowercase_after=42.0, trainable=460_800),
        record([BitFitConfig(new_biases=True)], 3.0, bleu_lowercase_after=30.0, trainable=30_000),
    ]
    found = table(3, compare=runs)
    assert found.header == (*table(3).header, "held-out loss")
    lora, bitfit = (dict(zip(found.header, row, strict=True)) for row in found.own)
    assert lora["method"] == "LoRA, r = 2, q v"
    assert (lora["parameters"], lora["BLEU"], lora["NIST"]) == ("0.461M", "41.0 ± 1.4", "")
    assert lora["held-out loss"] == "3.00 ± 1.4"  # sd of 2 and 4 with n - 1
    assert (bitfit["parameters"], bitfit["BLEU"]) == ("0.03M", "30.0")
    assert "yours" in str(found)
    assert "published" in found._repr_html_()


def test_scores_have_their_columns_unit_and_stand_under_the_script_that_counted_them():
    scores = {"meteor": 41.0, "meteor_coco": 44.0, "rouge_l": 66.0, "rouge_l_coco": 68.0}
    run = record(loss=None, **{f"{name}_after": value for name, value in scores.items()})
    shown = {}
    for number in (3, 13, 18):
        found = table(number, compare=run)
        (own,) = found.own
        shown[number] = dict(zip(found.header, own, strict=True))
    # Table 3 has coco-caption's, in percent; table 18 the same as shares; table 13 is of triples.
    assert (shown[3]["METEOR"], shown[3]["ROUGE-L"]) == ("44.0", "68.0")
    assert (shown[18]["METEOR"], shown[18]["ROUGE-L"]) == ("0.440", "0.680")
    assert shown[18]["METEOR (not coco)"] == "41.0"
    assert (shown[13]["METEOR"], shown[13]["METEOR (coco)"]) == ("0.410", "44.0")
    run = record(loss=None, ter_after=46.0)
    (own,) = table(13, compare=[run, run]).own
    assert "0.460" in own  # of one run, whoever else names it


def test_another_tables_rows_are_in_this_ones_unit():
    found = table(3, compare="LoRA table 18")
    row = dict(zip(found.header, found.own[2], strict=True))
    assert (row["BLEU"], row["METEOR"], row["CIDEr"]) == ("70.38", "46.8900", "2.5349")
    found = table(18, compare="LoRA table 3")
    row = dict(zip(found.header, found.own[3], strict=True))
    assert (row["BLEU"], row["METEOR"]) == ("67.3 ± 0.6", "0.460 ± 0.002")


def test_losses_on_other_kept_data_are_no_mean():
    runs = [
        record(loss=1.0, training={"kept_data": data}, kept_data_loss_after=kept)
        for data, kept in (("rte.tsv", 2.0), ("mini-sum", 6.0))
    ]
    found = table(3, compare=runs)
    own = [dict(zip(found.header, row, strict=True)) for row in found.own]
    assert [row["loss on kept data"] for row in own] == ["2.00", "6.00"]
    assert "rte.tsv" in own[0]["method"]


def test_a_sweep_over_ranks_fills_the_ranks_columns():
    runs = [
        record([LoraConfig(r=r, target_modules=["q"])], None, accuracy_after=80.0 + r)
        for r in (1, 2, 8)
    ]
    (row,) = table(6, compare=runs).own
    assert row == ("mini-e2e, accuracy (%)", "q", "81.0", "82.0", "", "88.0", "")


def test_a_ranks_row_where_the_table_has_one():
    (row,) = table(18, compare=record([LoraConfig(r=16, target_modules=["q"])], 1.5)).own
    assert row[:2] == ("16", "1.50")


def test_a_score_goes_by_its_data_set():
    (row,) = table(8, compare=record((LoraConfig(r=2),), None, task="RTE", accuracy_after=70.0)).own
    assert row == ("LoRA, r = 2, q v", "", "70.0")


def test_no_score_and_no_run_are_told():
    with pytest.raises(RunError, match="none of 1 runs"):
        table(6, compare=record(state=None))
    with pytest.raises(ConfigError, match="no run"):
        table(6, compare=3)  # type: ignore[arg-type]


def test_pefts_own_runs_are_a_table_too():
    """The numbers of three of its files, by hand."""
    found = table(1, "PEFT")
    assert len(found.rows) == 63
    rows = {(row[0], row[1]): number for number, row in enumerate(found.rows)}
    for name, accuracy, forgetting, parameters in (
        (("lora", "llama-3.2-3B-rank32"), 47.84, 0.0500, 9_175_040),
        (("full-finetuning", "llama-3.2-3B-lr_0.00001"), 47.16, 0.0300, 3_212_749_824),
        (("adalora", "llama-3.2-3B-rank32"), 37.30, 0.0221, 18_353_664),
    ):
        place = rows[name]
        assert found.column("accuracy")[place] == accuracy
        assert found.column("forgetting")[place] == forgetting
        assert found.column("parameters")[place] == parameters
    assert "Apache-2.0" in str(found)
