"""What another user can write to is not one's own."""

from __future__ import annotations

import os

import pytest

from lora_lab._util.ownership import stranger

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no owners as POSIX has them")


@pytest.mark.parametrize(
    ("mode", "why"),
    [(0o600, None), (0o644, None), (0o666, "can be written"), (0o602, "can be written")],
)
def test_others_may_read_but_not_write(tmp_path, mode, why):
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    assert (stranger(path) or "").startswith(why or "") is True
    assert (stranger(path) is None) is (why is None)


def test_a_group_may_write_only_where_it_is_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.touch()
    path.chmod(0o660)
    assert stranger(path) is None
    monkeypatch.setattr(os, "getegid", lambda: path.stat().st_gid + 1)
    assert stranger(path) == "can be written to by other users"


def test_what_somebody_else_has_made_is_his(tmp_path, monkeypatch):
    path, link = tmp_path / "key", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    assert stranger(link) is None
    if path.stat().st_uid == 0:  # root's files are everybody's to trust
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert stranger(path) == "belongs to another user"
    assert stranger(link) == "belongs to another user"
