"""A fake service, and `muster` as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provisioning.cli import main
from tests.unit.cli.fake_service import FakeService


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command did."""

    exit_code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line of stderr; fails the test where there are more, or none."""
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.rstrip("\n")


Muster = Callable[..., Result]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that commands use by default."""
    directory = tmp_path / "state"
    monkeypatch.setenv("MUSTER_STATE", str(directory))
    return directory


@pytest.fixture
def service(state_dir: Path) -> Iterator[FakeService]:
    with FakeService(state_dir) as fake:
        yield fake


@pytest.fixture
def muster(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Muster:
    """Run a command in this process: ``muster("devices", "--json")``."""

    def run(*argv: str) -> Result:
        capsys.readouterr()
        try:
            exit_code = main(argv)
        except SystemExit as stop:
            exit_code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Result(exit_code=exit_code, out=out, err=err)

    return run
