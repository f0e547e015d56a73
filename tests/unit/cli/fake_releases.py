"""Releases of the fake service: they are kept as they were sent."""

from __future__ import annotations

import email
import hashlib
import json
from email.message import Message
from typing import Any

from tests.unit.cli.fake_rollouts import FakeRefusalError

Json = dict[str, Any]


class FakeReleases:
    """All releases; `refusal` answers the next addition."""

    def __init__(self) -> None:
        self.known: dict[str, Json] = {}
        self.refusal: FakeRefusalError | None = None
        self.not_fitting = 0

    def read(self, headers: Message, raw: bytes) -> Json:
        """The parts of a multipart/form-data, with the length that was foretold."""
        message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + raw)
        body: Json = {"model": []}
        for part in message.walk():
            name = part.get_param("name", header="content-disposition")
            payload = part.get_payload(decode=True)
            if isinstance(name, str) and isinstance(payload, bytes):
                if name == "model":
                    body["model"].append(payload.decode())
                else:
                    body[name] = payload if name == "firmware" else payload.decode()
        return body

    def route(self, method: str, parts: list[str], body: Json) -> tuple[int, Json]:
        """Answer a request below /api/releases."""
        if (method, parts) == ("GET", []):
            return 200, {"releases": list(self.known.values())}
        if (method, parts) == ("POST", []):
            return self._add(body)
        if parts[0] not in self.known:
            raise FakeRefusalError(404, f"There is no release {parts[0]!r}: `muster release list` shows all.")
        return 200, self.known.pop(parts[0]) if method == "DELETE" else self.known[parts[0]]

    def _add(self, body: Json) -> tuple[int, Json]:
        if self.refusal is not None:
            raise self.refusal
        firmware = body.get("firmware") or b"x" * int(body["generated_size_bytes"])
        release = {
            "name": body["name"],
            "version": body["version"],
            "models": body["model"],
            "firmware": {"sha256": hashlib.sha256(firmware).hexdigest(), "size_bytes": len(firmware)},
            "configuration": json.loads(body["configuration"]) if "configuration" in body else None,
            "notes": body.get("notes", ""),
            "created_at": "2026-01-02T03:04:05.000+00:00",
            "default": False,
        }
        status = 200 if self.known.get(body["name"]) == release else 201
        self.known[body["name"]] = release
        return status, release
