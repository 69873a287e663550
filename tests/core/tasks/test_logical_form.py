"""WikiSQL's logical form, by the query class of its own evaluation, and its official files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task
from lora_lab.tasks.logical_form import query_text
from lora_lab.tasks.metrics import LOGICAL_FORM

# https://github.com/salesforce/WikiSQL, README: the first example of its data.
EXAMPLE = {
    "phase": 1,
    "question": "who is the manufacturer for the order year 1998?",
    "sql": {"conds": [[0, 0, "1998"]], "sel": 1, "agg": 0},
    "table_id": "1-10007452-3",
}
TABLE = {
    "id": "1-10007452-3",
    "header": [
        *("Order Year", "Manufacturer", "Model", "Fleet Series (Quantity)"),
        *("Powertrain (Engine/Transmission)", "Fuel Propulsion"),
    ],
    "types": ["text"] * 6,
    "rows": [["1992-93", "Gillig", "Phantom (High Floor)", "444-464 (21)", "DD S50EGR", "Diesel"]],
}
WRITTEN = "SELECT Manufacturer FROM table WHERE Order Year = 1998"


class Query:
    """lib/query.py of WikiSQL (BSD 3-Clause): the same query, whatever the conditions' order."""

    def __init__(self, sel: int, agg: int, conds: list[Any]) -> None:
        self.sel, self.agg = sel, agg
        self.conds = {(col, op, str(cond).lower()) for col, op, cond in conds}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


SKETCHES = [
    {"sel": sel, "agg": agg, "conds": conds}
    for sel in (0, 1)
    for agg in (0, 1, 3)
    for conds in (
        [],
        [[0, 0, "1998"]],
        [[0, 1, "1998"]],
        [[0, 0, "1998"], [1, 0, "Gillig"]],
        [[1, 0, "gillig"], [0, 0, "1998"]],
        [[1, 0, "Gillig"], [0, 0, 1998]],
    )
]


def test_two_queries_are_one_form_where_wikisqls_own_code_says_so() -> None:
    for one in SKETCHES:
        for other in SKETCHES:
            texts = [query_text(each, TABLE["header"]) for each in (one, other)]
            expected = 100.0 * (Query(**one) == Query(**other))
            assert LOGICAL_FORM.compute([texts[0]], [[texts[1]]]) == expected, texts


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (WRITTEN, True),
        ("select manufacturer from table where order year = 1998", True),
        ("SELECT  Manufacturer  FROM table\nWHERE Order Year = 1998", True),
        ("SELECT Manufacturer FROM table WHERE Order Year = '1998'", True),
        ("SELECT Manufacturer FROM table", False),
        ("SELECT Manufacturer FROM table WHERE Order Year > 1998", False),
        ("SELECT COUNT Manufacturer FROM table WHERE Order Year = 1998", False),
        ("SELECT Manufacturer FROM table WHERE Order Year = 1998 AND Order Year = 1998", False),
        ("no query at all", False),
        ("", False),
    ],
)
def test_what_a_model_writes(said: str, right: bool) -> None:
    assert LOGICAL_FORM.compute([said], [[WRITTEN]]) == 100.0 * right
    low, high = LOGICAL_FORM.between([said] * 9, [[WRITTEN]] * 9)
    assert low <= 100.0 * right <= high


def official(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    for name, values in (("train", rows), ("dev", rows[:2]), ("train.tables", [TABLE])):
        text = "".join(json.dumps(value) + "\n" for value in values)
        if suffix.endswith(".gz"):
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{name}{suffix}").write_text(text, "utf-8")
    (folder / f"dev.tables{suffix}").write_bytes((folder / f"train.tables{suffix}").read_bytes())
    return folder


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_the_official_folder_becomes_questions_and_queries(tmp_path: Path, suffix: str) -> None:
    rows = [EXAMPLE, *({**EXAMPLE, "question": f"q{i}?"} for i in range(9))]
    with pytest.warns(UserWarning, match="are in the training rows too"):
        task = load_task(official(tmp_path, rows, suffix))
    first = task.train[0]
    assert first.completion == WRITTEN
    columns = ", ".join(TABLE["header"])
    assert first.prompt == f"columns: {columns}\nquestion: {EXAMPLE['question']}"
    assert task.metrics[0].name == "logical_form"
    assert task.score([WRITTEN.lower()] * 2, task.validation)["logical_form"] == 100


def test_without_its_tables_or_with_another_query_a_row_says_so(tmp_path: Path) -> None:
    official(tmp_path, [EXAMPLE] * 3)
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(EXAMPLE) + "\n")
    with pytest.raises(TaskError, match=r"put alone\.tables\.jsonl, which names them, beside it"):
        load_task(alone)
    for wrong in (
        *({"sel": sel, "agg": agg, "conds": []} for sel, agg in ((9, 0), (-1, 0), (0, -1))),
        *({"sel": 0, "agg": 0, "conds": [cond]} for cond in ([-1, 0, "x"], [0, -2, "x"])),
        {"sel": 0, "conds": []},
    ):
        official(tmp_path, [EXAMPLE, {**EXAMPLE, "sql": wrong}])
        with pytest.raises(TaskError, match=r"train\.jsonl: row 2 has in column 'sql' .* no query"):
            load_task(tmp_path)
    official(tmp_path, [EXAMPLE, {**EXAMPLE, "table_id": "none"}])
    with pytest.raises(TaskError, match=r"row 2: no table 'none' in .*train\.tables\.jsonl"):
        load_task(tmp_path)
    official(tmp_path, [EXAMPLE, {**EXAMPLE, "table_id": ["none"]}])
    with pytest.raises(TaskError, match=r"row 2: no table \['none'\]"):
        load_task(tmp_path)
