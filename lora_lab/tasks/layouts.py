"""Layouts that many data sets share, known by the names of their columns.

A table of which nobody has named a column is read by the layout that it has. No other columns may
stand beside it than those that are known to say nothing of the answer: a row's number, its source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lora_lab.errors import TaskError
from lora_lab.tasks import nested
from lora_lab.tasks.classification import LabelReader
from lora_lab.tasks.families.language_modeling import DocumentReader
from lora_lab.tasks.families.regression import TargetReader
from lora_lab.tasks.forms import Form, FormReader, Texts
from lora_lab.tasks.framing import PLAIN
from lora_lab.tasks.gem import GemReader
from lora_lab.tasks.measures import are_measures
from lora_lab.tasks.metrics import (
    ACCURACY,
    F1,
    OF_E2E,
    OF_QUERIES,
    OF_SUMMARIES,
    OF_TRIPLES,
    PEARSON,
    SPEARMAN,
    Metric,
)
from lora_lab.tasks.prompts import PromptReader
from lora_lab.tasks.reading import Reader
from lora_lab.tasks.table import Table

NO_TEMPLATE = "template is for prompts with completions, and not for texts under a head or alone"
_NUMBERS = frozenset({"id", "_id", "idx", "index", "uid", "uuid"})
_NUMBERS |= {"Unnamed: 0", "__index_level_0__"}  # pandas' index
_BESIDE = _NUMBERS | {"title", "source", "url", "category", "topic", "table_id", "phase"}

_OF_WEBNLG = _BESIDE | {
    *("dbpedialinks", "links", "originaltriplesets", "shape", "shape_type", "size", "xml_id"),
    *("eid", "original_triple_sets", "dbpedia_links", "test_category", "2017_test_category"),
}
_OF_STSB = "genre;filename;year;old_index;source1;source2"
_OF_MNLI = (
    "promptID;pairID;genre;sentence1_binary_parse;sentence2_binary_parse;sentence1_parse;"
    "sentence2_parse;label1;label2;label3;label4;label5"
)

# The texts of tatsu-lab's train.py and of databrickslabs' dolly, to the letter.
_INTRO = "Below is an instruction that describes a task"
_WRITE = ". Write a response that appropriately completes the request.\n\n"
_ASKED = "### Instruction:\n{instruction}\n\n"
_FURTHER = ", paired with an input that provides further context"
_ALPACA = Form(
    prompt=f"{_INTRO}{_FURTHER}{_WRITE}{_ASKED}### Input:\n{{input}}\n\n### Response:",
    completion="{output}",
    without={"input": f"{_INTRO}{_WRITE}{_ASKED}### Response:"},
    needs=("instruction",),
)
_DOLLY = Form(
    prompt=f"{_INTRO}{_WRITE}{_ASKED}Input:\n{{context}}\n\n### Response:\n",
    completion="{response}",
    without={"context": f"{_INTRO}{_WRITE}{_ASKED}### Response:\n"},
    needs=("instruction",),
)


def _schema(columns: str) -> Form:
    """Return WikiSQL's: the table's columns, the question, and the query to write."""
    return Form(
        prompt=f"columns: {{{columns}}}\nquestion: {{question}}",
        completion="{sql}",
        needs=("question",),
        nested={columns: nested.header, "sql": nested.query},
    )


_SQUAD = Form(
    prompt="context: {context}\nquestion: {question}",
    completion="{answers}",
    needs=("context", "question"),
    nested={"answers": nested.answers},
)


_DART = Form(
    prompt="{tripleset}",
    completion="{annotations}",
    nested={"tripleset": nested.dart_triples, "annotations": nested.answers},
)


def _webnlg(triples: str, texts: str) -> Form:
    return Form(
        prompt=f"{{{triples}}}",
        completion=f"{{{texts}}}",
        nested={triples: nested.webnlg_triples, texts: nested.lexicalizations},
    )


class Layout(NamedTuple):
    """One layout.

    Attributes:
        name: what people call it.
        columns: all of them have to be there.
        reader: (the training table, the template that was asked for) → what reads it.
        beside: columns that may be there too; they are not read.
        metrics: what such tasks are scored by; (): their kind's own.
    """

    name: str
    columns: tuple[str, ...]
    reader: Callable[[Table, str | None], Reader[Any]]
    beside: frozenset[str] = _BESIDE
    metrics: tuple[Metric, ...] = ()


def _written(form: Form, template: str | None = None) -> Callable[[Table, str | None], Reader[Any]]:
    return lambda _table, asked: FormReader(form, asked or template)


def _gem(
    name: str, column: str, beside: str, metrics: tuple[Metric, ...], written: Texts | None = None
) -> Layout:
    """Return the layout of one of GEM's sets; written: what makes texts of the column's values."""
    form = Form(
        prompt=f"{{{column}}}",
        completion="{references}",
        nested={"references": nested.answers} | ({column: written} if written else {}),
    )
    own = _BESIDE | {"gem_id", "gem_parent_id", *beside.split()}
    columns = column, "references", "target"
    return Layout(f"GEM's {name}", columns, lambda _, asked: GemReader(form, asked), own, metrics)


def _short(form: Form) -> Form:
    """Return the form of a set that has no column for what is empty in others."""
    (prompt,) = form.without.values()
    return Form(prompt, form.completion, needs=form.needs)


def _two(name: str, prompt: str, completion: str, *metrics: Metric) -> Layout:
    columns = prompt, completion
    return Layout(
        name,
        columns,
        lambda table, asked: PromptReader(table, *columns, asked),
        metrics=metrics,
    )


def _classes(text: str, label: str, *pair: str) -> Layout:
    columns = text, *pair, label
    second = pair[0] if pair else None
    name = "pairs of texts with classes" if pair else "texts with classes"

    def reader(table: Table, asked: str | None) -> Reader[Any]:
        _refuse_template(table, asked)
        measured = label == "score" or are_measures(table.texts(label))
        return (TargetReader if measured else LabelReader)(table, text, label, second)

    return Layout(name, columns, reader, _NUMBERS | {"label_text"})


def _glue(
    task: str, columns: tuple[str, str, str], beside: str, metrics: tuple[Metric, ...]
) -> Layout:
    """Return the layout of one of GLUE's files: first, second, answer; beside: other columns."""
    own = _classes(columns[0], columns[2], columns[1])
    unread = own.beside | set(beside.split(";"))
    marks = tuple(unread & {"old_index"})  # without it a pair with a score is anybody's
    return Layout(f"GLUE's {task}", (*own.columns, *marks), own.reader, unread, metrics)


