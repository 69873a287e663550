"""Bytes to text: marks, named encodings, and the line that a wrong one gets."""

from __future__ import annotations

import codecs
import warnings

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks.formats.text import decode

TEXT = "mr,ref\nCafé “x” 😀,y\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_the_mark_tells_the_encoding(data: bytes) -> None:
    assert decode(data, None, "d") == TEXT


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("utf-8", TEXT.encode("utf-8-sig")),
        ("utf-8-sig", TEXT.encode()),
        ("UTF8", TEXT.encode()),
        ("utf-16", TEXT.encode("utf-16")),
        ("utf-16-le", codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")),
        ("utf-16-be", TEXT.encode("utf-16-be")),
        ("gb18030", TEXT.encode("gb18030")),
    ],
)
def test_a_named_encoding_is_taken_and_its_mark_is_no_letter(encoding: str, data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, encoding, "d") == TEXT


def test_one_byte_encodings() -> None:
    text = "Größe; café"
    assert decode(text.encode("latin-1"), "latin-1", "d") == text
    assert decode("“naïve”".encode("cp1252"), "cp1252", "d") == "“naïve”"


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        ("a\nb\nCafé,x\n".encode("latin-1"), None, r"d is not utf-8: line 3 \(byte 7, 0xe9\).*"
         r"encoding='cp1252', which has 'Café,x' there \(or 'latin-1'"),
        ("“a”".encode("cp1252"), None, r"line 1 \(byte 0, 0x93\).*'cp1252', which has '“a”' there"),
        ("日本語です".encode("shift_jis"), None, "'shift_jis', which has '日本語です' there"),
        ("你好世界".encode("gbk"), None, "encoding='gb18030', which has '你好世界' there"),
        ("Привет, мир".encode("cp1251"), None, "encoding='cp1251', which has 'Привет, мир' there"),
        (b"a\n\x81\xff\x8d\n", None, "encoding='latin-1'"),
        ("Café".encode(), "ascii", "is not ascii: line 1.*encoding='utf-8', which has 'Café'"),
        (b"\xff\xfea\0b", None, "is not utf-16: line 1"),
        (b"a", "klingon", "no encoding of text is called 'klingon'"),
        (b"a", "hex", "no encoding of text is called 'hex'"),
        ("é".encode("utf-8-sig"), "latin-1", "begins with the mark of utf-8.*leave out encoding"),
        ("é".encode("utf-16"), "utf-8", "begins with the mark of utf-16, so that it is not utf-8"),
        ("plain text".encode("utf-16-le"), None, "every other byte is 0; .*'utf-16-le'"),
        ("plain text".encode("utf-16-be"), None, "every other byte is 0; .*'utf-16-be'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_gets_one_line(data: bytes, encoding: str | None, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        decode(data, encoding, "d")
    assert "\n" not in str(error.value)


def test_utf8_that_is_read_as_something_else_is_told() -> None:
    with pytest.warns(UserWarning, match="as latin-1 it has 'CafÃ©' where utf-8 has 'Café'"):
        assert decode("Café".encode(), "latin-1", "d") == "CafÃ©"
