"""Reads requests of the management API as leniently as Durable Functions does."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final
from urllib.parse import unquote

from pydantic import BeforeValidator
from starlette.types import ASGIApp, Receive, Scope, Send

from .payloads import MANAGEMENT
from .problems import raw_path

PARAMETERS: Final = (
    "code",
    "connection",
    "createdTimeFrom",
    "createdTimeTo",
    "instanceIdPrefix",
    "pollingInterval",
    "reason",
    "restartWithNewInstanceId",
    "returnInternalServerErrorOnFailure",
    "runtimeStatus",
    "showHistory",
    "showHistoryOutput",
    "showInput",
    "taskHub",
    "timeout",
    "top",
    "version",
)
"""Of all calls, as they are written."""
_OPERATIONS: Final = frozenset({"terminate", "suspend", "resume", "rewind", "restart"})
_RAISE_EVENT: Final = "raiseEvent"


def _moment(given: object) -> object:
    """Text as ISO 8601 has it. A bare number is no year and no day: it would be taken for seconds since 1970.

    Years before 1000 may have fewer digits: so Python writes them, and its client sends them.
    """
    if not isinstance(given, str):
        return given
    found = re.match(r"\s*([0-9]{1,4})-[0-9]", given)
    if found is None:
        raise ValueError("it is no time in ISO 8601, as 2026-05-31T14:00:00Z is")
    return found[1].zfill(4) + given[found.end(1) :]


Moment = Annotated[datetime, BeforeValidator(_moment)]


class AsLenient:
    """Paths may be in any case (Durable Functions' own documents have two) and end with a slash.

    Names of parameters may be in any case too, lest a filter that is written otherwise be none; and a
    parameter without a value is none. The id of an instance stays as it is.
    """

    _BEGIN = re.compile(rf"(?i){MANAGEMENT}/(?:instances|orchestrators)(?=/|$)|/api/orchestrators(?=/)")
    _BASE = re.compile(rf"(?i){MANAGEMENT}(?=/)")
    _NAMES: Final = {name.lower().encode(): name.encode() for name in PARAMETERS}

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if (begin := self._BEGIN.match(path) or self._BASE.match(path)) is not None:
                path = path[: begin.end()].lower() + _rest(scope, path[begin.end() :])
                scope = {**scope, "path": path, "query_string": self._query(scope["query_string"])}
        await self._app(scope, receive, send)

    def _query(self, given: bytes) -> bytes:
        parts = []
        for part in given.split(b"&"):
            name, _, value = part.partition(b"=")
            if value:
                parts.append(self._NAMES.get(name.lower(), name) + b"=" + value)
        return b"&".join(parts)


def _rest(scope: Scope, rest: str) -> str:
    """What follows, with the operation as it is written; ids may have slashes in them, which are encoded."""
    raw = raw_path(scope)
    if raw.endswith("/") and rest != "/":
        raw, rest = raw.removesuffix("/"), rest.removesuffix("/")
    if scope["method"] != "POST":
        return rest
    above, _, last = raw.rpartition("/")
    before = above.rpartition("/")[2]
    if last.lower() in _OPERATIONS and rest.endswith(f"/{last}"):
        return rest[: -len(last)] + last.lower()
    event = unquote(last)
    if before.lower() == _RAISE_EVENT.lower() and rest.endswith(f"/{before}/{event}"):
        return f"{rest[: -len(before) - len(event) - 1]}{_RAISE_EVENT}/{event}"
    return rest