def _alone(table: Table, asked: str | None) -> Reader[Any]:
    _refuse_template(table, asked)
    return DocumentReader(table, "text")


def _refuse_template(table: Table, asked: str | None) -> None:
    if asked is not None:
        raise TaskError(f"{table.source}: {NO_TEMPLATE}")


LAYOUTS = (
    Layout(
        "Alpaca",
        ("instruction", "input", "output"),
        _written(_ALPACA, PLAIN),
        _BESIDE | {"text"},  # all of it once more, as one text
    ),
    Layout("Alpaca", ("instruction", "output"), _written(_short(_ALPACA), PLAIN)),
    Layout("Dolly", ("instruction", "context", "response"), _written(_DOLLY, PLAIN)),
    Layout("Dolly", ("instruction", "response"), _written(_short(_DOLLY), PLAIN)),
    Layout(
        "SQuAD",
        ("question", "context", "answers"),
        _written(_SQUAD),
        _BESIDE | {"is_impossible"},  # such have no answers, and are left out
    ),
    *(
        Layout(
            "WikiSQL",
            ("question", columns, "sql"),
            _written(_schema(columns)),
            metrics=OF_QUERIES,
        )
        for columns in ("columns", "table")
    ),
    Layout(
        "DART",
        ("tripleset", "annotations"),
        _written(_DART),
        _BESIDE | {"subtree_was_extended"},
        OF_TRIPLES,
    ),
    *(
        Layout(
            "WebNLG", (triples, texts), _written(_webnlg(triples, texts)), _OF_WEBNLG, OF_TRIPLES
        )
        for triples, texts in (
            ("modifiedtripleset", "lexicalisations"),
            ("modified_triple_sets", "lex"),
        )
    ),
    _gem("E2E", "meaning_representation", "", OF_E2E),
    _gem("WebNLG", "input", "webnlg_id", OF_TRIPLES, nested.webnlg_triples),
    _gem(
        "DART",
        "tripleset",
        "dart_id subtree_was_extended target_sources",
        OF_TRIPLES,
        nested.dart_triples,
    ),
    _two("SAMSum", "dialogue", "summary", *OF_SUMMARIES),
    _two("CNN/DailyMail", "article", "highlights", *OF_SUMMARIES),
    _two("XSum", "document", "summary", *OF_SUMMARIES),
    _two("E2E", "mr", "ref"),
    _two("E2E", "meaning_representation", "human_reference", *OF_E2E),  # the hub's
    _glue("MRPC", ("#1 String", "#2 String", "Quality"), "#1 ID;#2 ID", (ACCURACY, F1)),
    _glue("QQP", ("question1", "question2", "is_duplicate"), "qid1;qid2", (ACCURACY, F1)),
    _glue("MNLI", ("sentence1", "sentence2", "gold_label"), _OF_MNLI, (ACCURACY,)),
    _glue("STS-B", ("sentence1", "sentence2", "score"), _OF_STSB, (PEARSON, SPEARMAN)),
    _two("prompts with completions", "prompt", "completion"),
    _two("questions with answers", "question", "answer"),
    _two("pairs", "0", "1"),
    Layout("texts alone", ("text",), _alone, _NUMBERS),
    *(
        _classes(text, label)
        for text in ("text", "sentence")
        for label in ("label", "category", "score")
    ),
    *(
        _classes(first, label, second)
        for label in ("label", "score")
        for first, second in (
            *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence")),
            *(("question1", "question2"), ("text1", "text2")),
        )
    ),
)
"""The layouts that are known; the first that a table has is taken."""


def recognized(table: Table, template: str | None) -> Reader[Any]:
    """Return what reads a table by its layout; its `notes` say which that is.

    Raises:
        TaskError: it has none; its columns are listed.
    """
    there = {*table.column_names, *table.ambiguous}
    found = [layout for layout in LAYOUTS if there.issuperset(layout.columns)]
    for layout in found:
        unread = sorted(there.difference(layout.columns))
        if layout.beside.issuperset(unread):
            table.need([column for column in layout.columns if column in table.ambiguous])
            reader = layout.reader(table, template)
            rest = f"; not read: {', '.join(unread)}" if unread else ""
            name = layout.name
            if isinstance(reader, TargetReader):
                name = name.replace("classes", "numbers")
            reader.metrics = layout.metrics
            reader.notes = (f"read as {name} ({', '.join(layout.columns)}){rest}",)
            return reader
    if found:
        near = max(found, key=lambda layout: len(layout.columns))
        more = sorted(there.difference(near.columns))
        raise TaskError(
            f"{table.source} has the columns of {near.name} ({', '.join(near.columns)}) and, "
            f"beside them, {', '.join(more)}, which may belong to what is read; name the columns "
            "to read, by prompt= and completion=, or text= and label=; "
            f"{table.columns_there()}"
        )
    return PromptReader(table, None, None)  # which says what is to be named
