"""`muster enrolment …`: against the fake service, and tokens from a group key."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest

from broker.identity import check_token, device_key, expiry_of, make_token
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService

GROUP_KEY = bytes(range(32))
NOW = 1_800_000_000.0


@pytest.fixture
def group_key(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    state_dir.mkdir(exist_ok=True)
    (state_dir / "group.key").write_text(base64.b64encode(GROUP_KEY).decode())
    monkeypatch.setattr("provisioning.cli.enrolment.tokens.now", lambda: NOW)
    return GROUP_KEY


def test_devices_are_enrolled_revoked_and_restored(service: FakeService, muster: Muster) -> None:
    assert muster("enrolment", "add", "a", "b", "c").out == "3 devices enrolled\n"
    assert muster("enrolment", "add", "a").out == ("0 devices enrolled; 1 device had an enrolment already\n")
    assert muster("enrolment", "revoke", "a", "c").out == "a, c revoked\n"
    assert muster("enrolment", "revoke", "a").out == "nothing has changed: that was so already\n"
    assert "a is revoked since" in muster("enrolment", "show", "a").out
    assert muster("enrolment", "restore", "a").out == "a restored\n"
    assert "a is enrolled since" in muster("enrolment", "show", "a").out


def test_all_pages_are_listed_and_programs_get_json(service: FakeService, muster: Muster) -> None:
    muster("enrolment", "add", "a", "b", "c", "d", "e")
    muster("enrolment", "revoke", "b")
    lines = muster("enrolment", "list").out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [name, "revoked" if name == "b" else "enrolled", "operator"] for name in "abcde"
    ]
    listed = json.loads(muster("enrolment", "list", "--revoked", "--json").out)["enrolments"]
    assert [one["device_id"] for one in listed] == ["b"]
    assert json.loads(muster("enrolment", "revoke", "--json", "c").out)["changed"] == ["c"]


def test_a_token_is_the_one_of_the_devices_period(group_key: bytes, muster: Muster) -> None:
    token = muster("enrolment", "token", "meter-1").out.strip()
    key = muster("enrolment", "token", "meter-1", "--key").out.strip()
    assert key == device_key(group_key, "meter-1")
    checked = check_token(token, device_id="meter-1", key=key, now=NOW)
    assert checked.expires_at == expiry_of("meter-1", now=NOW)
    told = json.loads(muster("enrolment", "token", "meter-1", "--json").out)
    assert (told["username"], told["client_id"], told["token"]) == ("meter-1", "meter-1", token)


@pytest.mark.parametrize(
    ("device_id", "ends", "code", "said"),
    [
        ("meter-1", 0, 0, "the token is good until 2027-"),
        ("meter-1", 60, 0, "Mosquitto takes the present period's alone"),
        ("meter-2", 0, 1, "refused (foreign)"),
        ("meter-1", -10_000_000, 1, "refused (expired)"),
    ],
)
def test_a_token_is_checked(
    group_key: bytes,
    muster: Muster,
    monkeypatch: pytest.MonkeyPatch,
    device_id: str,
    ends: int,
    code: int,
    said: str,
) -> None:
    expires_at = expiry_of("meter-1", now=NOW) + ends
    token = make_token(device_key(group_key, device_id), device_id, expires_at)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    result = muster("enrolment", "token", "meter-1", "--check")
    assert (result.exit_code, said in result.out, token in result.out) == (code, True, False), result.out


def test_what_can_be_no_device_or_has_no_group_key_is_told(state_dir: Path, muster: Muster) -> None:
    assert "can't be a device" in muster("enrolment", "token", "../x").error_line
    assert "a service makes one at its first start" in muster("enrolment", "token", "meter-1").error_line
    assert "say what to do: add, list, show" in muster("enrolment").error_line
