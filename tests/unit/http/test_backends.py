"""What a Durable Task backend elsewhere may not have, and what happens to it on the way."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from tests.backend import Backend
from tests.unit.http.managed import INSTANCES, Managed


class Refusal(grpc.aio.AioRpcError):
    """What a backend answers."""

    def __init__(self, code: grpc.StatusCode, details: str = "no") -> None:
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def refuse(remote: Managed, monkeypatch: pytest.MonkeyPatch, method: str, code: grpc.StatusCode) -> None:
    engine: Any = remote.engine

    async def refused(*_: Any, **__: Any) -> None:
        raise Refusal(code)

    monkeypatch.setattr(engine._sdk.client, method, refused)


CALLS = [
    ("get_orchestration_history", "GET", "/t-1?showHistory=true", "histories to be read"),
    ("rewind_orchestration", "POST", "/t-1/rewind", "rewind"),
    ("restart_orchestration", "POST", "/t-1/restart", "restart"),
    ("purge_orchestration", "DELETE", "/t-1", "purge"),
    ("purge_orchestrations_by", "DELETE", "?createdTimeFrom=2020-01-01", "purge by filter"),
    ("suspend_orchestration", "POST", "/w-1/suspend", "suspension"),
    ("resume_orchestration", "POST", "/w-1/resume", "suspension"),
    ("terminate_orchestration", "POST", "/w-1/terminate", "termination"),
]


@pytest.mark.parametrize(("method", "verb", "path", "what"), CALLS)
async def test_what_a_backend_has_not_got_is_a_501_that_says_so(
    remote: Managed, monkeypatch: pytest.MonkeyPatch, method: str, verb: str, path: str, what: str
) -> None:
    await remote.ended("t-1", "it", name="Try")
    await remote.start("Wait", "w-1")
    refuse(remote, monkeypatch, method, grpc.StatusCode.UNIMPLEMENTED)
    answer = await remote.client.request(verb, f"{INSTANCES}{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (501, "application/problem+json")
    found = answer.json()
    assert found["type"] == "urn:muster:problem:not-supported-by-the-engine"
    assert f"has no {what}" in found["detail"]


@pytest.mark.parametrize(("method", "verb", "path", "what"), CALLS)
async def test_a_status_that_the_backend_objects_to_is_a_412(
    remote: Managed, monkeypatch: pytest.MonkeyPatch, method: str, verb: str, path: str, what: str
) -> None:
    await remote.ended("t-1", "it", name="Try")
    await remote.start("Wait", "w-1")
    refuse(remote, monkeypatch, method, grpc.StatusCode.FAILED_PRECONDITION)
    answer = await remote.client.request(verb, f"{INSTANCES}{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (412, "application/problem+json")


async def test_what_the_backend_takes_for_nonsense_is_a_400(
    remote: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(remote, monkeypatch, "schedule_new_orchestration", grpc.StatusCode.INVALID_ARGUMENT)
    answer = await remote.client.post("/api/orchestrators/Wait/w-1")
    assert (answer.status_code, answer.json()["detail"]) == (400, "This can't be started: no.")


async def test_a_backend_that_is_away_is_a_503(remote: Managed, backend: Backend) -> None:
    await remote.start("Wait", "w-1")
    backend.stop()
    for path in (f"{INSTANCES}/w-1", INSTANCES):
        answer = await remote.client.get(path)
        assert (answer.status_code, answer.json()["title"]) == (503, "Engine away")
