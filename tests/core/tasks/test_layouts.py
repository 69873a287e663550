"""Known layouts: what is read of each, and what is not taken for one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, GenerationTask, LabeledText, load_task
from lora_lab.tasks.families.causal import Causal
from tests.helpers.tiny_run import tiny_lm

# From https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py (Apache-2.0).
PROMPT_DICT = {
    "prompt_input": (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ),
    "prompt_no_input": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
}
# From https://github.com/databrickslabs/dolly/blob/master/training/consts.py (Apache-2.0).
INTRO_BLURB = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)
DOLLY_NO_INPUT = f"{INTRO_BLURB}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
DOLLY_INPUT = (
    f"{INTRO_BLURB}\n\n### Instruction:\n{{instruction}}\n\nInput:\n{{input}}\n\n### Response:\n"
)

ALPACA = [
    {"instruction": "Sort {these}.", "input": "3, 1, 2", "output": "1, 2, 3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello!"},
    {"instruction": "Write code.", "input": "", "output": "    return {}\n"},
    {"instruction": "Translate.", "input": " Guten Tag", "output": "Good day"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Any:
    """A task whose training rows are these."""
    held_out = [{name: _other(value) for name, value in rows[0].items()}]
    held_out = written(tmp_path / "held.jsonl", held_out)
    return load_task(written(tmp_path / "rows.json", rows), validation=held_out, **options)


def _other(value: Any) -> Any:
    return f"{value} (held out)" if isinstance(value, str) else value


def seen(task: GenerationTask) -> list[tuple[str, str]]:
    return [(task.prompt_text(e.prompt), e.completion) for e in task.train]


@pytest.mark.parametrize("more", [{}, {"text": "all of it"}, {"id": 7, "Unnamed: 0": 1}], ids=str)
def test_alpaca_has_its_authors_two_templates(tmp_path: Path, more: dict[str, Any]) -> None:
    task = read(tmp_path, [row | more for row in ALPACA])
    templates = ["prompt_input" if row["input"] != "" else "prompt_no_input" for row in ALPACA]
    assert seen(task) == [
        (PROMPT_DICT[template].format_map(row), row["output"])
        for template, row in zip(templates, ALPACA, strict=True)
    ]
    assert "read as Alpaca (instruction, input, output)" in task.describe()
    unread = ", ".join(sorted(more))
    assert (f"not read: {unread}" in task.describe()) == bool(more)


def test_of_alpaca_the_output_and_its_end_are_learned(tmp_path: Path) -> None:
    task, lm = read(tmp_path, ALPACA), tiny_lm()
    encoded, _ = Causal(lm, task, 1000).encode(task.train)
    for row, item in zip(ALPACA, encoded, strict=True):
        learned = [label for label in item["labels"] if label != -100]
        assert lm.tokenizer.decode(learned) == f"{row['output']}</s>"
        prompt = lm.tokenizer.decode(item["input_ids"][: -len(learned)])
        assert prompt.endswith("### Response:")


def test_without_a_column_of_inputs_alpaca_has_the_template_without(tmp_path: Path) -> None:
    rows = [{"instruction": row["instruction"], "output": row["output"]} for row in ALPACA]
    expected = [PROMPT_DICT["prompt_no_input"].format_map(row) for row in rows]
    assert [prompt for prompt, _ in seen(read(tmp_path, rows))] == expected


def test_an_alpaca_row_without_instruction_or_output_is_left_out(tmp_path: Path) -> None:
    rows = [*ALPACA, ALPACA[0] | {"output": " "}, ALPACA[0] | {"instruction": None}]
    with pytest.warns(UserWarning, match="2 of 6 rows without 'instruction' or 'output' are left"):
        assert len(read(tmp_path, rows).train) == 4


def test_dolly_has_its_authors_two_templates(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "qa"},
        {"instruction": "Why {x}?", "context": "", "response": "Because.", "category": "open"},
    ]
    task = read(tmp_path, rows)
    assert seen(task) == [
        (DOLLY_INPUT.format(instruction="Who?", input="Ada wrote it."), "Ada"),
        (DOLLY_NO_INPUT.format(instruction="Why {x}?"), "Because."),
    ]
    short = [{"instruction": "Why {x}?", "response": "Because."}] * 2
    assert seen(read(tmp_path, short))[0] == seen(task)[1]


SQUAD = {
    "id": "1",
    "title": "T",
    "context": "Ada was born in London.",
    "question": "Where was Ada born?",
}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["London", "in London", "London"], "answer_start": [16, 13, 16]},
        [{"text": "London", "answer_start": 16}, {"text": "in London", "answer_start": 13}],
        ["London", "in London"],
    ],
    ids=["dict of lists", "list of dicts", "list"],
)
def test_each_of_squads_answers_is_a_reference(tmp_path: Path, answers: Any) -> None:
    held_out = written(tmp_path / "held.jsonl", [SQUAD | {"answers": answers}])
    rows = [
        SQUAD | {"question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
        SQUAD | {"question": "Why?", "answers": {"text": [], "answer_start": []}},  # of SQuAD 2.0
    ]
    rows = [row | {"is_impossible": not row["answers"]["text"]} for row in rows]
    with pytest.warns(
        UserWarning, match="1 of 2 rows without 'context' or 'question' or 'answers'"
    ):
        task = load_task(written(tmp_path / "rows.jsonl", rows), validation=held_out)
    (example,) = task.validation
    assert example.references == ("London", "in London")
    assert example.prompt == "context: Ada was born in London.\nquestion: Where was Ada born?"
    assert [e.completion for e in task.train] == ["Ada"]
    assert "SQuAD (question, context, answers); not read: id, is_impossible, title" in str(
        task.notes
    )


@pytest.mark.parametrize("write", [str, json.dumps], ids=["Python", "JSON"])
def test_answers_that_a_csv_has_as_text_are_read(tmp_path: Path, write: Any) -> None:
    answers = {"text": ["London", 'it\'s "L"'], "answer_start": [16, 13]}
    path = tmp_path / "squad.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*SQUAD, "answers"])
        writer.writeheader()
        writer.writerow(SQUAD | {"answers": write(answers)})
    task = load_task(path, validation=[SQUAD | {"question": "Who?", "answers": ["Ada"]}])
    assert [e.completion for e in task.train] == answers["text"]
    path.write_text(path.read_text().replace("[16", "array([16"))
    with pytest.raises(TaskError, match=r"row 1 has in column 'answers' .* save it as JSON lines"):
        load_task(path, validation=[SQUAD | {"question": "Who?", "answers": ["Ada"]}])


def test_wikisql_comes_with_its_schema(tmp_path: Path) -> None:
    row = {
        "table_id": "1",
        "question": "Who is 7?",
        "columns": ["no", "name"],
        "sql": "SELECT name",
    }
    expected = ("columns: no, name\nquestion: Who is 7?", "SELECT name")
    task = read(tmp_path, [row])
    assert [(e.prompt, e.completion) for e in task.train] == [expected]
    assert "read as WikiSQL (question, columns, sql)" in task.describe()
    of_hub = {
        "phase": 1,
        "question": "Who is 7?",
        "table": {"header": ["no", "name"], "rows": [["7", "Ada"]], "id": "1"},
        "sql": {"human_readable": "SELECT name", "sel": 1, "agg": 0},
    }
    task = load_task([of_hub], validation=[of_hub | {"question": "Who is 8?"}])
    assert [(e.prompt, e.completion) for e in task.train] == [expected]


TWO = [
    *(("mr", "ref"), ("prompt", "completion"), ("question", "answer")),
    ("meaning_representation", "human_reference"),
]


@pytest.mark.parametrize(("first", "second"), TWO)
def test_a_prompt_and_a_completion_by_their_usual_names(
    tmp_path: Path, first: str, second: str
) -> None:
    rows = [{first: f"p{i}", second: f"c{i}", "id": i} for i in range(3)]
    task = read(tmp_path, rows)
    assert seen(task) == [(f"p{i}\n", f"c{i}") for i in range(3)]
    assert f"({first}, {second}); not read: id" in task.describe()


@pytest.mark.parametrize(
    "columns",
    [("text", "label"), ("sentence", "label"), ("text", "category"), ("text1", "text2", "label"),
     ("sentence1", "sentence2", "label"), ("premise", "hypothesis", "label"),
     ("question1", "question2", "label"), ("question", "sentence", "label")],
    ids="-".join,
)  # fmt: skip
def test_texts_with_classes_by_their_usual_names(columns: tuple[str, ...]) -> None:
    rows = [dict(zip(columns, (f"a{i}", f"b{i}"), strict=False), idx=i) for i in range(4)]
    rows = [row | {columns[-1]: "ny"[i % 2]} for i, row in enumerate(rows)]
    held_out = [row | {columns[0]: "other"} for row in rows[:2]]
    task: Any = load_task(rows, validation=held_out)
    assert isinstance(task, ClassificationTask)
    pairs = [f"b{i}" if len(columns) == 3 else None for i in range(4)]
    assert task.train == tuple(LabeledText(f"a{i}", "ny"[i % 2], pairs[i]) for i in range(4))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "instruction input output system",
            "the columns of Alpaca .* beside them, system, which",
        ),
        ("instruction input output history", "beside them, history, .* by prompt= and completion="),
        ("prompt completion label", "beside them, label, which"),  # TRL's unpaired preferences
        ("question answer choices", "beside them, choices"),  # MMLU
        ("prompt chosen rejected", "name the columns to read"),
        ("source target", "name the columns to read"),
        ("text label score", "beside them, score"),
    ],
)
def test_what_is_no_layout_lists_its_columns(columns: str, message: str) -> None:
    names = columns.split()
    with pytest.raises(TaskError, match=message) as error:
        load_task([dict.fromkeys(names, f"x{i}") for i in range(3)])
    assert f"its columns are {', '.join(names)}" in str(error.value)
    assert "\n" not in str(error.value)


def test_of_two_columns_of_one_name_none_is_taken_or_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label,label\na,x,y\nb,y,x\nc,x,x\n", encoding="utf-8")
    with pytest.raises(TaskError, match="several columns that are called 'label'; rename"):
        load_task(path)
    path.write_text("text,label,note,note\na,x,y,y\nb,y,x,x\nc,x,x,y\n", encoding="utf-8")
    with pytest.raises(TaskError, match="beside them, note, which may belong"):
        load_task(path)
    assert load_task(path, text="text", label="label").labels == ("x", "y")


def test_a_file_without_a_line_of_names_is_told_how_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text("good film\tpos\nbad film\tneg\nfine film\tpos\n", encoding="utf-8")
    for named in ({}, {"text": "t", "label": "l"}):
        with pytest.raises(TaskError, match=r"its first line looks like a row: .* text=0, label=1"):
            load_task(path, **named)
    task = load_task(path, text=0, label=1)
    read = {(row.text, row.label) for row in (*task.train, *task.validation)}
    assert read == {("good film", "pos"), ("bad film", "neg"), ("fine film", "pos")}
    with pytest.raises(TaskError, match=r"its columns are q, r$"):
        load_task([{"q": "a", "r": "b"}, {"q": "c", "r": "d"}])


def test_a_template_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    task = read(tmp_path, ALPACA, template="<{prompt}>")
    assert seen(task)[1][0] == f"<{PROMPT_DICT['prompt_no_input'].format_map(ALPACA[1])}>"
    with pytest.raises(TaskError, match="template is for prompts"):
        load_task([{"text": "a", "label": "b"}] * 3, template="plain")


# Real data ---------------------------------------------------------------------------------------

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def _real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"the real {folder} files are not beside the repository")
    return DATA / folder


def _first_row(path: Path, separator: str, names: bool = True) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        options: dict[str, Any] = {"delimiter": separator, "quoting": quoting}
        reader = csv.DictReader(file, **options) if names else csv.reader(file, **options)
        return next(iter(reader))


def _learned(task: GenerationTask, prompt: str) -> str:
    """What a model learns of the row of a prompt."""
    lm = tiny_lm()
    rows = [*task.train, *task.validation]
    example = next(e for e in rows if e.prompt == prompt)
    (item,), _ = Causal(lm, task, 4000).encode([example])
    return lm.tokenizer.decode([label for label in item["labels"] if label != -100])


def test_the_real_prompts_load_by_one_call() -> None:
    path = _real("e2e") / "devset.csv"
    row, task = _first_row(path, ","), load_task(path)
    assert _learned(task, row["mr"]) == f"{row['ref']}</s>"
    path = _real("wikisql") / "dev.jsonl.gz"
    task = load_task(path)
    assert len(task.train) + sum(len(e.references) for e in task.validation) == 7967
    with gzip.open(path, "rt", encoding="utf-8") as file:
        row = json.loads(next(file))
    prompt = f"columns: {', '.join(row['columns'])}\nquestion: {row['question']}"
    assert _learned(task, prompt) == f"{row['sql']}</s>"


@pytest.mark.filterwarnings("ignore:.*never learned")
@pytest.mark.parametrize(
    ("name", "text", "label", "pair"),
    [
        ("sst2/dev.tsv", "sentence", "label", None),
        ("rte/dev.tsv", "sentence1", "label", "sentence2"),
        ("banking77/test.csv", "text", "category", None),
        ("cola/out_of_domain_dev.tsv", 3, 1, None),
    ],
)
def test_the_real_classes_load_by_one_call(name: str, text: Any, label: Any, pair: Any) -> None:
    folder, _, file = name.partition("/")
    path, named = _real(folder) / file, isinstance(text, str)
    row = _first_row(path, "\t" if file.endswith(".tsv") else ",", named)
    task: Any = load_task(path) if named else load_task(path, text=text, label=label)
    expected = LabeledText(row[text], row[label], row[pair] if pair else None)
    assert expected in (*task.train, *task.validation)
    assert task.labels[task.reference(expected)] == row[label]
