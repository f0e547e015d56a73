"""`muster token`, and what clients say of tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from provisioning.cli import arguments
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeProblemError, FakeService
from tests.unit.http.elsewhere import own_address

TOKEN = "a-token-of-forty-three-characters-or-so-0001"


def test_a_token_is_shown_and_is_the_same_until_another_is_made(muster: Muster, state_dir: Path) -> None:
    shown = muster("token", "show")
    assert (shown.exit_code, shown.err) == (0, "")
    token = shown.out.strip()
    assert (state_dir / "api.token").read_text().strip() == token
    assert muster("token", "show").out.strip() == token
    as_json = json.loads(muster("token", "show", "--json").out)
    assert as_json == {"token": token, "access": "full", "source": str(state_dir / "api.token")}
    assert not (state_dir / "api-read.token").exists()
    read = json.loads(muster("token", "show", "--read-only", "--json").out)
    assert read["access"] == "read"
    assert read["token"] not in (token, "")
    rotated = muster("token", "rotate").out.strip()
    assert rotated != token
    assert muster("token", "show").out.strip() == rotated
    assert muster("token", "show", "--read-only").out.strip() == read["token"]


def test_a_token_that_was_given_is_not_changed_here(
    muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_API_TOKEN", TOKEN)
    assert muster("token", "show").out.strip() == TOKEN
    refused = muster("token", "rotate")
    assert refused.exit_code == 2
    assert "MUSTER_API_TOKEN" in refused.error_line
    assert TOKEN not in refused.error_line
    assert muster("token", "rotate", "--read-only").exit_code == 0
    monkeypatch.delenv("MUSTER_API_TOKEN")
    path = tmp_path / "given"
    path.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("MUSTER_API_TOKEN_FILE", str(path))
    assert json.loads(muster("token", "show", "--json").out)["source"] == str(path)
    assert muster("token", "rotate").exit_code == 2


def test_nobody_s_token_is_shown_to_whom_another_user_names(
    muster: Muster, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = service.state_dir / "service.json"
    monkeypatch.setenv("MUSTER_API_TOKEN", TOKEN)
    if os.geteuid() == 0:
        os.chown(record, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: record.stat().st_uid + 1)
    refused = muster("devices")
    assert refused.exit_code == 2
    assert "belongs to another user" in refused.error_line
    assert not service.requests


def test_a_process_of_another_user_is_no_service_of_ours(
    muster: Muster, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir.mkdir(exist_ok=True)
    (state_dir / "service.json").write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:9"}))

    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert "is gone" in muster("devices").error_line


def test_a_token_that_is_too_short_is_refused_by_every_command(
    muster: Muster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_API_TOKEN", "hunter2")
    for argv in (("token", "show"), ("devices",), ("up",)):
        refused = muster(*argv)
        assert refused.exit_code == 2
        assert "MUSTER_API_TOKEN is no token: it needs 32" in refused.error_line
        assert "hunter2" not in refused.error_line


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (FakeProblemError(401, "A token is needed."), "needs a token: set MUSTER_API_TOKEN"),
        (FakeProblemError(403, "The token that was sent may only read."), "may only read"),
    ],
)
def test_what_the_service_refuses_is_said_with_the_remedy(
    muster: Muster,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    problem: FakeProblemError,
    words: str,
) -> None:
    def refusing(*_: object) -> None:
        raise problem

    monkeypatch.setattr(service, "_route", refusing)
    for argv in (("devices",), ("provision",), ("watch", "--json"), ("report", "--out", "-")):
        refused = muster(*argv)
        assert refused.exit_code == 1, argv
        assert words in refused.error_line


def test_a_token_that_goes_in_the_clear_is_told_once(muster: Muster, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments._warn_once.cache_clear()
    monkeypatch.setenv("MUSTER_API_TOKEN", TOKEN)
    # Nobody listens there: it is told before.
    url = f"http://{own_address()}:1"
    assert f"the token goes to {url} in the clear" in muster("devices", "--url", url).err
    assert "in the clear" not in muster("devices", "--url", url).err
    assert "in the clear" not in muster("devices", "--url", "http://127.0.0.1:1").err
    assert "in the clear" not in muster("devices", "--url", "https://127.0.0.1:1").err
