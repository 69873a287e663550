"""What AdaLoRA's tables print against each other, and against counts by the shapes of its models.

DeBERTaV3-base has 12 layers of W_q, W_k, W_v, W_o (768 × 768) and W_f1, W_f2 (768 × 3072), 184
million parameters; BART-large 12 + 12 layers of 1024 and 4096, and its decoder's have W_q, W_k,
W_v, W_o of a second attention.
"""

from __future__ import annotations

import pytest

from lora_lab.paper import table
from lora_lab.paper.printed import PublishedTable

DEBERTA = 184e6
LORA = 12 * (4 * (768 + 768) + 2 * (768 + 3072))  # a rank
BART_LORA = 24 * (4 * 2048 + 2 * 5120) + 12 * 4 * 2048


def adapter(width: float) -> float:
    """Weights and biases of one adapter in each of 12 layers: Pfeiffer's; Houlsby's are two."""
    return 12 * (2 * 768 * width + width + 768)


def rows_of(number: int) -> tuple[PublishedTable, list[dict[str, str]]]:
    found = table(number, "AdaLoRA")
    return found, [dict(zip(found.header, row, strict=True)) for row in found.rows]


def cell(number: int, column: str, **labels: str) -> float:
    """The number in the one row that has these labels."""
    found, rows = rows_of(number)
    (place,) = (i for i, row in enumerate(rows) if labels.items() <= row.items())
    value = found.column(column)[place]
    assert value is not None
    return value


def test_budgets_on_glue_come_out_but_where_they_are_marked():
    found, rows = rows_of(7)
    columns = [found.column(name) for name in found.header]
    for row, millions, houlsby, pfeiffer, rank, budget in zip(rows, *columns, strict=True):
        assert round(2 * adapter(houlsby) / 1e6, 1) == millions
        assert round(adapter(pfeiffer) / 1e6, 1) == millions
        assert (round(LORA * rank / 1e6, 1) != millions) == row["LoRA r"].endswith("‡")
        assert budget == 72 * rank
    assert (round(LORA * 8 / 1e6, 2), round(LORA * 4 / 1e6, 2)) == (1.33, 0.66), "the note"


def test_budgets_on_squad_come_out_but_where_they_are_marked():
    found, rows = rows_of(9)
    columns = [found.column(name) for name in found.header]
    for row, share, houlsby, pfeiffer, rank, budget, final, first in zip(
        rows, *columns, strict=True
    ):
        # The shares are printed to 0.01 %, and of 184 million to three digits.
        assert 200 * adapter(houlsby) / DEBERTA == pytest.approx(share, abs=0.0125)
        assert 100 * adapter(pfeiffer) / DEBERTA == pytest.approx(share, abs=0.0125)
        assert 100 * LORA * rank / DEBERTA != pytest.approx(share, abs=0.0101)
        assert row["LoRA r"].endswith("‡")
        assert (budget, final) == (72 * rank, rank)
        assert first == (1.5 if final > 2 else 2) * final, "the slip"
    told = ", ".join(f"{100 * LORA * rank / DEBERTA:.2f}" for rank in (8, 4, 2, 1))
    assert told in found.notes[-1]


def test_budgets_on_summaries_are_those_on_squad_printed_again():
    found, other = table(12, "AdaLoRA"), table(9, "AdaLoRA")
    assert found.header == other.header
    assert found.rows == tuple(tuple(c.removesuffix(" ‡") for c in row) for row in other.rows)
    assert 12 * 6 + 12 * 10 == 192
    # What table 3 has in truth: 0.13, 0.26, 1.10, 2.20 % of 406 million at r = 1, 2, 8, 16.
    for share, rank in ((0.13, 1), (0.26, 2), (1.10, 8), (2.20, 16)):
        assert 100 * BART_LORA * rank / 406.3e6 == pytest.approx(share, rel=0.04)
        assert f"{share:.2f} %" in {row["share"] for row in rows_of(3)[1]}


def test_the_slips_are_in_the_numbers():
    ada = {"method": "AdaLoRA"}
    assert cell(4, "SST-2 at 0.08 %", **ada) == 95.52 != cell(5, "SST-2 at 0.08 %", **ada) == 95.64
    assert cell(4, "RTE at 0.16 %", **ada) != cell(1, "RTE", parameters="0.32M") == 87.36
    lost = cell(4, "CoLA at 0.08 %", **ada) - cell(4, "CoLA at 0.08 %", method="AdaLoRA, s = I")
    assert lost == pytest.approx(3.50)
    assert cell(3, "XSum R2", share="0.26 %", method="LoRA") == 19.89
    assert cell(3, "XSum R2", share="1.10 %", method="AdaLoRA") == 21.13
    rates = table(8, "AdaLoRA").column("learning rate")
    assert min(rates) == 5e-4
    assert sum(rate > 1e-3 for rate in rates) == 3


def test_mnli_is_the_mean_of_its_two_but_where_it_is_a_slip():
    for share, method, parameters, wrong in (
        ("0.65", "LoRA", "1.33M", True),
        ("0.16", "LoRA", "0.33M", False),
        ("0.65", "AdaLoRA", "1.27M", False),
        ("0.16", "AdaLoRA", "0.32M", False),
    ):
        printed = cell(5, f"MNLI at {share} %", method=method)
        two = [cell(1, f"MNLI-{part}", parameters=parameters) for part in ("m", "mm")]
        assert (abs(printed - sum(two) / 2) > 0.0051) == wrong


def test_lora_on_all_matrices_is_table_1s_but_for_the_slip():
    names = {"MNLI": "MNLI-m", "QQP": "QQP accuracy"}
    apart = {
        name
        for name in table(14, "AdaLoRA").header[1:]
        if cell(14, name, weights="all") != cell(1, names.get(name, name), parameters="0.33M")
    }
    assert apart == {"QNLI", "MRPC"}


def test_what_adalora_costs_over_lora():
    for task, least, most in (("MNLI", 10, 12), ("SST-2", 16, 18.5)):
        for share in ("0.08 %", "0.16 %", "0.65 %"):
            lora, ada = (
                cell(15, "minutes an epoch", task=task, share=share, method=method)
                for method in ("LoRA", "AdaLoRA")
            )
            assert least < 100 * (ada / lora - 1) < most
            gigabytes = [
                cell(15, "GB", task=task, share=share, method=m) for m in ("LoRA", "AdaLoRA")
            ]
            assert 0 < gigabytes[1] - gigabytes[0] < 0.1
