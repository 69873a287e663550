"""Folders of official layouts are read as hub ids are: GLUE's, E2E's, WikiSQL's, a hub's clone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, RegressionTask, load_task
from lora_lab.tasks.sources import task_source

SHARED = Path(__file__).parents[4] / "shared" / "data"
# GLUE's files as gluebenchmark.com has them: the line of names, and a row.
PAIR = "s1 {i}\ts2 {i}"
GLUE: Mapping[str, tuple[str, str, str]] = {
    "CoLA": ("", "gj04\t{c}\t{star}\tSentence {i}.", "index\tsentence\n0\tSentence."),
    "SST-2": ("sentence\tlabel", "it is {i} \t{c}", "index\tsentence\n0\tit is"),
    "MRPC": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        f"{{c}}\t1\t2\t{PAIR}",
        f"index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\t{PAIR}",
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        f"{{i}}\t1\t2\t{PAIR}\t{{c}}",
        f"id\tquestion1\tquestion2\n0\t{PAIR}",
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        f"{{i}}\tnews\tf\t2012\t1\tnone\tnone\t{PAIR}\t{{x}}",
        f"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
        f"0\tnews\tf\t2012\t1\tnone\tnone\t{PAIR}",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        f"{{i}}\t{PAIR}\t{{n}}",
        f"index\tquestion\tsentence\n0\t{PAIR}",
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        f"{{i}}\t{PAIR}\t{{n}}",
        f"index\tsentence1\tsentence2\n0\t{PAIR}",
    ),
}
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label"
)
SCORES = {
    "CoLA": ["matthews", "accuracy"],
    "SST-2": ["accuracy"],
    "MRPC": ["accuracy", "f1"],
    "QQP": ["accuracy", "f1"],
    "STS-B": ["pearson", "spearman"],
    "QNLI": ["accuracy"],
    "RTE": ["accuracy"],
}


def lines(row: str, count: int, start: int = 0) -> Iterator[str]:
    for i in range(start, start + count):
        yield row.format(
            i=i,
            c=i % 2,
            star="*" if i % 2 == 0 else "",
            x=i % 7 / 2 + 0.001 * i,
            n=("entailment", "not_entailment")[i % 2],
        )


def written(folder: Path, name: str) -> Path:
    header, row, test = GLUE[name]
    path = folder / name
    path.mkdir(parents=True)
    head = [header] if header else []
    (path / "train.tsv").write_text("\n".join([*head, *lines(row, 30)]) + "\n", "utf-8")
    (path / "dev.tsv").write_text("\n".join([*head, *lines(row, 6, 100)]) + "\n", "utf-8")
    (path / "test.tsv").write_text(test.format(i=999) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("config", [False, True])
def test_glues_folders_are_read_and_scored_as_glue(tmp_path: Path, name: str, config: bool) -> None:
    path = written(tmp_path / "glue_data", name)
    given = (path.parent, name) if config else (path,)
    with pytest.warns(UserWarning, match=r"test\.tsv has no column .*; it is left out"):
        task: Any = load_task(*given)
    assert isinstance(task, RegressionTask if name == "STS-B" else ClassificationTask)
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 6, 0)
    assert [metric.name for metric in task.metrics] == SCORES[name]
    assert f"scored as GLUE's {name}" in task.describe()
    first = task.train[1]
    assert first.text.strip() == {"CoLA": "Sentence 1.", "SST-2": "it is 1"}.get(name, "s1 1")
    assert (first.pair is None) == (name in ("CoLA", "SST-2"))
    if name != "STS-B":
        own = "not_entailment" if name in ("QNLI", "RTE") else "1"
        assert first.label == own
    source = dict(task_source(task) or {})
    assert Path(source["name"]).is_absolute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_task(**source).train == task.train, "a run loads it again by its source"


def test_mnli_has_two_validation_parts(tmp_path: Path) -> None:
    path = tmp_path / "MNLI"
    path.mkdir()
    kinds = ("neutral", "entailment", "contradiction")
    for split, count in (("train", 12), ("dev_matched", 6), ("dev_mismatched", 3)):
        rows = [
            f"{i}\t1\t1e\tfiction\tp\tp\tp\tp\t{split} {i}\th\t{kinds[i % 3]}\t{kinds[i % 3]}"
            for i in range(count)
        ]
        (path / f"{split}.tsv").write_text("\n".join([MNLI, *rows]) + "\n", "utf-8")
    with pytest.warns(UserWarning, match="dev_mismatched is not read"):
        task = load_task(path)
    assert [metric.name for metric in task.metrics] == ["accuracy"]
    assert {row.text.split()[0] for row in task.validation} == {"dev_matched"}
    assert task.labels == ("contradiction", "entailment", "neutral")
    other = load_task(path, validation="dev_mismatched", test="dev_matched")
    assert (len(other.validation), len(other.test)) == (3, 6)
    hubs = load_task(path, validation="validation_mismatched")
    assert hubs.validation == other.validation, "as the hub calls it"
    both = load_task(path, validation=[path / f"dev_{m}matched.tsv" for m in ("", "mis")])
    assert len(both.validation) == 9
    with pytest.raises(TaskError, match=r"MNLI has no split 'dev' .*; it has .*dev_matched"):
        load_task(path, validation="dev")


def test_one_file_of_cola_is_read_without_a_line_of_names(tmp_path: Path) -> None:
    path = written(tmp_path, "CoLA")
    task = load_task(path / "train.tsv", validation=path / "dev.tsv")
    assert len(task.train) == 30
    assert task.metrics[0].name == "matthews"
    (tmp_path / "other.tsv").write_text("text\tlabel\ta\tb\nx\t1\t\ty\n" * 4)
    with pytest.raises(TaskError, match=r"name the columns|beside them"):
        load_task(tmp_path / "other.tsv")


def test_colas_own_release_and_a_clone_of_the_hubs(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        rows = list(lines(GLUE["CoLA"][1].replace("Sentence", split), 12))
        (raw / f"{split}.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    with pytest.warns(UserWarning, match="out_of_domain_dev is not read"):
        task = load_task(raw)
    assert task.train[0].text.startswith("in_domain_train")
    assert task.validation[0].text.startswith("in_domain_dev")
    clone = tmp_path / "clone"
    (clone / "data").mkdir(parents=True)
    (clone / "README.md").write_text("of the hub\n")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        frame = pd.DataFrame({"sentence": [f"{name} {i}" for i in range(4)], "label": [0, 1] * 2})
        frame.to_parquet(clone / "data" / f"{name}.parquet")
    task = load_task(clone)
    assert (task.name, len(task.train), len(task.validation)) == ("clone", 8, 4)


def test_of_e2es_twins_the_one_with_answers_is_read(tmp_path: Path) -> None:
    for name, count in (("trainset", 30), ("devset", 4), ("testset_w_refs", 6)):
        rows = [f'"name[{name} {i // 2}]","{name} {i} is there."' for i in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["mr,ref", *rows]) + "\n", "utf-8")
    (tmp_path / "testset.csv").write_text('mr\n"name[testset 0]"\n', "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 2, 3)
    assert task.metrics[0].name == "bleu_lowercase"


@pytest.mark.parametrize("twin", ["train.jsonl", "train.csv.gz", "train-00000-of-00001.jsonl"])
def test_rows_that_were_saved_twice_are_not_read_twice(tmp_path: Path, twin: str) -> None:
    frame = pd.DataFrame({"prompt": [f"q{i}" for i in range(20)], "completion": ["a"] * 20})
    frame.to_csv(tmp_path / "train.csv", index=False)
    if twin.endswith(".gz"):
        frame.to_csv(tmp_path / twin, index=False)
    else:
        frame.to_json(tmp_path / twin, orient="records", lines=True)
    with pytest.raises(TaskError, match=r"its training rows in train.* and train.*, which would"):
        load_task(tmp_path)
    (tmp_path / twin).unlink()
    assert len(load_task(tmp_path).train) == 18


def test_a_folder_without_rows_to_train_on_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TaskError, match="is a folder; name its files"):
        load_task(tmp_path)
    with pytest.raises(TaskError, match=r"config_name='mnli' is for a hub id|is a folder"):
        load_task(tmp_path, "mnli")


def test_a_set_of_a_folder_has_the_hubs_name_too(tmp_path: Path) -> None:
    written(tmp_path, "SST-2")
    hubs, own = load_task(tmp_path, "sst2"), load_task(tmp_path, "SST-2")
    assert (hubs.train, hubs.metrics) == (own.train, own.metrics)


def test_a_folder_of_sets_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SST-2", "CoLA"):
        written(tmp_path / "data" / "glue", name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"glue has CoLA, SST-2; load one, load_task\('data/glue'"):
        load_task("data/glue")  # no hub id: there is such a folder
    with pytest.raises(TaskError, match=r"glue has no 'imdb', but CoLA, SST-2; load one"):
        load_task("data/glue", "imdb")


def test_halves_of_rows_are_left_out_of_qqp_aloud(tmp_path: Path) -> None:
    folder = written(tmp_path, "QQP")
    path = folder / "train.tsv"
    whole = load_task(folder)
    path.write_text(path.read_text() + "404\t1\t2\tHow do I\n lose it?\tWhat is it?\t1\n")
    with pytest.warns(UserWarning, match=r"QQP/train\.tsv: 2 rows of fewer fields are left out"):
        assert load_task(folder).train == whole.train
    path.write_text(path.read_text() + "404\t1\t2\tHow?\tWhat?\t1\tmore\n")
    with pytest.raises(TaskError, match=r"has 7 fields where the line of names has 6"):
        load_task(folder)
    (tmp_path / "other.tsv").write_text("id\tquestion\tlabel\n1\ta\tb\n2\tc\n")
    with pytest.raises(TaskError, match="has 2 fields where the line of names has 3"):
        load_task(tmp_path / "other.tsv")


def test_an_answer_that_is_missing_is_refused_where_rows_were_named(tmp_path: Path) -> None:
    path = written(tmp_path, "RTE")
    with pytest.raises(TaskError, match=r"test\.tsv has no column 'label'"):
        load_task(path / "train.tsv", validation=path / "dev.tsv", test=path / "test.tsv")


@pytest.mark.parametrize(
    ("name", "sizes", "scored"),
    [
        ("e2e", (42_061, 547, 630), "bleu_lowercase"),
        ("rte", (2_490, 277, 0), "accuracy"),
        ("sst2", (60_614, 6_735, 872), "accuracy"),
        ("cola", (8_551, 527, 0), "matthews"),
        ("wikisql", (52_000, 7_000, 14_000), "logical_form"),
    ],
)
def test_the_real_ones(name: str, sizes: tuple[int, int, int], scored: str) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: public data, larger than the repository keeps")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task: Any = load_task(folder)
    found = (len(task.train), len(task.validation), len(task.test))
    assert all(n == m or (m >= 7_000 and n >= m) for n, m in zip(found, sizes, strict=True)), found
    assert task.metrics[0].name == scored
