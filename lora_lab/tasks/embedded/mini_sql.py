"""mini-sql: question → query, a small synthetic mirror of WikiSQL over the world of mini-e2e."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product

from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.embedded.registry import register_task
from lora_lab.tasks.embedded.world import ATTRIBUTES, World
from lora_lab.tasks.execution import SqlTable
from lora_lab.tasks.metrics import EXACT_MATCH
from lora_lab.tasks.prompts import Example, GenerationTask

TRAIN, VALIDATION, TEST = 1600, 100, 100
_PLACES = 300
_COLUMNS = {  # E2E's attributes, as the table calls them
    "eatType": "kind",
    "food": "food",
    "priceRange": "price",
    "customer rating": "rating",
    "area": "area",
    "familyFriendly": "family",
}
_SAID = {
    "kind": "whose kind is {}",
    "food": "that serve {} food",
    "price": "whose price is {}",
    "rating": "rated {}",
    "area": "in the {} area",
    "family": "where family is {}",
}
_LIST = ("which places are there {}?", "name all places {}", "show me the places {}")
_COUNT = (
    "how many places are there {}?",
    "count the places {}",
    "what is the number of places {}?",
)
_LOOK_UP = ("what is the {} of {}?", "tell me the {} of {}", "{} of {}?")


CARD = DataCard(
    about="a question on a table of restaurants → the SQL query that answers it",
    made="written by a program from a seed: an invented world of restaurants",
    easy="the form of a query, of which there are three",
    hard="values that were never seen beside each other, and names letter for letter",
    floor={"execution accuracy": 0.0, "exact match": 0.0},
    floor_is="the query of another question",
    mirrors="WikiSQL",
)


@register_task("mini-sql", GenerationTask, CARD)
def mini_sql(seed: int = 0) -> GenerationTask:
    """Make the task.

    A question asks one table of restaurants for the names or the number of those that fit one or
    two conditions, or for one value of one restaurant; the answer is the query, and every prompt
    names the table's columns. No query is in two of the three parts.

    Difficulty: the form of a query is learned in some hundred steps; what is left are values that
    were never seen beside each other.

    Args:
        seed: of the world, the questions and their wording.

    Returns:
        1,600 training, 100 validation and 100 test questions, scored by what the queries return
        (sqlite) and by their text.
    """
    rng = random.Random(f"mini-sql {seed}")
    places = World(seed, _PLACES).restaurants
    rows = [
        {"name": p.name, **{own: p.values[key] for key, own in _COLUMNS.items()}} for p in places
    ]
    asked = [*_conditions(), *_values([row["name"] for row in rows])]
    chosen = rng.sample(asked, TRAIN + VALIDATION + TEST)
    examples = [_example(words, query, rng) for words, query in chosen]
    parts = examples[:TRAIN], examples[TRAIN : TRAIN + VALIDATION], examples[TRAIN + VALIDATION :]
    train, validation, test = map(tuple, parts)
    metrics = SqlTable("places", rows).metric(), EXACT_MATCH
    return GenerationTask("mini-sql", True, train, validation, test, metrics)


def _conditions() -> Iterator[tuple[Sequence[str], str]]:
    """Yield (the question's wordings, the query) of all lists and counts."""
    values = {own: ATTRIBUTES[key] for key, own in _COLUMNS.items()}
    for count in (1, 2):
        for columns in combinations(values, count):
            for picked in product(*(values[column] for column in columns)):
                fits = dict(zip(columns, picked, strict=True))
                said = " and ".join(_SAID[column].format(value) for column, value in fits.items())
                where = " AND ".join(f"{column} = '{value}'" for column, value in fits.items())
                for wordings, what in ((_LIST, "name"), (_COUNT, "COUNT(*)")):
                    words = [wording.format(said) for wording in wordings]
                    yield words, f"SELECT {what} FROM places WHERE {where}"


def _values(names: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    """Yield (the question's wordings, the query) of all values of all places."""
    for name, column in product(names, _COLUMNS.values()):
        quoted = name.replace("'", "''")
        words = [wording.format(column, name) for wording in _LOOK_UP]
        yield words, f"SELECT {column} FROM places WHERE name = '{quoted}'"


def _example(words: Sequence[str], query: str, rng: random.Random) -> Example:
    columns = ", ".join(["name", *_COLUMNS.values()])
    return Example(f"columns: {columns}\nquestion: {rng.choice(words)}", query, (query,))
