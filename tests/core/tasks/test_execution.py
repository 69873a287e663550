"""Execution accuracy: what queries return counts, and they can do nothing but read."""

from __future__ import annotations

import pytest
from scipy import stats

from lora_lab.tasks.execution import SqlTable
from lora_lab.tasks.metrics import metric_of

ROWS = [{"name": f"p{i}", "kind": "pub" if i % 2 else "bar"} for i in range(6)]
TABLE = SqlTable("places", ROWS)
RIGHT = "SELECT name FROM places WHERE kind = 'pub'"


@pytest.mark.parametrize(
    ("query", "hit"),
    [
        (RIGHT, True),
        ("select name from places where kind='pub' order by name desc", True),
        ("SELECT name FROM places WHERE kind <> 'bar';", True),
        ("SELECT name FROM places", False),
        ("SELECT name, kind FROM places WHERE kind = 'pub'", False),
        ("SELECT name FROM nowhere", False),
        ("", False),
        ("no query", False),
        ("SELECT 'a\x00b'", False),
    ],
)
def test_what_it_returns_counts_and_not_its_text(query: str, hit: bool) -> None:
    assert TABLE.accuracy([query], [(RIGHT,)]) == 100 * hit


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE places",
        "DELETE FROM places",
        "INSERT INTO places VALUES ('x', 'pub')",
        "ATTACH '/tmp/x' AS other",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT length(randomblob(1000000000))",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        "SELECT count(*) FROM places a, places b, places c, places d, places e, places f, "
        "places g, places h, places i, places j",
        f"{RIGHT}; DROP TABLE places",
        "SELECT " + "(" * 20_000,
    ],
)
def test_it_can_do_nothing_but_read_and_not_for_long(query: str) -> None:
    assert TABLE.accuracy([query, RIGHT], [(RIGHT,), (RIGHT,)]) == 50


def test_a_share_has_its_binomial_interval_and_the_metric_its_label() -> None:
    metric = TABLE.metric()
    found = metric.between([RIGHT, "x", RIGHT], [(RIGHT,)] * 3)
    peer = stats.binomtest(2, 3).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((100 * peer.low, 100 * peer.high))
    assert metric_of("execution_after").title == "execution accuracy (%)"
