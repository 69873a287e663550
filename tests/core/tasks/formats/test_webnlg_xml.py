"""WebNLG's XML, as the challenge of 2017 and release 3.0 have it; what is hostile is refused."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task, tables
from lora_lab.tasks.formats.webnlg_xml import read_webnlg

# The first entry of the challenge's training files, with one text that its editors had corrected.
AARHUS = """<?xml version="1.0" ?>
<benchmark>
  <entries>
    <entry category="Airport" eid="Id1" size="1">
      <originaltripleset>
        <otriple>Aarhus_Airport | cityServed | &quot;Aarhus, Denmark&quot;@en</otriple>
      </originaltripleset>
      <modifiedtripleset>
        <mtriple>Aarhus_Airport | cityServed | &quot;Aarhus, Denmark&quot;</mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">The Aarhus is the airport of Aarhus, Denmark.</lex>
      <lex comment="toFix" lid="Id2">Aarhus Airport serve
        the city.</lex>
    </entry>
  </entries>
</benchmark>
"""
Entry = tuple[str, Sequence[str], Sequence[tuple[str, str]]]  # category, triples, (lang, text)


def xml(*entries: Entry, comment: str = "good") -> str:
    """Entries as release 3.0 writes them."""
    lines = ['<?xml version="1.0" ?>', "<benchmark><entries>"]
    for number, (category, triples, texts) in enumerate(entries, 1):
        lines.append(
            f'<entry category="{category}" eid="Id{number}" shape="(X (X))" shape_type="NA" '
            f'size="{len(triples)}">'
        )
        for kind, one in (("original", "otriple"), ("modified", "mtriple")):
            each = "".join(f"<{one}>{escape(text)}</{one}>" for text in triples)
            lines.append(f"<{kind}tripleset>{each}</{kind}tripleset>")
        for lid, (lang, text) in enumerate(texts, 1):
            lines.append(
                f'<lex comment="{comment}" lang="{lang}" lid="Id{lid}">{escape(text)}</lex>'
            )
        lines.append('<dbpedialinks><dbpedialink direction="en2ru">a | sameAs | b</dbpedialink>')
        lines.append("</dbpedialinks></entry>")
    return "\n".join([*lines, "</entries></benchmark>"])


def airport(number: int, category: str = "Airport") -> Entry:
    return category, [f"A{number} | runs & rows | B", "B | in | C"], [("en", f"A{number} is B's.")]


def test_an_entry_has_its_triples_and_its_texts() -> None:
    table = read_webnlg(AARHUS.encode(), "aarhus.xml")
    assert {name: list(values) for name, values in table.columns.items()} == {
        "category": ["Airport"],
        "eid": ["Id1"],
        "size": ["1"],
        "modifiedtripleset": [
            [
                {
                    "subject": "Aarhus_Airport",
                    "property": "cityServed",
                    "object": '"Aarhus, Denmark"',
                }
            ]
        ],
        "lexicalisations": [
            [
                {
                    "comment": "good",
                    "lang": "",
                    "lex": "The Aarhus is the airport of Aarhus, Denmark.",
                },
                {"comment": "toFix", "lang": "", "lex": "Aarhus Airport serve the city."},
            ]
        ],
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_a_task_as_its_json_is(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("train.xml.gz" if packed else "train.xml")
    text = xml(*map(airport, range(20)))
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    task = load_task(path)
    assert task.train[0].prompt == "A0 : runs & rows : B | B : in : C"
    assert task.train[0].completion == "A0 is B's."
    assert [metric.name for metric in task.metrics][:2] == ["bleu_lowercase", "ter"]
    assert "read as WebNLG" in task.describe()
    assert len(task.train) + len(task.validation) == 20


def test_what_editors_found_wrong_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "train.xml"
    path.write_text(xml(airport(0), airport(1), comment="toFix"))
    with pytest.raises(TaskError, match=r"no row has .*'lexicalisations'"):
        load_task(path)


def test_other_encodings_are_those_of_the_first_line(tmp_path: Path) -> None:
    text = xml(*(("Food", [f"Ä{i} | p | o"], [("en", f"Ä{i} ist ö.")]) for i in range(4)))
    path = tmp_path / "train.xml"
    path.write_bytes(text.replace('"1.0" ?', '"1.0" encoding="iso-8859-1" ?').encode("latin-1"))
    assert load_task(path).train[0].completion.endswith(" ist ö.")
    with pytest.raises(TaskError, match=r"a \.xml has its own encoding; leave out encoding"):
        load_task(path, encoding="latin-1")
    with pytest.raises(TaskError, match=r"sep is for .*; leave it out"):
        load_task(path, sep=",")
    with pytest.raises(TaskError, match=r"field is for .*; leave it out"):
        load_task(path, field="entries")


def test_of_translated_texts_those_in_the_other_language_are_read() -> None:
    both = [("en", "A is B."), ("ru", "А — это Б.")]
    with pytest.warns(UserWarning, match=r"ru\.xml: texts in ru are read, and not those in en"):
        table = read_webnlg(xml(("Food", ["A | is | B"], both)).encode(), "ru.xml")
    assert [lex["lex"] for lex in table["lexicalisations"][0]] == [both[1][1]]
    three = [*both, ("de", "A ist B.")]
    with pytest.raises(TaskError, match=r"has texts in de, en, ru; leave those in one language"):
        read_webnlg(xml(("Food", ["A | is | B"], three)).encode(), "all.xml")


BOMB = """<?xml version="1.0"?>
<!DOCTYPE benchmark [<!ENTITY a "aaaaaaaaaa">
{entities}]>
<benchmark><entries><entry category="Airport" eid="1" size="1"><modifiedtripleset>
<mtriple>a | b | &z;</mtriple></modifiedtripleset><lex>&z;</lex></entry></entries></benchmark>"""
LEVELS = "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">\n'
    for a, b in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB.format(entities=LEVELS), "declares a document type"),
        (
            '<!DOCTYPE b [<!ENTITY z SYSTEM "file:///etc/passwd">]><benchmark>&z;</benchmark>',
            "declares a document type",
        ),
        ('<!DOCTYPE b SYSTEM "http://127.0.0.1/x.dtd"><benchmark/>', "declares a document type"),
        ("<benchmark>" + "<a>" * 100_000, "has elements 16 deep"),
        ("<benchmark><entries><entry></entries></benchmark>", "line 1: mismatched tag"),
        ("<benchmark>\n\n<entries>&amp", "line 3"),
        ("<benchmark><entries/></benchmark>", "has no entries; of XML WebNLG's is read"),
        ("<rss><entry><mtriple>a | b | c</mtriple></entry></rss>", "has no entries"),
        ("mr,ref\na,b\n", "line 1: syntax error"),
        (AARHUS.replace(" | cityServed", ""), r"row 1 \(eid Id1\) has the triple 'Aarhus_Airport"),
        (AARHUS.replace("&quot;", "&eacute;"), "undefined entity"),
    ],
)
def test_what_is_hostile_or_something_else_is_one_line(
    tmp_path: Path, text: str, line: str
) -> None:
    path = tmp_path / "train.xml"
    path.write_text(text)
    with pytest.raises(TaskError, match=line) as refused:
        load_task(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_gzipped_file_of_blanks_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "most_unpacked", lambda size: 100 * size)
    path = tmp_path / "train.xml.gz"
    path.write_bytes(gzip.compress(AARHUS.encode() + b" " * 2**22))
    with pytest.raises(TaskError, match="unpacks to more than"):
        load_task(path)


def layout_2017(folder: Path) -> Path:
    """webnlg_challenge_2017: train/1triples/…, test/testdata_with_lex.xml and its kin."""
    for part, numbers in (("train", range(6)), ("dev", range(6, 8))):
        for size in (1, 2):
            below = folder / part / f"{size}triples"
            below.mkdir(parents=True)
            entries = [airport(10 * size + number) for number in numbers]
            (below / f"{size}triples_Airport_{part}_challenge.xml").write_text(xml(*entries))
    test = folder / "test"
    test.mkdir()
    seen, unseen = [airport(101), airport(102, "Food")], [airport(103, "Athlete")]
    (test / "testdata_with_lex.xml").write_text(xml(*seen, *unseen))
    (test / "testdata_unseen_with_lex.xml").write_text(xml(*unseen))
    (test / "testdata_no_lex.xml").write_text(xml(*((c, t, []) for c, t, _ in [*seen, *unseen])))
    return folder


def test_the_challenges_folder_has_seen_and_unseen_categories(tmp_path: Path) -> None:
    task = load_task(layout_2017(tmp_path / "webnlg_challenge_2017"))
    assert (len(task.train), len(task.validation), len(task.test)) == (12, 4, 3)
    assert {row.prompt.split()[0] for row in task.train} == {
        f"A{10 * size + number}" for size in (1, 2) for number in range(6)
    }
    folder = tmp_path / "webnlg_challenge_2017"
    seen, unseen = (load_task(folder, test=f"test_{end}").test for end in ("seen", "unseen"))
    assert [row.prompt[:4] for row in seen] == ["A101", "A102"]
    assert [row.prompt[:4] for row in unseen] == ["A103"]


def test_in_release_3_what_is_trained_on_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "release_v3.0" / "en"
    for part, categories in (("train", ["Airport", "Athlete"]), ("dev", ["Airport"])):
        below = folder / part / "1triples"
        below.mkdir(parents=True)
        for number, category in enumerate(categories):
            rows = [airport(10 * number + i + 100 * (part == "dev"), category) for i in range(3)]
            (below / f"{category}.xml").write_text(xml(*rows))
    test = folder / "test"
    test.mkdir()
    rows = [airport(201), airport(202, "Athlete"), airport(203, "Film")]
    stem = "rdf-to-text-generation-test-data"
    (test / f"{stem}-with-refs-en.xml").write_text(xml(*rows))
    (test / f"{stem}-without-refs-en.xml").write_text(xml(*((c, t, []) for c, t, _ in rows)))
    (test / "semantic-parsing-test-data-with-refs-en.xml").write_text("<benchmark/>")
    task = load_task(tmp_path / "release_v3.0", "en")
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 3, 3)
    seen = load_task(folder, test="test_seen").test
    assert [row.prompt[:4] for row in seen] == ["A201", "A202"], "trained on since 2020"
    assert [row.prompt[:4] for row in load_task(folder, test="test_unseen").test] == ["A203"]


def test_test_files_without_texts_are_left_out(tmp_path: Path) -> None:
    folder = layout_2017(tmp_path / "webnlg")
    for name in ("testdata_with_lex", "testdata_unseen_with_lex"):
        (folder / "test" / f"{name}.xml").unlink()
    with pytest.warns(UserWarning, match="has no column 'lexicalisations'; it is left out"):
        assert not load_task(folder).test


def test_files_of_one_part_in_two_places_are_refused(tmp_path: Path) -> None:
    folder = layout_2017(tmp_path / "webnlg")
    (folder / "train.xml").write_text(xml(airport(1), airport(2)))
    with pytest.raises(TaskError, match=r"has its training rows in .*train\.xml, which would be"):
        load_task(folder)


def test_releases_with_a_folder_called_xml(tmp_path: Path) -> None:
    layout_2017(tmp_path / "release_v2.1" / "xml")
    task = load_task(tmp_path / "release_v2.1")
    assert (len(task.train), len(task.validation), len(task.test)) == (12, 4, 3)
