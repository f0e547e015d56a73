"""Files for their owner alone: their modes under any umask, and names that somebody else has put there."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.private_files import (
    MAX_LOG_BYTES,
    NotOursError,
    changeable_by_others,
    make_private_directory,
    open_private,
    private_umask,
    rotate,
    tighten,
    write_private,
)


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_and_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "kept")
    write_private(tmp_path / "kept" / "one", "1", durable=True)
    with open_private(tmp_path / "kept" / "log", "a") as log:
        assert mode_of(tmp_path / "kept" / "log") == 0o600, "before its first byte"
        log.write("2")
    assert mode_of(tmp_path / "kept") == 0o700
    assert mode_of(tmp_path / "kept" / "one") == 0o600
    with private_umask():
        (tmp_path / "by a library").write_text("3")
    assert mode_of(tmp_path / "by a library") == 0o600
    assert os.umask(0) == 0, "put back"


def test_a_loose_file_is_private_as_soon_as_it_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n")
    (tmp_path / "one").write_text("old\n")
    with open_private(tmp_path / "log", "a") as log:
        log.write("new\n")
    write_private(tmp_path / "one", b"new\n")
    assert (tmp_path / "log").read_text() == "old\nnew\n"
    assert mode_of(tmp_path / "log") == mode_of(tmp_path / "one") == 0o600


@pytest.mark.parametrize("mode", ["a", "w", "x"])
def test_what_is_opened_is_never_what_a_link_names(tmp_path: Path, mode: str) -> None:
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="log"):
        open_private(tmp_path / "log", mode)  # type: ignore[arg-type]
    assert (tmp_path / "victim").read_text() == "theirs"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "one").symlink_to(tmp_path / "victim")
    write_private(tmp_path / "one", "ours")
    assert (tmp_path / "victim").read_text() == "theirs"
    assert not (tmp_path / "one").is_symlink()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(tmp_path / "one", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / "one", "new", durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one").read_text() == "old"


def test_what_is_there_may_be_kept(tmp_path: Path) -> None:
    write_private(tmp_path / "key", "first", replace=False)
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", "second", replace=False)
    assert (tmp_path / "key").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_log_that_has_grown_large_is_put_aside_once(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    rotate(log)
    for text in ("first", "second"):
        log.write_text(text * MAX_LOG_BYTES)
        rotate(log)
        assert not log.exists()
    assert (tmp_path / "x.log.1").read_text().startswith("second")
    log.write_text("small")
    rotate(log)
    assert log.read_text() == "small"


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    def write(letter: str) -> None:
        for _ in range(50):
            write_private(tmp_path / "one", letter * 10_000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set((tmp_path / "one").read_text()) in ({"a"}, {"b"})
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_tightening_takes_the_rights_of_others_and_keeps_the_owners(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "one").write_text("1")
    (kept / "deep" / "program").write_text("2")
    (kept / "deep" / "program").chmod(0o755)
    (tmp_path / "outside").write_text("3")
    (kept / "link").symlink_to(tmp_path / "outside")
    for path in (kept, kept / "link", kept / "deep" / "one"):
        tighten(path)
    assert [mode_of(path) for path in (kept, kept / "deep")] == [0o700, 0o700]
    assert mode_of(kept / "deep" / "one") == 0o600
    assert mode_of(kept / "deep" / "program") == 0o700
    assert mode_of(tmp_path / "outside") == 0o666, "a link is not followed"


def test_tightening_removes_what_a_killed_writer_has_left(tmp_path: Path) -> None:
    old, fresh = tmp_path / f".one.{'0' * 16}.part", tmp_path / f".one.{'1' * 16}.part"
    for path in (old, fresh):
        path.write_text("half")
    os.utime(old, (0, 0))
    tighten(tmp_path)
    assert not old.exists()
    assert fresh.exists(), "somebody may be writing it"


def test_another_users_file_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted").write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "planted").stat().st_uid + 1)
    with pytest.raises(NotOursError, match="belongs to another user"):
        tighten(tmp_path)
    with pytest.raises(NotOursError, match="planted"):
        open_private(tmp_path / "planted", "w")
    assert (tmp_path / "planted").read_text() == "theirs"


def test_who_may_change_what_is_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    code = tmp_path / "shared" / "code"
    code.mkdir(parents=True)
    assert changeable_by_others(code) == f"{code} may be written by others"
    code.chmod(0o755)
    assert changeable_by_others(code) == f"{tmp_path / 'shared'} may be written by others"
    (tmp_path / "shared").chmod(0o1777)
    assert changeable_by_others(code) is None, "as in /tmp: nobody moves another's directory"
    assert changeable_by_others(tmp_path / "missing") is None


def test_code_of_another_user_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file of root's is trusted, so the owner is made another one.
    real = Path.stat

    def stat_of_another(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        if path != tmp_path:
            return found
        return os.stat_result((*found[:4], os.geteuid() + 1, *found[5:10]))

    monkeypatch.setattr(Path, "stat", stat_of_another)
    assert changeable_by_others(tmp_path) == f"{tmp_path} belongs to another user"
