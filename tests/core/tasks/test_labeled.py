"""Classification tasks from files and hub data sets, and what bad data gets."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from pathlib import Path

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, LabeledText, RegressionTask, load_task, tables

DATA = Path(__file__).parents[3].parent / "shared" / "data"

ROWS = [
    {"text": "007", "label": 10, "other": "Seven."},
    {"text": "NA", "label": 9, "other": "None, “quoted”."},
    {"text": "café", "label": 10, "other": "Three"},
    {"text": "it's", "label": 9, "other": "Four"},
]


def _write(path: Path, rows: list[dict]) -> Path:
    import datasets

    table = datasets.Dataset.from_list(rows)
    {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8"),
        ".parquet": lambda: table.to_parquet(path),
    }[path.suffix]()
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.parquet"])
def test_every_format_gives_the_same_texts_and_classes(tmp_path, name):
    path = _write(tmp_path / name, ROWS)
    held_out = _write(tmp_path / f"v{name}", [{"text": "new", "label": 9, "other": "x"}])
    task = load_task(path, text="text", label="label", pair="other", validation=held_out)
    assert isinstance(task, ClassificationTask)
    expected = [LabeledText(r["text"], str(r["label"]), r["other"]) for r in ROWS]
    assert list(task.train) == expected
    assert task.validation == (LabeledText("new", "9", "x"),)
    assert task.labels == ("9", "10"), "whole numbers by their size"
    assert (task.name, task.synthetic, task.test) == (name, False, ())
    assert load_task(path, text="text", label="label", validation=held_out).train[0].pair is None


def test_a_file_without_a_line_of_names_is_read_by_numbers(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text('gj04\t1\t\tHe "left.\ngj04\t0\t*\tLeft he.\nx\t1\t\tNA\n', encoding="utf-8")
    held_out = tmp_path / "v.tsv"
    held_out.write_text("gj04\t1\t\tNew.\n", encoding="utf-8")
    task = load_task(path, text=3, label=1, validation=held_out)
    assert [(e.text, e.label) for e in task.train] == [
        ('He "left.', "1"),
        ("Left he.", "0"),
        ("NA", "1"),
    ]
    with pytest.raises(TaskError, match=r"has no column 4; its columns are 0, 1, 2, 3"):
        load_task(path, text=4, label=1)
    with pytest.raises(TaskError, match=r"named by numbers.*then all of them"):
        load_task(path, text=3, label="label")


def test_texts_are_held_out_whole_and_in_random_order(tmp_path):
    rows = [{"text": f"text {i // 2}", "label": "ab"[i // 2 % 2]} for i in range(120)]
    path = _write(tmp_path / "d.csv", rows)
    task = load_task(path, text="text", label="label")
    assert len({e.text for e in task.validation}) == 6  # one in ten of 60 texts
    assert {e.text for e in task.train}.isdisjoint(e.text for e in task.validation)
    assert Counter((*task.train, *task.validation)) == Counter(
        LabeledText(r["text"], r["label"]) for r in rows
    )
    assert load_task(path, text="text", label="label") == task
    assert load_task(path, text="text", label="label", seed=1) != task
    given = load_task(
        path,
        text="text",
        label="label",
        validation=_write(
            tmp_path / "v.csv", [{"text": f"new {i}", "label": "a"} for i in range(30)]
        ),
    )
    assert [e.text for e in given.validation] != [f"new {i}" for i in range(30)]


def test_rows_without_text_are_left_out_and_known_texts_are_told(tmp_path):
    path = _write(tmp_path / "d.csv", [*ROWS, {"text": " ", "label": 9, "other": "y"}])
    held_out = _write(tmp_path / "v.csv", ROWS[:1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task(path, text="text", label="label", validation=held_out)
    said = [str(w.message) for w in caught]
    assert any("1 of 5 rows without 'text' are left out" in line for line in said)
    assert any("1 validation texts are in the training rows too" in line for line in said)
    assert all(Path(w.filename) == Path(__file__) for w in caught)
    assert len(task.train) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb,\n", r"row 2 \('b'\) has no class in column 'label'; fill it in"),
        ("text,label\na,x\nb,\nc,\n", r"row 2 .*leave the row out \(2 of 3 rows have none\)"),
        ("text,label\na,x\nb,x\n", r"'label' holds one class only \('x'\)"),
        ("text,label\n,x\n,y\n", "every row lacks 'text'"),
        ("text,class\na,x\nb,y\n", "no column 'label'; its columns are text, class"),
        ("text,label\na,x\na,y\n", "has one text only, nothing can be held out"),
    ],
    ids=["no class", "no classes", "one class", "no text", "no column", "one text"],
)
def test_bad_rows_get_one_line(tmp_path, content, message):
    path = tmp_path / "d.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TaskError, match=message) as error:
        load_task(path, text="text", label="label")
    assert "\n" not in str(error.value)
    assert "d.csv" in str(error.value)


def test_measures_are_no_classes_and_gaps_among_numbers_are_found(tmp_path):
    path = _write(tmp_path / "d.parquet", [{"t": "a", "y": 1.0}, {"t": "b", "y": 3.5}])
    with pytest.raises(TaskError, match=r"row 2 has 3\.5 in column 'y', which is no class"):
        load_task(path, text="t", label="y")
    path = _write(tmp_path / "e.parquet", [{"t": "a", "y": 1.0}, {"t": "b", "y": None}])
    with pytest.raises(TaskError, match=r"row 2 \('b'\) has no class"):
        load_task(path, text="t", label="y")
    path = _write(tmp_path / "f.parquet", [{"t": "a", "y": 1.0}, {"t": "b", "y": 2.0}])
    assert load_task(path, text="t", label="y").labels == ("1", "2")


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl"])
@pytest.mark.parametrize(
    "numbers",
    [
        [f"{i % 51 / 10:.3f}" for i in range(200)],  # STS-B's way: 51 different ones
        ["5.0", "3.6", "0.25", "4"],
        ["1", "2.5", "nan", "3"],
        ["2,5", "3,0", "1", "2"],
        ["1e-3", "2", "-.5"],
    ],
)
def test_a_column_of_measures_in_a_file_of_text_is_no_classes_and_the_line_names_the_way(
    tmp_path, name, numbers
):
    path = _write(tmp_path / name, [{"t": f"t{i}", "score": n} for i, n in enumerate(numbers)])
    with pytest.raises(TaskError, match=r"no classes but a measure; target='score' in place of"):
        load_task(path, text="t", label="score")


def test_measures_with_a_stray_text_among_them_are_no_classes(tmp_path):
    numbers = [f"{i / 7:.3f}" for i in range(40)]
    for more, count in (["inf"], 40), (["NaN", "n/a", "?"], 40), (["other"] * 9, None):
        rows = [{"t": f"t{i}", "score": n} for i, n in enumerate(numbers + more)]
        path = _write(tmp_path / "d.tsv", rows)
        if count is None:  # classes, some of which look like numbers
            assert "other" in load_task(path, text="t", label="score").labels
            continue
        line = f"{count} different numbers, such as 0.143: no classes but a measure"
        with pytest.raises(TaskError, match=line):
            load_task(path, text="t", label="score")


def test_measures_in_memory_are_no_classes_and_names_that_look_like_numbers_are():
    rows = [{"t": f"t{i}", "y": f"{i / 2}"} for i in range(8)]
    with pytest.raises(TaskError, match=r"8 different numbers, such as 0\.5: .* target='y'"):
        load_task(rows, text="t", label="y")
    named = [{"t": f"t{i}", "y": y} for i, y in enumerate(["2.5", "3.0", "nightly"] * 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_task(named, text="t", label="y").labels == ("2.5", "3.0", "nightly")
    stars = [{"t": f"t{i}", "y": f"{i % 10 / 2}"} for i in range(60)]
    with pytest.warns(UserWarning, match=r"10 different numbers, and each is learned as a class;"):
        assert len(load_task(stars, text="t", label="y").labels) == 10


def test_many_whole_numbers_are_classes_with_a_word():
    rows = [{"t": f"t{i}", "y": str(i % 40)} for i in range(120)]
    with pytest.warns(UserWarning, match="40 different numbers.*target='y' in place of label="):
        task = load_task(rows, text="t", label="y")
    assert len(task.labels) == 40


@pytest.mark.parametrize("answer", ["label", "score"])
def test_pairs_with_numbers_are_recognized_as_a_regression(tmp_path, answer):
    rows = [
        {"sentence1": f"a {i}", "sentence2": f"b {i}", answer: f"{i % 6}.{i % 7}", "idx": i}
        for i in range(60)
    ]
    task = load_task(_write(tmp_path / "sts.tsv", rows))
    assert isinstance(task, RegressionTask)
    assert task.train[0].pair.startswith("b ")
    assert task.notes[0].startswith("read as pairs of texts with numbers (sentence1, sentence2")


def test_a_class_that_is_never_learnt_is_refused(tmp_path):
    path = _write(tmp_path / "d.csv", ROWS)
    held_out = _write(tmp_path / "v.csv", [{"text": "new", "label": 3, "other": "x"}])
    with pytest.raises(TaskError, match=r"v\.csv: class '3' is in no training row.*9, 10"):
        load_task(path, text="text", label="label", validation=held_out)


def test_columns_must_be_named_and_are_listed(tmp_path):
    path = _write(tmp_path / "d.csv", ROWS)
    with pytest.raises(TaskError, match=r"column of the text too.*are text, label, other"):
        load_task(path, label="label")
    with pytest.raises(TaskError, match=r"column of the label too.*are text, label, other"):
        load_task(path, text="text", pair="other")
    with pytest.raises(TaskError, match="named twice"):
        load_task(path, text="text", label="text")
    with pytest.raises(TaskError, match="prompt and completion make a task of writing"):
        load_task(path, text="text", label="label", prompt="other")


def test_a_hub_data_set_has_its_classes_names_and_its_secret_split_is_left_out(monkeypatch):
    import datasets

    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )

    def split(*labels: int) -> datasets.Dataset:
        texts = [f"text {label} {i}" for i, label in enumerate(labels)]
        return datasets.Dataset.from_dict({"sentence": texts, "label": labels}, features=features)

    splits = {"train": split(1, 0, 1), "validation": split(0), "test": split(-1, -1)}
    splits["validation"] = splits["validation"].map(lambda row: {"sentence": "new"})
    monkeypatch.setattr(tables, "hub_reachable", lambda: True)
    monkeypatch.setattr(tables, "load_hub", lambda *_: datasets.DatasetDict(splits))
    with pytest.warns(UserWarning, match=r"owner/name \(test\) has no labels; it is left out"):
        task = load_task("owner/name", text="sentence", label="label")
    assert task.labels == ("negative", "positive")
    assert [e.label for e in task.train] == ["positive", "negative", "positive"]
    assert task.validation == (LabeledText("new", "negative"),)
    assert task.test == ()


# ---------------------------------------------------------------- real data


def _real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"the real {folder} files are not beside the repository")
    return DATA / folder


@pytest.mark.filterwarnings("ignore:.*are in the training rows too")
def test_the_real_files_have_their_published_sizes_and_classes():
    sst2 = _real("sst2")
    task = load_task(
        sst2 / "train.tsv",
        text="sentence",
        label="label",
        test=sst2 / "test.tsv",
        validation=sst2 / "dev.tsv",
    )
    assert (len(task.train), len(task.validation), len(task.test)) == (60614, 6735, 872)
    assert task.labels == ("0", "1")
    rte = _real("rte")
    task = load_task(
        rte / "train.tsv",
        text="sentence1",
        pair="sentence2",
        label="label",
        validation=rte / "dev.tsv",
    )
    assert (len(task.train), len(task.validation)) == (2490, 277)
    assert task.labels == ("entailment", "not_entailment")
    with pytest.raises(TaskError, match="has no column 'label'; its columns are index, sentence1"):
        load_task(rte / "test.tsv", text="sentence1", pair="sentence2", label="label")
    cola = _real("cola")
    task = load_task(
        cola / "in_domain_train.tsv", text=3, label=1, validation=cola / "in_domain_dev.tsv"
    )
    assert (len(task.train), len(task.validation)) == (8551, 527)
    assert task.labels == ("0", "1")
    assert task.train[0] == LabeledText(
        "Our friends won't buy this analysis, let alone the next one we propose.", "1"
    )
    banking = _real("banking77")
    task = load_task(
        banking / "train.csv", text="text", label="category", test=banking / "test.csv"
    )
    assert len(task.train) + len(task.validation) == 10003
    assert (len(task.test), len(task.labels)) == (3080, 77)
    # Always the commonest class: 40 test questions of each of the 77.
    guess = random.Random(0).choice(task.labels)
    assert task.score([guess] * 3080, task.test) == {
        "accuracy": pytest.approx(100 / 77),
        "macro_f1": pytest.approx(100 * (2 * 40 / (40 + 3080)) / 77),
    }


SNLI = [
    {"sentence1": f"A man {i}.", "sentence2": f"He {i}.", "gold_label": label}
    for i, label in enumerate(["neutral", "entailment", "-", "contradiction", "neutral", "-"])
]
COLUMNS = {"text": "sentence1", "pair": "sentence2", "label": "gold_label"}


def test_rows_that_annotators_did_not_agree_on_are_left_out_counted_and_said(tmp_path):
    """SNLI's "-" (Bowman et al., 2015, section 2.2) is no fourth class."""
    path = tmp_path / "snli.jsonl"
    path.write_text("\n".join(map(json.dumps, SNLI)))
    held_out = [{**row, "sentence1": f"{row['sentence1']} New."} for row in SNLI]
    with pytest.warns(UserWarning, match="are left out") as said:
        task = load_task(path, **COLUMNS, validation=held_out)
    assert task.labels == ("contradiction", "entailment", "neutral")
    learned = [row.label for row in task.train]
    assert learned == ["neutral", "entailment", "contradiction", "neutral"]
    assert len(task.validation) == 4
    told = [str(own.message) for own in said]
    line = "2 of 6 rows are marked in 'gold_label' as without a class that annotators agreed on"
    assert [line in own for own in told] == [True, True]
    with pytest.raises(TaskError, match="class '-' is in no training row"):
        load_task(path, **COLUMNS, validation=[row for row in held_out if row["gold_label"] == "-"])


def test_so_are_those_of_the_hubs_snli(tmp_path):
    import datasets

    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features(
        premise=datasets.Value("string"), label=datasets.ClassLabel(names=names)
    )
    rows = {"premise": [f"A {i}." for i in range(8)], "label": [0, 1, -1, 2, 0, 1, 2, -1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    for given in (data, tmp_path / "d.parquet"):
        with pytest.warns(UserWarning, match="2 of 8 rows are marked in 'label' as without a"):
            task = load_task(given, text="premise", label="label", validation=data.select([0, 1]))
        assert task.labels == tuple(names)
        assert len(task.train) == 6


def test_minus_is_a_class_like_any_other_beside_others():
    rows = [{"text": f"t{i}", "label": "+-"[i % 2]} for i in range(8)]
    task = load_task(rows, text="text", label="label")
    assert task.labels == ("+", "-")
    rows = [{**row, "gold_label": row["gold_label"].replace("-", "")} for row in SNLI]
    with pytest.raises(TaskError, match=r"row 3 .* has no class in column 'gold_label'; f"):
        load_task(rows, **COLUMNS)
