"""The state directory is its owner's alone, also one that was made otherwise."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.errors import StateError
from provisioning.state_directory import MARKER, owned, prepare_state_directory


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_it_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    with owned(state):
        assert {path.name: mode_of(path) for path in state.iterdir()} == {
            MARKER: 0o600,
            "service.lock": 0o600,
        }
    assert mode_of(state) == 0o700


def test_an_old_one_is_tightened_and_what_is_not_ours_in_it_is_left(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    (state / "stack" / "azurite").mkdir(parents=True)
    for name in ("engine.db", "engine.db-wal", "stack/azurite/azurite.log", "notes.txt"):
        (state / name).write_text("x")
    state.chmod(0o755)
    prepare_state_directory(state)
    assert mode_of(state) == mode_of(state / "stack") == mode_of(state / "stack" / "azurite") == 0o700
    for name in ("engine.db", "engine.db-wal", "stack/azurite/azurite.log"):
        assert mode_of(state / name) == 0o600
    assert mode_of(state / "notes.txt") == 0o666, "somebody's own"


def test_an_empty_directory_of_the_users_is_made_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    prepare_state_directory(state)
    assert mode_of(state) == 0o700


def test_a_directory_of_other_things_is_not_closed_to_others_without_being_asked(tmp_path: Path) -> None:
    state = tmp_path / "project"
    state.mkdir()
    (state / "main.py").write_text("x")
    with pytest.raises(StateError, match=f"chmod 700 {state}"):
        prepare_state_directory(state)
    assert mode_of(state) == 0o777
    assert [path.name for path in state.iterdir()] == ["main.py"]
    state.chmod(0o700)
    prepare_state_directory(state)


def test_one_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    monkeypatch.setattr(os, "geteuid", lambda: state.stat().st_uid + 1)
    with pytest.raises(StateError, match=f"{state} belongs to another user"):
        prepare_state_directory(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_a_file_that_another_user_has_put_there_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    (state / "signing.key").symlink_to("/etc/hostname")
    os.lchown(state / "signing.key", 12345, 12345)
    with pytest.raises(StateError, match=r"signing\.key belongs to another user"):
        prepare_state_directory(state)
