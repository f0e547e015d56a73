"""The group key: made once, private, and the user's own where there is one."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from broker.identity import GroupKeyError
from provisioning.enrolment.group_key import provide_group_key


def test_a_group_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = provide_group_key(tmp_path, None)
    key = path.read_text()
    assert len(base64.b64decode(key)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert provide_group_key(tmp_path, None).read_text() == key


def test_a_group_key_of_the_users_own_goes_first_and_must_be_one(tmp_path: Path) -> None:
    own = tmp_path / "own.key"
    own.write_text(f"{'A' * 24}\n")
    assert provide_group_key(tmp_path, own) == own
    assert not (tmp_path / "group.key").exists()
    own.write_text("no key!")
    with pytest.raises(GroupKeyError, match=r"own\.key holds no group key"):
        provide_group_key(tmp_path, own)
    own.write_text("AAAA\n")
    with pytest.raises(GroupKeyError, match="a group key of 3 bytes"):
        provide_group_key(tmp_path, own)
    with pytest.raises(GroupKeyError, match="gone"):
        provide_group_key(tmp_path, tmp_path / "gone")
