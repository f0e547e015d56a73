"""Errors as problem details (RFC 9457): every one that leaves the service, whoever found it.

| field | what |
|---|---|
| type | `about:blank` where the title is that of the status, else `urn:muster:problem:` and the title |
| title | what kind of problem it is, always the same for its kind |
| status | the HTTP status |
| detail | what is wrong here, and what to do |
| instance | the path that was asked for |
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Router
from starlette.types import Scope

from broker.errors import ContractError
from broker.masking import masked
from provisioning.engines import (
    EngineError,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
    PayloadTooLargeError,
)
from provisioning.errors import RequestError, SettingsError

PROBLEM_TYPE = "application/problem+json"
MANAGEMENT_PATHS = ("/runtime/webhooks/durabletask/", "/api/orchestrators/")
"""Where a request that can't be understood is a 400, as in Durable Functions; elsewhere it is a 422."""

TOO_LARGE_TITLE = "Request too large"

_LOG = logging.getLogger(__name__)
_MAX_ERRORS_SHOWN = 3
_MAX_DETAIL_CHARS = 2_000

_ENGINE_ERRORS: tuple[tuple[type[EngineError], HTTPStatus, str], ...] = (
    (OrchestrationNotFoundError, HTTPStatus.NOT_FOUND, "Unknown instance"),
    (OrchestrationAlreadyExistsError, HTTPStatus.CONFLICT, "Instance exists"),
    (OrchestrationStatusError, HTTPStatus.PRECONDITION_FAILED, "Status does not allow it"),
    (PayloadTooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE_TITLE),
    (EngineStoppedError, HTTPStatus.SERVICE_UNAVAILABLE, "Engine stopped"),
)


class BodyTooLargeError(HTTPException):
    """The body of a request got longer than it may be."""


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:muster:problem:unknown-device"])
    title: str = Field(examples=["Unknown device"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Unknown device: dev-1. See `muster devices`."])
    instance: str | None = Field(default=None, examples=["/api/devices/dev-1"])


class ProblemResponse(Response):
    """JSON in ASCII: what was asked for may have characters that are no valid Unicode, and is quoted."""

    media_type = PROBLEM_TYPE


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    scope: Scope | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer after RFC 9457; whatever it says is masked once more on its way out."""
    if len(detail) > _MAX_DETAIL_CHARS:
        detail = f"{detail[: _MAX_DETAIL_CHARS - 1]}…"
    body: dict[str, Any] = {
        "type": "about:blank" if title == HTTPStatus(status).phrase else f"urn:muster:problem:{_slug(title)}",
        "title": title,
        "status": int(status),
        "detail": masked(detail),
    }
    if scope is not None:
        body["instance"] = masked(raw_path(scope))
    given = None if headers is None else dict(headers)
    return ProblemResponse(json.dumps(body), status_code=status, headers=given)


def raw_path(scope: Scope) -> str:
    """The path as it was asked for, percent-encoded, without its query."""
    raw: bytes = scope.get("raw_path") or b""
    return raw.decode("latin-1").partition("?")[0]


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "")).strip("-")


def add_error_handlers(app: FastAPI) -> None:
    """Have every error of the application answered as a problem."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return problem(error.status, error.title, str(error), scope=request.scope)

    @app.exception_handler(SettingsError)
    @app.exception_handler(ContractError)
    async def unusable(request: Request, error: Exception) -> Response:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid request", str(error), scope=request.scope)

    @app.exception_handler(EngineError)
    async def engine_refused(request: Request, error: EngineError) -> Response:
        for kind, status, title in _ENGINE_ERRORS:
            if isinstance(error, kind):
                return problem(status, title, _sentence(error), scope=request.scope)
        return await broken(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        managing = request.url.path.startswith(MANAGEMENT_PATHS)
        return problem(
            HTTPStatus.BAD_REQUEST if managing else HTTPStatus.UNPROCESSABLE_ENTITY,
            "Invalid request",
            _what_is_invalid(error),
            scope=request.scope,
        )

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        # An upload that was cut off is no defect; nobody is there to read this.
        return problem(
            HTTPStatus.BAD_REQUEST, "Cut off", "The body has not come to its end.", scope=request.scope
        )

    @app.exception_handler(BodyTooLargeError)
    async def too_large(request: Request, error: BodyTooLargeError) -> Response:
        return problem(error.status_code, TOO_LARGE_TITLE, error.detail, scope=request.scope)

    @app.exception_handler(HTTPException)
    async def no_such_call(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(sorted(_methods(app.router, request.scope)))
        return problem(
            error.status_code,
            HTTPStatus(error.status_code).phrase,
            f"{request.method} {request.url.path}: {error.detail}. The calls are listed at /docs.",
            scope=request.scope,
            headers=headers,
        )

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "Internal error",
            f"{request.method} {request.url.path} failed inside the service: {type(error).__name__}. "
            f"The service's log has the details.",
            scope=request.scope,
        )


def _what_is_invalid(error: RequestValidationError) -> str:
    details = [
        f"{'.'.join(str(part) for part in item['loc'] if part not in ('body', 'query'))}: {item['msg']}"
        for item in error.errors()
    ]
    more = f"; and {len(details) - _MAX_ERRORS_SHOWN} more" if len(details) > _MAX_ERRORS_SHOWN else ""
    return "; ".join(detail.removeprefix(": ") for detail in details[:_MAX_ERRORS_SHOWN]) + more


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _methods(router: Router, scope: Scope) -> set[str]:
    """What may be done to the path, by any of its routes."""
    return {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in router.routes)
    }
