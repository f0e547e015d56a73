"""`muster key …`, and the flag that lets devices go back to an older version, against the fake service."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService


def test_keys_are_listed_replaced_and_retired(service: FakeService, muster: Muster) -> None:
    result = muster("key", "rotate")
    assert (result.exit_code, result.err) == (0, "")
    assert result.out.startswith("key-2 signs from now on")
    assert muster("key", "retire", "key-1").out.startswith("key-1 is retired")
    lines = muster("key", "list").out.splitlines()
    assert lines[0].split() == ["key", "state", "made", "retired", "public", "key"]
    assert [(line.split()[0], line.split()[1]) for line in lines[-2:]] == [
        ("key-1", "retired"),
        ("key-2", "signs"),
    ]
    assert lines[-1].endswith("public-key-2=")
    assert [request[:2] for request in service.requests] == [
        ("POST", "/api/keys"),
        ("DELETE", "/api/keys/key-1"),
        ("GET", "/api/keys"),
    ]


def test_a_key_is_made_before_it_signs(service: FakeService, muster: Muster) -> None:
    assert muster("key", "rotate", "--prepare").out == (
        "key-2 is trusted, and signs when you rotate: public-key-2=\n"
    )
    assert service.requests[-1][:2] == ("POST", "/api/keys?prepare=true")


def test_programs_get_json(service: FakeService, muster: Muster) -> None:
    assert json.loads(muster("key", "list", "--json").out) == {"keys": service.keys}
    assert json.loads(muster("key", "rotate", "--json").out) == service.keys[-1]
    assert json.loads(muster("key", "retire", "key-1", "--json").out) == service.keys[0]


@pytest.mark.usefixtures("service")
def test_what_is_refused_is_one_line(muster: Muster) -> None:
    result = muster("key", "retire", "key-1")
    assert result.exit_code != 0
    assert "make another one first" in result.error_line
    assert "list, rotate or retire" in muster("key").err


def test_a_run_and_a_rollout_may_bring_an_older_version(service: FakeService, muster: Muster) -> None:
    for argv in (("provision",), ("rollout", "create")):
        for flags, expected in (((), None), (("--allow-downgrade",), True)):
            service.add_device(f"dev-{len(service.devices)}")
            assert muster(*argv, *flags, "--json").exit_code == 0
            body = next(body for method, _, body in reversed(service.requests) if method == "POST")
            assert body is not None
            options = (body.get("plan") or body).get("options", {})
            assert options.get("allow_downgrade") == expected
