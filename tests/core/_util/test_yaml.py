"""Run files: plain values, numbers as people write them, and no way to run or to swamp anything."""

import json
import os
import time

import pytest

from lora_lab._util.yaml import read_yaml, to_yaml
from lora_lab.errors import ConfigError


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_numbers_are_numbers(tmp_path):
    values = read(tmp_path, "a: 2e-4\nb: 1.5E+3\nc: 16\nd: -1e5\ne: 0x10\nf: 'two'\ng: 1e\n")
    assert values == {
        "a": 2e-4, "b": 1500.0, "c": 16, "d": -1e5, "e": 16, "f": "two", "g": "1e",
    }  # fmt: skip


def test_a_date_is_text_as_in_json(tmp_path):
    text = "a: 2026-12-01\nb: 2026-99-99\nc: 2026-12-01 10:00:00 +23:59\n"
    assert read(tmp_path, text) == {
        "a": "2026-12-01", "b": "2026-99-99", "c": "2026-12-01 10:00:00 +23:59",
    }  # fmt: skip


def test_it_comes_back_as_it_was_written_and_json_is_yaml(tmp_path):
    value = {"model": "x", "training": {"learning_rate": 2e-4, "seeds": [1, 2]}, "name": "é"}
    assert read(tmp_path, to_yaml(value)) == value
    assert read(tmp_path, json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", "'a' stands twice in line 1"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag .*os.system' is not read"),
        ("a: !!binary aGk=\n", "the tag 'tag:yaml.org,2002:binary' is not read in line 1"),
        ("a: !!set {x, y}\n", "the tag .* is not read"),
        ("a: !mine x\n", "the tag '!mine' is not read"),
        ("a: " + "1:" * 199 + "1.5\n", "a number has 401 digits in line 1"),
        ("a: &x [1]\nb: *x\n", "an alias is not read in line 2"),
        ("a: [1\n", "is not readable YAML"),
        ("- 1\n", "holds no settings"),
        ("", "holds no settings"),
        ("1: 2\n", "the key 1 is no name"),
        ("on: x\n", "the key True is no name"),
    ],
)
def test_what_is_no_run_file_gets_one_line(tmp_path, text, line):
    with pytest.raises(ConfigError, match=line) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_time_grows_with_the_page_and_not_with_its_square(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: " + "1" * 100_000 + "x\n")
    start = time.process_time()
    assert read_yaml(path)["name"].endswith("1x")
    # 20,000 digits took 3 s of processor time before: 100,000 would take 75.
    assert time.process_time() - start < 5
    path.write_text("{" + ", ".join(f"k{i}: 1" for i in range(2_000)) + ", k7: 2}")
    with pytest.raises(ConfigError, match="'k7' stands twice"):
        read_yaml(path)


def test_a_missing_and_a_huge_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="too large"):
        read(tmp_path, "a: " + "x" * 2**20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 100_000, "it is nested too deep in line 1"),
        ("{a: " * 100_000, "it is nested too deep in line 1"),
        ("a: " + ":".join(["1"] * 50_000), "a number has 99999 digits in line 1"),
        ("a: " + "1" * 5_000, "a number has 5000 digits in line 1"),
        ("- " * 100_000, "maximum recursion depth"),
    ],
)
def test_what_takes_the_square_of_its_length_is_refused_at_once(tmp_path, text, said):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_yaml(path)


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
def test_only_a_regular_file_is_read_through_a_link_too(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ConfigError, match=r"cannot read .*no regular file"):
            read_yaml(tmp_path / f"{name}.yaml")
    (tmp_path / "mine.yaml").write_text("a: [[1]]")
    (tmp_path / "link.yaml").symlink_to("mine.yaml")
    assert read_yaml(tmp_path / "link.yaml") == {"a": [[1]]}


def test_pairs_of_surrogates_as_json_writes_them_are_one_letter(tmp_path):
    assert read(tmp_path, r'a: "\ud83d\ude00 \ud800"') == {"a": "😀 �"}


def test_what_is_written_has_no_secret_and_keeps_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", 'pa"55-word')
    monkeypatch.setenv("PIN_PASSWORD", "33333333")
    value = {"model": {"name": 'x pa"55-word'}, "training": {"seed": 33333333}}
    assert read(tmp_path, to_yaml(value)) == {
        "model": {"name": "x [redacted]"}, "training": {"seed": 33333333},
    }  # fmt: skip
