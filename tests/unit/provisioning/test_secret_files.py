"""Secrets come from a variable or from the file that another names, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisioning.errors import SettingsError
from provisioning.secret_files import MAX_SECRET_BYTES, secret_of

SECRET = "correct horse battery staple"


@pytest.mark.parametrize("values", [{}, {"NAME": ""}, {"NAME": "", "NAME_FILE": ""}])
def test_what_is_not_set_is_none(values: dict[str, str]) -> None:
    assert secret_of(values, "NAME") is None


def test_a_variable_holds_it_as_it_is() -> None:
    assert secret_of({"NAME": f"{SECRET}\n"}, "NAME") == f"{SECRET}\n"


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (SECRET, SECRET),
        (f"{SECRET}\n", SECRET),
        (f"{SECRET}\r\n", SECRET),
        (f" {SECRET}\n\n", f" {SECRET}\n"),
    ],
)
def test_of_a_file_one_line_end_is_taken_off(tmp_path: Path, content: str, secret: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert secret_of({"NAME_FILE": str(path)}, "NAME") == secret


def test_both_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NAME and NAME_FILE are both set") as refused:
        secret_of({"NAME": SECRET, "NAME_FILE": str(tmp_path / "x")}, "NAME")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is no text"),
        (b"x" * (MAX_SECRET_BYTES + 1), "more than 65,536 bytes"),
    ],
)
def test_a_file_without_a_secret_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as refused:
        secret_of({"NAME_FILE": str(path)}, "NAME")
    assert str(path) in str(refused.value)


def test_a_pipe_that_nobody_writes_to_is_empty_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="is empty"):
        secret_of({"NAME_FILE": str(tmp_path / "pipe")}, "NAME")


def test_what_is_piped_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, SECRET.encode())
    os.close(writing)
    assert secret_of({"NAME_FILE": f"/dev/fd/{reading}"}, "NAME") == SECRET
    os.close(reading)


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_can_not_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="NAME_FILE names"):
        secret_of({"NAME_FILE": str(tmp_path / name)}, "NAME")
