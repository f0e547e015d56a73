"""Every error is a problem after RFC 9457; who may ask, and how much may be sent."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from provisioning.http.guard import base_url
from provisioning.http.limits import BODY_LIMITS, BodyLimits, limit_of
from provisioning.http.problems import add_error_handlers
from tests.unit.http.managed import INSTANCES, Managed

TOKEN = "x-ms-continuation-token"
OWN = "http://127.0.0.1:8470"


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert set(found) == {"type", "title", "status", "detail", "instance"}
    assert found["status"] == status
    return found


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "title"),
    [
        ("GET", "/nowhere", 404, "about:blank", "Not Found"),
        ("GET", "/docs/nothing.js", 404, "about:blank", "Not Found"),
        ("PATCH", "/api/runs", 405, "about:blank", "Method Not Allowed"),
        ("GET", f"{INSTANCES}/none", 404, "urn:muster:problem:unknown-instance", "Unknown instance"),
        ("GET", f"{INSTANCES}?top=x", 400, "urn:muster:problem:invalid-request", "Invalid request"),
        ("GET", "/api/devices?limit=0", 422, "urn:muster:problem:invalid-request", "Invalid request"),
    ],
)
async def test_a_problem_has_all_that_the_rfc_names(
    embedded: Managed, method: str, path: str, status: int, kind: str, title: str
) -> None:
    found = problem_of(await embedded.client.request(method, path), status)
    assert (found["type"], found["title"]) == (kind, title)
    assert found["instance"] == path.partition("?")[0]


async def test_a_call_that_is_not_allowed_says_what_is(embedded: Managed) -> None:
    answer = await embedded.client.put(f"{INSTANCES}/x")
    problem_of(answer, 405)
    assert answer.headers["allow"] == "DELETE, GET"


@pytest.mark.parametrize("body", [b"{", b"[", b"\xff", b'{"device_ids": ["\\ud800"]}', b"[" * 100_000])
async def test_what_can_not_be_read_is_a_problem_too(embedded: Managed, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await embedded.client.post("/api/provision", content=body, headers=headers)
    assert answer.status_code in (400, 422, 500)
    if answer.status_code == 500:  # the double has no provisioning: it was understood
        assert "device_ids" in body.decode()
    problem_of(answer, answer.status_code)


async def test_a_defect_is_a_problem_without_its_details(
    embedded: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(embedded.engine.client, "get_orchestration_state", broken)
    found = problem_of(await embedded.client.get(f"{INSTANCES}/x"), 500)
    assert found["title"] == "Internal error"
    assert "KeyError" in found["detail"]
    assert "a secret" not in found["detail"]


async def test_characters_that_are_no_unicode_are_quoted(embedded: Managed) -> None:
    headers = {"content-type": "application/json"}
    body = b'{"a": "\\ud800"}'
    answer = await embedded.client.post("/api/orchestrators/Wait/w-1", content=body, headers=headers)
    assert answer.status_code == 202
    assert (await embedded.client.get(f"{INSTANCES}/w-1")).json()["input"] == {"a": "\ud800"}
    refused = await embedded.client.post("/api/provision", content=b'{"\\ud800": 1}', headers=headers)
    assert "unicode" in problem_of(refused, 422)["detail"]
    token = base64.urlsafe_b64encode(b"9|x").decode()
    quoted = await embedded.client.get(f"{INSTANCES}?runtimeStatus=%ED%A0%80", headers={TOKEN: token})
    assert "is none" in problem_of(quoted, 400)["detail"]


# Who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "127.0.0.2", "[::2]:80", "x"]
)
async def test_by_another_name_nobody_is_known(embedded: Managed, host: str) -> None:
    answer = await embedded.client.post("/api/orchestrators/Greet", headers={"host": host})
    assert answer.status_code == 401
    assert host not in answer.text


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://[::1",
        "http://localhost.evil",
        "http://localhost",
        "http://localhost:7072",
        "http://127.0.0.1:x",
    ],
)
async def test_pages_from_elsewhere_are_refused(embedded: Managed, origin: str) -> None:
    answer = await embedded.client.get(INSTANCES, headers={"origin": origin})
    assert problem_of(answer, 403)["title"] == "Forbidden origin"


@pytest.mark.parametrize("origin", ["http://localhost:7071", "http://127.0.0.1:7071", "http://[::1]:7071"])
async def test_pages_of_the_service_itself_may_ask(embedded: Managed, origin: str) -> None:
    answer = await embedded.client.get(INSTANCES, headers={"origin": origin})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LocalHost:8470", "[::1]:8470"])
async def test_urls_have_the_name_that_the_caller_has_for_the_service(embedded: Managed, host: str) -> None:
    answer = await embedded.client.post("/api/orchestrators/Wait", headers={"host": host})
    assert answer.json()["statusQueryGetUri"].startswith(f"http://{host.lower()}{INSTANCES}/")
    polled = await embedded.client.get(answer.headers["location"], headers={"host": host})
    assert polled.headers["location"].startswith(f"http://{host.lower()}{INSTANCES}/")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost/../x",
        "localhost:1@evil.example",
        "localhost:",
        "localhost:99999999",
        "",
        "a b",
    ],
)
def test_no_other_name_is_repeated(host: str) -> None:
    scope = {"type": "http", "scheme": "http", "headers": [(b"host", host.encode())]}
    assert base_url(scope, OWN) == OWN
    assert base_url({**scope, "headers": []}, OWN) == OWN


# How much may be sent


@pytest.fixture
async def limited() -> AsyncIterator[httpx.AsyncClient]:
    """An application that counts what it is sent; 10 bytes may be, and 100 below /files."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def count(request: Request) -> int:
        return len(await request.body())

    add_error_handlers(app)
    app.add_middleware(BodyLimits, limits={"/": 10, "/files": 100, "/files/small": 5})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size):
        yield b"x"


@pytest.mark.parametrize("streamed", [False, True], ids=["with its length", "without"])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/any", 10, 200),
        ("/any", 11, 413),
        ("/files", 100, 200),
        ("/files/a", 101, 413),
        ("/files/small", 5, 200),
        ("/files/small", 6, 413),
    ],
)
async def test_a_body_has_a_limit_by_its_path(
    limited: httpx.AsyncClient, path: str, size: int, status: int, streamed: bool
) -> None:
    answer = await limited.post(path, content=in_pieces(size) if streamed else b"x" * size)
    if status == 200:
        assert (answer.status_code, answer.json()) == (200, size)
    else:
        found = problem_of(answer, 413)
        assert found["title"] == "Request too large"
        assert "bytes at most" in found["detail"]


async def test_a_length_that_lies_is_found_out(limited: httpx.AsyncClient) -> None:
    answer = await limited.post("/any", content=in_pieces(11), headers={"content-length": "3"})
    problem_of(answer, 413)
    answer = await limited.post("/any", content=b"", headers={"content-length": "9" * 5_000})
    problem_of(answer, 413)


def test_every_path_has_a_limit() -> None:
    assert limit_of("/anything") == BODY_LIMITS["/"] == 16 * 1024 * 1024


async def test_an_api_call_larger_than_its_limit_is_refused_before_it_is_read(embedded: Managed) -> None:
    length = str(BODY_LIMITS["/"] + 1)
    answer = await embedded.client.post(
        "/api/orchestrators/Greet", content=b"", headers={"content-length": length}
    )
    assert json.loads(answer.text)["status"] == 413
