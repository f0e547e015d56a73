"""Who may ask the API from where, with what; and that nobody else learns anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioning.api import create_api
from provisioning.api_tokens import Token, Tokens, rotate_token
from provisioning.http.access import FAILURE_BURST, REQUEST_BURST, Access
from provisioning.http.guard import base_url
from provisioning.http.security_headers import SECURITY_HEADERS
from provisioning.http.sessions import MAX_ENDED, SESSION_S

FULL = "full-token-of-thirty-two-characters-or-more"
READ = "read-token-of-thirty-two-characters-or-more"
ELSEWHERE = ("198.51.100.9", 50_000)
HERE = ("127.0.0.1", 50_000)
OWN = "http://muster.example:8470"
BEARER = {"authorization": f"Bearer {FULL}"}


class Backend:
    """As much of a service as answers some calls."""

    url = "http://127.0.0.1:8470"
    provisioned = 0

    async def health(self) -> dict[str, Any]:
        return {"status": "ok"}

    async def list_runs(self) -> list[Any]:
        return []

    async def statistics(self) -> dict[str, Any]:
        raise KeyError("a defect")

    async def provision(self, *_: Any) -> dict[str, Any]:
        self.provisioned += 1
        return {"run_id": "run-1"}


class World:
    """An API, its clock, and clients of it."""

    def __init__(self, state_dir: Path, *, token_needed: bool = True) -> None:
        self.now = 1_000.0
        self.path = state_dir / "api.token"
        self.path.write_text(FULL)
        self.backend = Backend()
        self.access = Access(
            Tokens(full=Token(path=self.path), read=Token(fixed=READ)),
            token_needed=token_needed,
            clock=lambda: self.now,
        )
        self.app = create_api(cast(Any, self.backend), self.access)

    @asynccontextmanager
    async def client(
        self, peer: tuple[str, int] = ELSEWHERE, base_url: str = OWN, **headers: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, client=peer, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
            yield client


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def near(tmp_path: Path) -> World:
    """A service that listens on loopback, where nobody needs a token."""
    return World(tmp_path, token_needed=False)


def routes(world: World) -> Iterator[tuple[set[str], str]]:
    """Every route: its methods, and its path."""
    found = list(world.app.routes)
    while found:
        route = found.pop()
        inner = getattr(route, "original_router", route)
        found += getattr(inner, "routes", None) or []
        if methods := getattr(route, "methods", None):
            yield methods, getattr(route, "path", "")


def calls(world: World) -> list[tuple[str, str]]:
    """Every route with each of its methods."""
    return [(method, path) for methods, path in routes(world) for method in sorted(methods)]


def _seen(answer: httpx.Response) -> tuple[Any, ...]:
    return answer.status_code, tuple(answer.headers.multi_items()), answer.content


# Who has no token


async def test_whatever_is_asked_without_a_token_the_answer_is_the_same(world: World) -> None:
    others = [
        ("GET", "/nowhere"),
        ("POST", "/login"),
        ("OPTIONS", "/api/runs"),
        ("TRACE", "/"),
        ("BREW", "/api/runs"),
        ("GET", "/page/main.js"),
        ("GET", "/docs/swagger-ui.css"),
        ("GET", "/API/Runs/"),
        ("GET", "/api/devices?limit=wrong"),
    ]
    asked = [*calls(world), *others]
    assert {("GET", "/"), ("GET", "/metrics"), ("GET", "/docs"), ("POST", "/api/provision")} <= set(asked)
    async with world.client() as client:
        answers = {_seen(await client.request(method, path)) for method, path in asked if method != "HEAD"}
        length = {"content-length": str(10**12)}
        answers.add(_seen(await client.post("/api/provision", content=b"", headers=length)))
        answers.add(_seen(await client.get("/", headers={"host": "evil.example", "origin": "null"})))
    ((status, headers, content),) = answers
    assert status == 401
    assert ("www-authenticate", "Bearer") in headers
    assert b"uster" not in content
    assert not {name for name, _ in headers} & {"server", "allow", "set-cookie", "etag"}
    assert world.backend.provisioned == 0


@pytest.mark.parametrize("target", ["*", "http://evil.example/api/runs"])
async def test_a_target_that_is_no_path_is_no_call_and_no_defect(world: World, target: str) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": target,
        "raw_path": target.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("muster.example", 8470),
        "headers": [(b"host", b"muster.example"), (b"authorization", f"Bearer {FULL}".encode())],
        "client": ELSEWHERE,
    }
    await world.app(scope, receive, send)
    assert sent[0]["status"] == 404


async def test_a_body_is_not_read_before_it_is_known_who_sends_it(world: World) -> None:
    read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"{}"

    transport = world.app
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal read
        read = True
        return {"type": "http.request", "body": b"{}", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/provision",
        "raw_path": b"/api/provision",
        "query_string": b"",
        "headers": [(b"host", b"x")],
        "client": ELSEWHERE,
    }
    await transport(scope, receive, send)
    assert sent[0]["status"] == 401
    assert not read


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {FULL}x"},
        {"authorization": f"Bearer {FULL[:-1]}"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {FULL}"},
        {"authorization": FULL},
        {"x-functions-key": "wrong"},
        {"cookie": f"muster-session-8470={FULL}"},
        {"cookie": "muster-session-8470=full.99999999999.x.0"},
    ],
)
async def test_what_is_no_token_is_answered_like_none(world: World, headers: dict[str, str]) -> None:
    async with world.client() as client:
        wrong = await client.get("/api/health", headers=headers)
        assert _seen(wrong) == _seen(await client.get("/api/health"))


async def test_a_token_in_a_query_is_none(world: World) -> None:
    async with world.client() as client:
        for name in ("code", "token", "access_token"):
            assert (await client.get("/api/health", params={name: FULL})).status_code == 401


async def test_two_tokens_are_none(world: World) -> None:
    async with world.client() as client:
        twice = [("authorization", f"Bearer {FULL}"), ("authorization", f"Bearer {FULL}")]
        assert (await client.get("/api/health", headers=twice)).status_code == 401


# Who has one


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {FULL}"},
        {"authorization": f"bearer   {FULL}"},
        {"x-functions-key": FULL},
        {"authorization": "Basic eDp5", "x-functions-key": FULL},
        {**BEARER, "host": "whatever.example"},
        {**BEARER, "x-forwarded-for": "192.0.2.1"},
    ],
)
@pytest.mark.parametrize("peer", [ELSEWHERE, HERE])
async def test_who_has_the_token_may_do_everything(
    world: World, peer: tuple[str, int], headers: dict[str, str]
) -> None:
    async with world.client(peer) as client:
        assert (await client.get("/api/health", headers=headers)).json() == {"status": "ok"}
        started = await client.post("/api/provision", json={}, headers=headers)
        assert started.status_code == 202


async def test_the_read_only_token_changes_nothing(world: World) -> None:
    async with world.client(authorization=f"Bearer {READ}") as client:
        assert (await client.get("/api/health")).status_code == 200
        refused = 0
        for method, path in calls(world):
            if method not in ("GET", "HEAD"):
                answer = await client.request(method, path, json={})
                assert answer.status_code == (204 if path == "/logout" else 403), (method, path)
                refused += answer.status_code == 403
        assert refused > 15
        for method in ("OPTIONS", "PUT", "BREW"):
            assert (await client.request(method, "/api/runs")).status_code == 403
        answer = await client.post("/api/provision", json={})
        assert answer.json()["title"] == "Read only"
        assert "muster token show" in answer.json()["detail"]
        hidden = {"x-http-method-override": "POST"}
        assert (await client.get("/api/provision", headers=hidden)).status_code == 405
    assert world.backend.provisioned == 0


async def test_urls_have_the_name_by_which_who_has_a_token_calls(world: World) -> None:
    found: list[str] = []

    @world.app.get("/base")
    async def base(request: Request) -> None:
        found.append(base_url(request.scope, "http://127.0.0.1:8470"))

    async with world.client(authorization=f"Bearer {FULL}") as client:
        for host in ("muster.example", "[2001:db8::1]:8470", "evil.example/x", "a b"):
            await client.get("/base", headers={"host": host})
    own = "http://127.0.0.1:8470"
    assert found == ["http://muster.example", "http://[2001:db8::1]:8470", own, own]


async def test_after_another_token_was_made_the_old_one_is_none(world: World) -> None:
    async with world.client(authorization=f"Bearer {FULL}") as client:
        assert (await client.get("/api/health")).status_code == 200
        new = rotate_token(world.path)
        assert (await client.get("/api/health")).status_code == 401
        again = await client.get("/api/health", headers={"authorization": f"Bearer {new}"})
        assert again.status_code == 200


# This machine


async def test_on_this_machine_no_token_is_needed_where_nobody_else_is_let_in(near: World) -> None:
    async with near.client(HERE, "http://127.0.0.1:8470") as client:
        assert (await client.get("/api/health")).status_code == 200
        assert (await client.get("/api/health", headers={"authorization": "Bearer old"})).status_code == 200
        session = (await client.get("/api/session")).json()
        assert session == {"access": "full", "by": "loopback", "ends_in_s": None}


@pytest.mark.parametrize("peer", [ELSEWHERE, ("::ffff:198.51.100.9", 1), ("testclient", 1)])
async def test_whoever_is_not_on_this_machine_needs_one_all_the_same(
    near: World, peer: tuple[str, int]
) -> None:
    async with near.client(peer, "http://127.0.0.1:8470") as client:
        assert (await client.get("/api/health")).status_code == 401
        assert (await client.get("/api/health", headers=BEARER)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-port": "443"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
        {"x-real-ip": "127.0.0.1"},
        {"host": "muster.example"},
    ],
)
async def test_who_comes_by_a_proxy_on_this_machine_needs_one(near: World, headers: dict[str, str]) -> None:
    async with near.client(HERE, "http://127.0.0.1:8470", **headers) as client:
        assert (await client.get("/api/health")).status_code == 401
        assert (await client.get("/api/health", headers=BEARER)).status_code == 200


async def test_where_others_are_let_in_this_machine_needs_one_too(world: World) -> None:
    async with world.client(HERE, "http://127.0.0.1:8470") as client:
        assert (await client.get("/api/health")).status_code == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_nothing_is_loaded_from_here_into_the_page_of_another(near: World, site: str) -> None:
    async with near.client(HERE, "http://127.0.0.1:8470") as client:
        loaded = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert (await client.get("/api/events", headers=loaded)).status_code == 403
        linked = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert (await client.get("/", headers=linked)).status_code == 200
        assert (await client.post("/api/provision", json={}, headers=linked)).status_code == 403


async def test_a_form_is_no_call(near: World) -> None:
    own = {"origin": "http://127.0.0.1:8470"}
    async with near.client(HERE, "http://127.0.0.1:8470") as client:
        for content_type in ("text/plain", "application/x-www-form-urlencoded;charset=utf-8"):
            headers = {**own, "content-type": content_type}
            assert (await client.post("/api/provision", content="{}", headers=headers)).status_code == 415
        # Whoever sends no origin is no browser: curl calls everything a form.
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert (await client.post("/api/provision", content="{}", headers=headers)).status_code == 422
    assert near.backend.provisioned == 0


# Sessions


async def log_in(client: httpx.AsyncClient, token: str = FULL, **headers: str) -> httpx.Response:
    return await client.post("/login", data={"token": token}, headers={"origin": OWN, **headers})


async def test_a_browser_logs_in_and_out(world: World) -> None:
    async with world.client(accept="text/html,*/*;q=0.8") as client:
        page = await client.get("/")
        assert page.status_code == 401
        assert '<form method="post" action="/login">' in page.text
        assert "uster" not in page.text
        answer = await log_in(client)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "Path=/", "SameSite=strict", f"Max-Age={SESSION_S}"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert FULL not in cookie
        assert '<script type="module" src="/page/main.js">' in (await client.get("/")).text
        session = (await client.get("/api/session")).json()
        assert session == {"access": "full", "by": "session", "ends_in_s": SESSION_S}
        kept = dict(client.cookies)
        out = await client.post("/logout", headers={"origin": OWN})
        assert out.status_code == 204
        assert not client.cookies
        client.cookies.update(kept)
        assert (await client.get("/api/session")).status_code == 401


async def test_a_log_in_that_the_service_does_not_live_to_see_is_refused_like_all_else(world: World) -> None:
    reading = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        reading.set()
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "x", "origin": "http://x", "content-type": "application/x-www-form-urlencoded"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/login",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ELSEWHERE,
    }
    call = asyncio.create_task(world.app(scope, receive, send))
    await reading.wait()
    call.cancel()
    await call
    assert sent[0]["status"] == 401
    assert b"uster" not in sent[1]["body"]


async def test_another_services_cookie_of_the_same_name_shuts_nobody_out(world: World) -> None:
    async with world.client() as client:
        await log_in(client)
        ((name, value),) = client.cookies.items()
    async with world.client(cookie=f"{name}=another's; {name}={value}") as client:
        assert (await client.get("/api/session")).json()["by"] == "session"
    async with world.client(cookie=f"{name}=another's; {name}=") as client:
        assert (await client.get("/api/session")).status_code == 401


@pytest.mark.parametrize("headers", [{"origin": "https://muster.example:8470"}])
async def test_by_tls_the_cookie_is_for_tls_alone(world: World, headers: dict[str, str]) -> None:
    async with world.client() as client:
        assert "Secure" in (await log_in(client, **headers)).headers["set-cookie"]
    async with world.client(base_url="https://muster.example:8470") as client:
        answer = await log_in(client, origin="https://muster.example:8470")
        assert "Secure" in answer.headers["set-cookie"]


async def test_a_session_ends_in_time_with_its_token_and_with_the_service(world: World) -> None:
    async with world.client() as client:
        await log_in(client)
        world.now += SESSION_S - 1
        assert (await client.get("/api/session")).json()["ends_in_s"] == 1
        world.now += 1
        assert (await client.get("/api/session")).status_code == 401
        await log_in(client)
        assert (await client.get("/api/session")).status_code == 200
        other = Access(Tokens(full=Token(path=world.path), read=Token()), token_needed=True)
        (value,) = client.cookies.values()
        assert other.sessions.find(value) is None
        rotate_token(world.path)
        assert (await client.get("/api/session")).status_code == 401


async def test_sessions_that_were_ended_are_not_remembered_without_bound(world: World) -> None:
    sessions = world.access.sessions
    first = sessions.find(sessions.begin("full") or "")
    assert first is not None
    for _ in range(MAX_ENDED + 2):
        session = sessions.find(sessions.begin("full") or "")
        assert session is not None
        sessions.end(session)
    assert len(sessions._ended) <= MAX_ENDED


async def test_the_session_of_the_read_only_token_may_only_read_and_end(world: World) -> None:
    async with world.client(origin=OWN) as client:
        await log_in(client, READ)
        assert (await client.get("/api/session")).json()["access"] == "read"
        assert (await client.post("/api/provision", json={})).json()["title"] == "Read only"
        assert (await client.post("/logout")).status_code == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": OWN}, 202),
        ({"sec-fetch-site": "same-origin"}, 202),
        ({"origin": "https://hidden.example", "sec-fetch-site": "same-origin"}, 202),
        ({}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://muster.example:9999"}, 403),
        ({"origin": "http://muster.example"}, 403),
        ({"origin": "http://muster.example.evil:8470"}, 403),
        ({"origin": "http://localhost:8470"}, 403),
        ({"origin": "ftp://muster.example:8470"}, 403),
        ({"origin": f"{OWN}, {OWN}"}, 403),
    ],
)
async def test_what_a_session_changes_must_come_from_its_own_page(
    world: World, headers: dict[str, str], status: int
) -> None:
    async with world.client() as client:
        await log_in(client)
        answer = await client.post("/api/provision", json={}, headers=headers)
        assert answer.status_code == status
        assert world.backend.provisioned == (1 if status == 202 else 0)


async def test_the_log_in_takes_no_other_page_s_form(world: World) -> None:
    async with world.client() as client:
        nothing = _seen(await client.get("/api/health"))
        for headers in ({"origin": "https://evil.example"}, {"content-type": "text/plain", "origin": OWN}):
            assert _seen(await log_in(client, **headers)) == nothing
        assert _seen(await client.post("/login", data={"token": FULL})) == nothing
        for content in (
            "token=wrong",
            "",
            "token=" + "x" * 10_000,
            "&" * 3_000,
            "token=%ff%00",
            "=;=",
            "token=%E2%82%AC",
        ):
            answer = await client.post(
                "/login",
                content=content,
                headers={"origin": OWN, "content-type": "application/x-www-form-urlencoded"},
            )
            assert answer.status_code == 401, content[:20]
            assert "That is no token" in answer.text
        assert not client.cookies


# How often


async def test_who_guesses_is_not_listened_to_for_a_while(world: World) -> None:
    async with world.client() as client, world.client(("203.0.113.7", 1)) as other:
        for _ in range(FAILURE_BURST):
            assert (await client.get("/api/health", headers={"authorization": "Bearer x"})).status_code == 401
        for answer in (await client.get("/api/health", headers=BEARER), await log_in(client)):
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 6
        assert (await other.get("/api/health", headers=BEARER)).status_code == 200
        world.now += 6
        assert (await client.get("/api/health", headers=BEARER)).status_code == 200


async def test_who_asks_too_often_waits(world: World, near: World) -> None:
    async with (
        world.client(authorization=f"Bearer {FULL}") as client,
        world.client(HERE, authorization=f"Bearer {FULL}") as here,
    ):
        for _ in range(REQUEST_BURST):
            await client.get("/nowhere")
        answer = await client.get("/api/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.get("/api/health", headers={"authorization": "x"})).content == answer.content
        for _ in range(REQUEST_BURST + 1):
            assert (await here.get("/api/health")).status_code == 200
        world.now += 1
        assert (await client.get("/api/health")).status_code == 200


# Headers of all answers


async def test_every_answer_has_the_headers_that_keep_browsers_safe(near: World) -> None:
    async with near.client(HERE, "http://127.0.0.1:8470") as client:
        answers = [
            await client.get("/api/health"),
            await client.get("/api/runs"),
            await client.get("/nowhere"),
            await client.get("/api/statistics"),  # a defect
            await client.put("/api/runs"),
            await client.post("/api/provision", content="{"),
            await client.get("/"),
            await client.get("/page/main.js"),
            await client.get("/docs"),
            await client.get("/docs/swagger-ui.css"),
            await client.get("/openapi.json"),
            await client.get("/api/health", headers={"host": "evil.example"}),
            await client.get("/api/health", headers={"origin": "https://evil.example"}),
            await client.post("/api/provision", headers={"content-length": str(10**12)}),
            await client.get("/", headers={"host": "evil.example", "accept": "text/html"}),
        ]
    assert {answer.status_code for answer in answers} >= {200, 401, 403, 404, 405, 413, 422, 500}
    for answer in answers:
        for name, value in SECURITY_HEADERS:
            assert len(answer.headers.get_list(name.decode())) == 1, (answer.url, name)
            if name not in (b"content-security-policy", b"cache-control", b"referrer-policy"):
                assert answer.headers[name.decode()] == value.decode()
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy or answer.url.path == "/docs"
        assert "server" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_other_origins_are_allowed_nothing(near: World, method: str) -> None:
    asked = {
        "origin": "https://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with near.client(HERE, "http://127.0.0.1:8470") as client:
        for headers in (asked, {**asked, **BEARER}, {**asked, "host": "muster.example"}):
            answer = await client.request(method, "/api/runs", headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert method != "OPTIONS" or answer.status_code in (401, 403, 405)


def test_what_reads_changes_nothing(world: World) -> None:
    """A session's cookie goes along where a link leads: what a GET did, any page could have done."""
    for methods, path in routes(world):
        assert methods <= {"GET", "HEAD"} or not methods & {"GET", "HEAD"}, path


