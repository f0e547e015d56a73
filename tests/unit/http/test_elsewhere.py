"""A service on an address that others can reach: its token, its certificate, and connections that are cut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api_settings import ApiSettings
from provisioning.api_tokens import Token, Tokens, rotate_token
from provisioning.cli.client import find_service
from provisioning.cli.errors import ApiError, ServiceNotRunningError
from provisioning.errors import SettingsError
from provisioning.http import serving
from provisioning.http.access import Access, Guarded
from provisioning.http.security_headers import SECURITY_HEADERS
from provisioning.http.serving import ABORT, Connection, Server, listen, url_of
from provisioning.service import Service
from tests.unit.http.elsewhere import own_address
from tests.unit.http.running import settings
from tests.unit.provisioning.fleet_doubles import Launcher


async def test_a_service_that_others_reach_is_asked_with_its_token_alone(tmp_path: Path) -> None:
    host = own_address()
    async with Service(settings(tmp_path, api=ApiSettings(host=host)), Launcher()) as service:
        assert service.url.startswith(f"http://{host}:")
        token_file = tmp_path / "api.token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        async with httpx.AsyncClient(base_url=service.url) as client:
            for path in ("/", "/api/health", "/docs", "/nowhere"):
                answer = await client.get(path)
                assert answer.status_code == 401
                assert "server" not in answer.headers
            token = token_file.read_text().strip()
            started = await client.get("/api/health", headers={"authorization": f"Bearer {token}"})
            assert started.status_code == 200
        found = find_service(tmp_path)
        assert (await asyncio.to_thread(found.health))["pid"]
        new = rotate_token(token_file)
        with pytest.raises(ApiError, match="does not take this token"):
            await asyncio.to_thread(found.health)
        assert (await asyncio.to_thread(find_service(tmp_path).health))["pid"]
        with pytest.raises(ApiError, match="needs a token: set MUSTER_API_TOKEN"):
            await asyncio.to_thread(find_service(tmp_path, service.url).health)
        given = find_service(tmp_path, service.url, api=ApiSettings(token=new))
        assert given.in_the_clear
        assert (await asyncio.to_thread(given.health))["pid"]


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of somebody's own making, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "muster.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


async def test_by_tls_the_state_directory_says_which_certificate_it_is(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    api = ApiSettings(host="0.0.0.0", certificate=cert, key=key)
    async with Service(settings(tmp_path, api=api), Launcher()) as service:
        assert service.url.startswith("https://127.0.0.1:")
        found = find_service(tmp_path)
        assert not found.in_the_clear
        assert (await asyncio.to_thread(found.health))["pid"]
        with pytest.raises(ServiceNotRunningError, match="SSL_CERT_FILE"):
            await asyncio.to_thread(find_service(tmp_path, service.url).health)


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no address of this machine"):
        listen("192.0.2.254", (0,))


def test_a_port_that_is_not_for_this_user_is_not_said_to_be_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serving._Listener, "bind", refused, raising=False)
    with pytest.raises(SettingsError, match=r"port 443 of 127\.0\.0\.1 \(Permission denied\)"):
        listen("127.0.0.1", (443,))


# Connections


async def reads_what_is_sent_to_read(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how many bytes it was sent, if they were sent to /read; else it does not look."""
    size, more = 0, scope["path"] == "/read"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await PlainTextResponse(f"{size}")(scope, receive, send)


@contextlib.asynccontextmanager
async def serving_on(
    host: str, app: ASGIApp = reads_what_is_sent_to_read, *, pair: tuple[Path, Path] | None = None
) -> AsyncIterator[tuple[str, int]]:
    """A server there, without a service; with a ``pair`` of certificate and key by TLS."""
    listener = listen(host, (0,))
    certificate_file, key_file = pair or (None, None)
    server = Server(app, last_calls_s=1, certificate=certificate_file, key=key_file)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield host, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


async def said(place: tuple[str, int], sent: bytes) -> bytes:
    """All that is answered before the connection is closed."""
    reader, writer = await asyncio.open_connection(*place)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(sent)
        received = await reader.read()
    writer.close()
    return received


