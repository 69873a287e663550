"""A run is one's own if one's own key says so, whatever a stranger or a power loss has left."""

from __future__ import annotations

import errno
import os

import pytest

from lora_lab.runs import signature

SOURCES = {"model": {"name": "/here"}}


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    return tmp_path / "origin.key"


def own(sources=SOURCES):
    return signature.signed({"sources": sources})


def test_what_was_signed_here_is_known_and_nothing_else(key):
    assert signature.verify(own())
    assert key.stat().st_size == 32
    assert os.name == "nt" or key.stat().st_mode & 0o777 == 0o600
    for origin in (None, 1, "", "ab" * 32, "\ud800", "\udcff\x00", "ß"):
        assert not signature.verify({"sources": SOURCES, "origin": origin})
    assert not signature.verify(own() | {"sources": {"model": {"name": "/etc"}}})


@pytest.mark.parametrize("left", [b"", b"\0" * 31, b"\0" * 32, b"\0" * 4096, None])
def test_a_damaged_key_is_made_anew(key, left):
    key.mkdir() if left is None else key.write_bytes(left)
    assert signature.verify(own())
    assert len(key.read_bytes()) == 32
    assert any(key.read_bytes()), "a key of zeros would be everybody's"


def test_where_a_file_system_has_no_links_there_is_a_key_too(key, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    assert signature.verify(own())


@pytest.mark.skipif(os.name == "nt", reason="no modes as POSIX has them")
def test_a_key_that_others_can_write_is_nobodys(key):
    before = own()
    key.chmod(0o666)
    with pytest.warns(UserWarning, match=r"origin\.key can be written to by other users, so that"):
        assert not signature.verify(before)
    with pytest.warns(UserWarning, match="remove it, or set LORA_LAB_CACHE"):
        assert own()["origin"] is None