TEXT = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255), max_size=60)
LIKELY = st.sampled_from(
    [
        f"Bearer {FULL}",
        "Bearer",
        "muster-session-8470=full.1.x.y",
        "read...",
        "http://[",
        "[::1]:99999",
        "null",
    ]
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.sampled_from(
            ["authorization", "cookie", "host", "origin", "sec-fetch-site", "x-functions-key", "content-type"]
        ),
        max_size=6,
    ),
    data=st.data(),
)
async def test_no_header_breaks_it(world: World, names: list[str], data: st.DataObject) -> None:
    world.now += 100
    headers = [(name.encode(), data.draw(LIKELY | TEXT).encode("latin-1")) for name in names]
    content = data.draw(st.binary(max_size=40))
    method = data.draw(st.sampled_from(["GET", "POST"]))
    path = data.draw(st.sampled_from(["/", "/login", "/logout", "/api/session", "/api/runs"]))
    async with world.client() as client:
        answer = await client.request(method, path, headers=headers, content=content)
    assert answer.status_code < 500
    if answer.status_code < 400:
        assert any(FULL.encode() in value for _, value in headers)


def test_a_service_without_a_backend_can_be_described() -> None:
    assert create_api(cast(Any, SimpleNamespace())).openapi()["paths"]["/api/session"]