@pytest.fixture
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("head_s", "body_idle_s", "linger_s", "write_stall_s"):
        monkeypatch.setattr(Connection, name, 0.1)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b""),
        (b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", b""),
        # Answered before its body is there: for the rest there is not much time.
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", b"HTTP/1.1 200"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b"HTTP/1.1 200"),
    ],
    ids=["nothing", "half a head", "half a body", "the rest of a body", "half a second head"],
)
@pytest.mark.usefixtures("short_of_patience")
async def test_a_connection_that_keeps_the_service_waiting_is_cut(sent: bytes, answered: bytes) -> None:
    async with serving_on("127.0.0.1") as place:
        received = await said(place, sent)
        assert received[: len(answered)] == answered
        assert answered or not received


async def test_each_byte_of_a_body_gives_it_time_anew() -> None:
    received = asyncio.Event()
    deadlines: list[float] = []

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["state"][ABORT].__self__.get_protocol()
        while (await receive()).get("more_body"):
            deadlines.append(connection._patience.when())
            received.set()
        await PlainTextResponse("all")(scope, receive, send)

    async with serving_on("127.0.0.1", reading) as place:
        reader, writer = await asyncio.open_connection(*place)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            received.clear()
            writer.write(b"x")
            if len(deadlines) < 4:
                await received.wait()
        assert (await reader.read()).endswith(b"all")
        writer.close()
    assert len(deadlines) >= 3
    assert deadlines == sorted(set(deadlines))


@pytest.mark.usefixtures("short_of_patience")
async def test_who_does_not_read_its_answers_is_cut() -> None:
    over = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        over.set()

    async with serving_on("127.0.0.1", endless) as place:
        _, writer = await asyncio.open_connection(*place)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await over.wait()
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"no http\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
    ],
    ids=["no http", "a long head", "no host", "tls"],
)
@pytest.mark.usefixtures("short_of_patience")
async def test_what_is_no_http_is_answered_with_the_same_headers(sent: bytes) -> None:
    async with serving_on("127.0.0.1") as place:
        received = await said(place, sent)
        if received:
            assert received.startswith(b"HTTP/1.1 400")
            assert all(name in received for name, _ in SECURITY_HEADERS)
            assert b"server:" not in received
        assert received or sent == b"\x16\x03\x01"


async def test_a_peer_elsewhere_has_so_many_connections_and_this_machine_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "MAX_PEER_CONNECTIONS", 3)
    host = own_address()
    async with serving_on(host) as place, serving_on("127.0.0.1") as near:
        opened = [await asyncio.open_connection(*place) for _ in range(3)]
        opened += [await asyncio.open_connection(*near) for _ in range(5)]
        for reader, writer in opened:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert await said(place, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()


async def test_who_begins_no_tls_takes_no_more_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_PEER_CONNECTIONS", 3)
    async with serving_on(own_address(), pair=certificate(tmp_path)) as place:
        silent = [await asyncio.open_connection(*place) for _ in range(3)]
        assert await said(place, b"") == b""
        for _, writer in silent:
            writer.close()


async def test_who_begins_no_tls_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_S", 0.1)
    async with serving_on("127.0.0.1", pair=certificate(tmp_path)) as place:
        assert await said(place, b"") == b""


@pytest.mark.parametrize("path", ["/", "/read"])
async def test_a_body_that_is_no_http_leaves_no_trace_in_the_log(
    caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with serving_on("127.0.0.1") as place:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        received = await said(place, f"{head}no chunk\r\n".encode())
        assert received.startswith(b"HTTP/1.1 400")
    assert not caplog.records


async def test_a_stream_ends_when_its_token_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    token = rotate_token(path)
    cut: list[bool] = []
    seen: list[bool] = []

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(4):
            if number == 2:
                rotate_token(path)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            seen.append(bool(cut))

    async def nothing(*_: Any) -> Any:
        return None

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/events",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "client": ("198.51.100.1", 1),
        "state": {ABORT: lambda: cut.append(True)},
    }
    access = Access(Tokens(full=Token(path=path), read=Token()), token_needed=True)
    await Guarded(streaming, access)(scope, nothing, nothing)
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:"),
        ("0.0.0.0", True, "https://127.0.0.1:"),
        ("::1", False, "http://[::1]:"),
    ],
)
def test_where_a_service_is_found_from_this_machine(host: str, tls: bool, url: str) -> None:
    with listen(host, (0,)) as listener:
        assert url_of(listener, tls=tls).startswith(url)
