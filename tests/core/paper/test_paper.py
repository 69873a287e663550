"""The published numbers: what comes out, and that what does not is flagged as such.

Counts in millions below are written out from the formulas of Hu et al. (2022), section 5.1, with
d = 12288 and 96 layers for GPT-3; the verdicts are those of reading the paper by hand.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from lora_lab.configs import BitFitConfig, FullConfig, LoraConfig, PrefixEmbedConfig
from lora_lab.errors import ConfigError
from lora_lab.paper import (
    TABLE_7,
    TABLES,
    PublishedRow,
    claims,
    list_amplification,
    list_claims,
    list_table,
    published_rows,
)

NO = "does not reproduce"
# (method, printed): (counted millions, verdict), where one printed number stands for its rows.
GPT3 = {
    ("PreEmbed", "0.4"): (0.49152, "truncated"),
    ("PreEmbed", "0.9"): (0.884736, "exact"),
    ("PreEmbed", "1.7"): (1.671168, "exact"),
    ("PreEmbed", "3.2"): (3.244032, "exact"),
    ("PreEmbed", "6.4"): (6.38976, "exact"),
    ("PreLayer", "5.1"): (4.718592, NO),
    ("PreLayer", "10.1"): (9.437184, NO),
    ("PreLayer", "20.2"): (18.874368, NO),
    ("PreLayer", "44.1"): (42.467328, NO),
    ("PreLayer", "76.1"): (75.497472, NO),
    ("Adapter^H", "7.1"): (7.07808, "exact"),
    ("Adapter^H", "21.2"): (21.234432, "exact"),
    ("Adapter^H", "40.1"): (40.109568, "exact"),
    ("Adapter^H", "77.9"): (77.85984, "exact"),
    ("Adapter^H", "304.4"): (304.361472, "exact"),
    ("LoRA", "4.7"): (4.718592, "exact"),
    ("LoRA", "9.4"): (9.437184, "exact"),
    ("LoRA", "18"): (18.874368, "truncated"),
    ("LoRA", "18.8"): (18.874368, "truncated"),
    ("LoRA", "37.7"): (37.748736, "exact"),
    ("LoRA", "301.9"): (301.989888, "truncated"),
    ("LoRA", "603.8"): (603.979776, "truncated"),
    ("LoRA+PE", "37.8"): (37.896192, "truncated"),
    ("LoRA+PE", "151.1"): (151.1424, "exact"),
    ("LoRA+PE", "302.1"): (302.137344, "exact"),
    ("LoRA+PL", "52.8"): (51.904512, NO),
    ("BitFit", "14.2"): (12.988416, NO),
    ("FT", "175,255.8"): (174604.259328, NO),
}
OTHERS = {
    ("gpt2-medium", "FT", "354.92"): (354.823168, NO),
    ("gpt2-large", "FT", "774.03"): (774.03008, "exact"),
    ("gpt2-medium", "FT-Top2", "25.19"): (25.192448, "exact"),
    ("gpt2-medium", "Adapter^L", "0.37"): (0.368784, "exact"),
    ("gpt2-medium", "Adapter^L", "11.09"): (11.089152, "exact"),
    ("gpt2-large", "Adapter^L", "0.88"): (0.875808, "exact"),
    ("gpt2-large", "Adapter^L", "23.00"): (23.002848, "exact"),
    ("gpt2-medium", "Adapter^H", "11.09"): (11.064576, NO),
    ("gpt2-medium", "LoRA", "0.35"): (0.393216, NO),
    ("gpt2-large", "LoRA", "0.77"): (0.73728, NO),
    ("roberta-base", "FT", "125"): (124.645632, "exact"),
    ("roberta-large", "FT", "355"): (355.359744, "exact"),
    ("roberta-base", "LoRA", "0.3"): (0.294912, "exact"),
    ("roberta-large", "LoRA", "0.8"): (0.786432, "exact"),
    ("roberta-base", "BitFit", "0.1"): (0.102144, "exact"),
    ("roberta-base", "Adapter^D", "0.3"): (0.30432, "exact"),
    ("roberta-base", "Adapter^D", "0.9"): (0.894528, "exact"),
    ("roberta-large", "Adapter^P", "3.0"): (3.17184, NO),
    ("roberta-large", "Adapter^P", "0.8"): (0.811392, "exact"),
    ("roberta-large", "Adapter^H", "6.0"): (6.34368, NO),
    ("roberta-large", "Adapter^H", "0.8"): (0.835968, "exact"),
    ("deberta-v2-xxlarge", "LoRA", "4.7"): (4.718592, "exact"),
}
EXPECTED = {("gpt3-175b", *key): value for key, value in GPT3.items()} | OTHERS


def name(row: PublishedRow) -> str:
    return f"{row.table}, {row.model}, {row.method} {row.setting}"


@pytest.mark.parametrize("row", TABLES, ids=name)
def test_every_row_is_counted_and_judged(row: PublishedRow) -> None:
    millions, verdict = EXPECTED[row.model, row.method, row.printed]
    assert row.count == round(millions * 1e6)
    assert row.verdict == verdict
    assert row.note or verdict != NO, "what does not come out is explained"
    assert row.published == Fraction(row.printed.replace(",", "")) * 10**6


def test_no_expected_row_is_missing() -> None:
    assert {(row.model, row.method, row.printed) for row in TABLES} == EXPECTED.keys()
    counts = {table: sum(row.table == table for row in TABLES) for table in ("Table 4", "Table 15")}
    assert counts == {"Table 4": 8, "Table 15": 29}


def test_scores_are_kept_as_printed() -> None:
    best = max(
        (row for row in TABLES if row.table == "Table 15"), key=lambda r: r.scores["WikiSQL"]
    )
    assert (best.method, best.printed, best.scores["WikiSQL"]) == ("LoRA+PE", "302.1", 76.2)


@pytest.mark.parametrize(
    ("configs", "tables"),
    [
        ([LoraConfig(r=4, lora_alpha=99, target_modules=["v", "q"])], ["Table 5", "Table 15"]),
        ([LoraConfig(r=8), PrefixEmbedConfig(8, 4)], ["Table 15"]),
        ([PrefixEmbedConfig(8, 4), LoraConfig(r=8)], ["Table 15"]),
        ([PrefixEmbedConfig(256, 8)], ["Table 4", "Table 15"]),
        ([FullConfig()], ["Table 4"]),
        ([LoraConfig(r=5)], []),
    ],
)
def test_a_plan_finds_its_published_rows(configs: list, tables: list[str]) -> None:
    assert [row.table for row in published_rows(TABLES, "gpt3-175b", configs)] == tables


def test_a_row_as_json_has_the_published_figure_and_the_note() -> None:
    (row,) = published_rows(TABLES, "gpt3-175b", [BitFitConfig()])
    found = row.to_json()
    assert (found["published"], found["counted"]) == (14_200_000, 12_988_416)
    assert found["verdict"] == NO
    assert "12Ld" in found["note"]


# --- the text ------------------------------------------------------------------------------------


def test_gpt3s_claims_and_what_gives_them() -> None:
    d, layers = 12288, 96
    parameters = layers * (12 * d * d + 13 * d) + 50257 * d + 2048 * d + 2 * d
    lora = 2 * layers * 2 * d * 4
    found = {claim.printed: claim for claim in claims("gpt3-175b")}
    assert {printed: (claim.value, claim.verdict) for printed, claim in found.items()} == {
        "350 GB": (2 * parameters, "exact"),
        "1.2 TB": (6 * parameters, NO),
        "35 MB": (2 * lora, "roughly"),
        "10,000×": (parameters / lora, "roughly"),
        "3×": (3, "exact"),
    }
    assert found["350 GB"].value == pytest.approx(350e9, rel=5e-3)
    assert "36.0 MiB" in found["35 MB"].shown
    assert "not itemised" in found["1.2 TB"].note
    assert [claim.published for claim in found.values()] == [350e9, 1.2e12, 35e6, 1e4, 3]


def test_the_readmes_checkpoints() -> None:
    """microsoft/LoRA, examples/NLG: r = 4 at q and v, float32."""
    (medium,), (large,) = claims("gpt2-medium"), claims("gpt2-large")
    assert (medium.value, medium.verdict) == (4 * 24 * 2 * 2 * 1024 * 4, "exact")
    assert medium.value == 1.5 * 2**20
    assert (large.value, large.verdict) == (4 * 36 * 2 * 2 * 1280 * 4, NO)
    assert claims("smollm2-135m") == ()


# --- table 7 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE_7, ids=lambda row: f"r={row.r}")
def test_the_random_column_is_what_unrelated_directions_give(row) -> None:
    assert row.expected_random == pytest.approx(row.along_random, abs=0.008)
    # The formula itself, on a matrix that can be built: E‖UᵀWV‖_F ≈ ‖W‖_F·r/√(dk).
    rng = np.random.default_rng(0)
    W, r = rng.standard_normal((300, 200)) * np.linspace(0.1, 3, 200), 16
    drawn = [
        np.linalg.norm(
            np.linalg.qr(rng.standard_normal((300, r)))[0].T
            @ W
            @ np.linalg.qr(rng.standard_normal((200, r)))[0]
        )
        for _ in range(40)
    ]
    assert np.mean(drawn) == pytest.approx(np.linalg.norm(W) * r / math.sqrt(300 * 200), rel=0.03)


# --- what people see -----------------------------------------------------------------------------


def test_a_listing_in_text_and_in_html() -> None:
    found = list_table("Table 4")
    lines = str(found).splitlines()
    assert len(lines) == 1 + 8
    ends = {line.index("M  ") for line in lines[1:]}
    assert len(ends) == 1, "numbers line up"
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + 8
    assert "does not reproduce" in html
    assert "175,255.8M" in html


def test_other_listings() -> None:
    assert "9,251×" in str(list_claims("gpt3-175b"))
    assert "0.3227" in str(list_amplification())
    with pytest.raises(ConfigError, match="no table is called 'Table 9'; use one of Table 2"):
        list_table("Table 9")
