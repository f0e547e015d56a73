"""Releases over HTTP: uploads as they come, and what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from provisioning.api import create_api
from provisioning.http import limits
from provisioning.releases import firmware as firmware_module
from provisioning.releases import uploads
from provisioning.releases.firmware import FirmwareFiles
from provisioning.releases.records import ReleaseError
from provisioning.releases.store import Releases
from provisioning.releases.uploads import Form, read_form
from tests.unit.releases.making import add, files_in, releases_in

FIELDS = {"name": "fw-2", "version": "2.0"}
TYPE = "multipart/form-data; boundary=XX"


@pytest.fixture
async def releases(tmp_path: Path) -> AsyncIterator[Releases]:
    async with releases_in(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(releases: Releases) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(cast(Any, SimpleNamespace(releases=releases)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made:
        yield made


def body(*parts: tuple[str, bytes]) -> bytes:
    """Parts by their dispositions."""
    return (
        b"".join(
            b"--XX\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
            for head, content in parts
        )
        + b"--XX--\r\n"
    )


async def post(
    client: httpx.AsyncClient, firmware: bytes | None = b"firmware", **fields: Any
) -> httpx.Response:
    models = fields.pop("model", ())
    files: Any = [(name, (None, value)) for name, value in {**FIELDS, **fields}.items()]
    files += [("model", (None, model)) for model in models]
    if firmware is not None:
        files.append(("firmware", ("f.bin", firmware)))
    return await client.post("/api/releases", files=files)


async def test_a_release_is_added_shown_listed_and_removed(client: httpx.AsyncClient, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    answer = await post(
        client, content, model=["b", "a"], notes="für alle", configuration='{"id": "{device_id}"}'
    )
    release = answer.json()
    assert answer.status_code == 201
    assert release == {
        "name": "fw-2",
        "version": "2.0",
        "models": ["a", "b"],
        "firmware": {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)},
        "configuration": {"id": "{device_id}"},
        "notes": "für alle",
        "created_at": release["created_at"],
        "default": False,
    }
    assert (await client.get("/api/releases/fw-2")).json() == release
    listed = (await client.get("/api/releases")).json()["releases"]
    assert [(one["name"], one["default"]) for one in listed] == [("fw-2", False), ("demo-1.0.0", True)]
    assert (tmp_path / "releases" / f"{release['firmware']['sha256']}.bin").read_bytes() == content
    assert (await client.delete("/api/releases/fw-2")).json() == release
    assert (await client.get("/api/releases/fw-2")).status_code == 404
    assert files_in(tmp_path) == set()


async def test_the_same_again_is_200_and_another_content_409(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    assert (await post(client)).status_code == 201
    assert (await post(client)).status_code == 200
    refused = await post(client, b"other")
    assert (refused.status_code, refused.json()["title"]) == (409, "Release refused")
    assert "other content (firmware)" in refused.json()["detail"]
    assert len(files_in(tmp_path)) == 1


async def test_a_firmware_can_be_generated(client: httpx.AsyncClient) -> None:
    answer = await post(client, None, generated_size_bytes="1000")
    assert (answer.status_code, answer.json()["firmware"]["size_bytes"]) == (201, 1000)


@pytest.mark.parametrize(
    ("fields", "firmware", "words"),
    [
        ({"name": "a/b"}, b"x", "name: 'a/b' is no name of a release"),
        ({"version": ""}, b"x", "version: it is missing"),
        ({}, None, "firmware: it is missing; give a file, or generated_size_bytes"),
        ({}, b"", "firmware: it is empty"),
        ({"generated_size_bytes": "5"}, b"x", "firmware: generated_size_bytes is given too"),
        ({"generated_size_bytes": "many"}, None, "generated_size_bytes: 'many' is no size"),
        ({"modle": "m"}, b"x", "modle: there is no such part; send some of name, version, model"),
        ({"configuration": '{"a": "{tgs.x}"}'}, b"x", "configuration.a: there is no placeholder {tgs.x}"),
    ],
)
async def test_what_is_wrong_is_told_by_its_field(
    client: httpx.AsyncClient, tmp_path: Path, fields: dict[str, str], firmware: bytes | None, words: str
) -> None:
    answer = await post(client, firmware, **fields)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert files_in(tmp_path) == set()


async def test_a_firmware_that_is_too_large_is_refused_while_it_comes(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware_module, "MAX_FIRMWARE_BYTES", 1_000_000)
    answer = await post(client, b"x" * 3_000_000)
    assert (answer.status_code, answer.json()["title"]) == (413, "Firmware too large")
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("where", ["open", "write", "fsync"])
async def test_a_full_disk_is_told_and_leaves_nothing(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if where == "write":
            patched.setattr(firmware_module, "memoryview", full, raising=False)
        else:
            patched.setattr(os, where, full)
        answer = await post(client, b"x" * 2_000_000)
    assert answer.status_code == 503
    assert "(No space left on device): see that its disk has room" in answer.json()["detail"]
    assert files_in(tmp_path) == set()
    assert (await post(client)).status_code == 201


async def test_a_request_that_is_too_long_is_refused_before_it_is_read(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "limit_of", lambda *_: 1_000)
    answer = await post(client, b"x" * 2_000)
    assert answer.status_code == 413
    assert "A firmware may have 67,108,864 bytes at most" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content_type", "content", "words"),
    [
        ("application/json", b"{}", "body: it is no multipart/form-data; send one, as `curl -F"),
        ("multipart/form-data", b"", "body: it is no multipart/form-data"),
        (TYPE, b"nonsense", "body: it is no multipart/form-data ("),
        (TYPE, b"", "body: it ends before its time"),
        (TYPE, body(('name="name"', b"a"))[:-10], "body: it ends before its time"),
        (TYPE, body(("x=y", b"a")), "body: a part of it has no name"),
        (
            TYPE,
            body(('name="firmware"; filename="f"', b"1"), ('name="firmware"', b"2")),
            "firmware: it is given",
        ),
        (TYPE, body(('name="name"; filename="f"', b"1")), "name: it is a file, and should be a text"),
        (TYPE, body(('name="name"', b"1"), ('name="name"', b"2")), "name: it is given twice"),
        (TYPE, body(('name="notes"', b"\xff")), "notes: it is no UTF-8 text"),
        (TYPE, body(('name="notes"', b"x" * 70_000)), "body: a text in it is too long"),
        (TYPE, body(*[('name="model"', b"m")] * 201), "body: it has too many parts"),
        (TYPE, body((f'name="{"n" * 3_000}"', b"m")), "body: a part of it has too long a header"),
    ],
)
async def test_a_body_that_is_none_is_told(
    client: httpx.AsyncClient, tmp_path: Path, content_type: str, content: bytes, words: str
) -> None:
    answer = await client.post("/api/releases", content=content, headers={"Content-Type": content_type})
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert files_in(tmp_path) == set()


async def test_wherever_the_body_is_cut_on_its_way_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_WRITE_BYTES", 7)
    firmware = b"\r\n--X\r\n--XY--" * 4
    whole = body(('name="name"', b"a"), ('name="firmware"; filename="f"', firmware), ('name="model"', b"m"))
    files = FirmwareFiles(tmp_path / "releases")
    files.open(())

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    for size in range(1, len(whole) + 1):
        form = Form()
        await read_form(TYPE, pieces(size), files.stage, form)
        assert form.staged is not None
        assert form.fields == {"name": ["a"], "model": ["m"]}
        assert form.staged.sha256 == hashlib.sha256(firmware).hexdigest()
        form.staged.discard()
    assert files_in(tmp_path) == set()


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    files = FirmwareFiles(tmp_path / "releases")
    files.open(())

    async def gone() -> AsyncIterator[bytes]:
        yield body(('name="firmware"; filename="f"', b"x" * 2_000_000))[:1_500_000]
        raise ConnectionResetError

    form = Form()
    with pytest.raises(ConnectionResetError):
        await read_form(TYPE, gone(), files.stage, form)
    assert form.staged is not None
    form.staged.discard()
    assert files_in(tmp_path) == set()
    with pytest.raises(ReleaseError):
        await read_form("text/plain", gone(), files.stage, Form())


async def test_an_upload_that_is_cut_off_is_no_defect_in_the_log(
    releases: Releases, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_api(cast(Any, SimpleNamespace(releases=releases)))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/releases",
        "raw_path": b"/api/releases",
        "query_string": b"",
        "headers": [(b"content-type", TYPE.encode())],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert not caplog.records


async def test_the_api_says_what_a_post_takes(client: httpx.AsyncClient, releases: Releases) -> None:
    schema = (await client.get("/openapi.json")).json()
    post_of = schema["paths"]["/api/releases"]["post"]
    parts = post_of["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert parts.keys() == {*_FIELDS, "firmware"}
    await add(releases)
    assert json.loads((await client.get("/api/releases/fw-2")).text)["name"] == "fw-2"


_FIELDS = ("name", "version", "model", "configuration", "notes", "generated_size_bytes")
