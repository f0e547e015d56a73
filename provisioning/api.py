"""The HTTP API: thin handlers over `Backend`, errors as application/problem+json.

| call | answer |
|---|---|
| GET /api/health | is the service, the broker and blob storage there |
| POST /api/fleets, GET /api/fleets | launch a fleet, list them |
| GET /api/fleets/{fleet_id}, DELETE /api/fleets/{fleet_id} | one fleet with statistics; stop it |
| POST /api/fleets/{fleet_id}/changes | change devices of it while it runs |
| GET /api/fleets/{fleet_id}/devices | its devices as they are to be, in pages |
| GET /api/fleets/{fleet_id}/check | whether each of them ended as it should |
| POST /api/provision | start a run: 202 with its id and how many devices it claimed |
| GET /api/runs, GET /api/runs/{run_id} | runs, the latest first; one run with counts, times, failures |
| GET /api/devices, GET /api/devices/{device_id} | devices by state or run, in pages; one with its steps |
| /api/releases, /api/rollouts | see `releases.api` and `rollouts.api` |
| GET /api/statistics | counters of every part |
| GET /metrics | the fleets' statistics for Prometheus |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.errors import ContractError

from . import __version__
from .errors import RequestError, SettingsError
from .fleets import FleetRecord, FleetRequest
from .packages import mask_sas
from .releases.api import MAX_UPLOAD_BYTES, release_routes
from .releases.api import PATH as RELEASES_PATH
from .releases.records import MAX_FIRMWARE_BYTES
from .releases.store import Releases
from .rollouts.api import rollout_routes
from .rollouts.operations import Rollouts
from .settings import MAX_PAGE, MAX_RUN_DEVICES, RunOptions
from .states import DeviceState

_LOG = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_ERRORS_SHOWN = 3
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Json = dict[str, Any]


class Backend(Protocol):
    """What the API asks of the service; each may raise `RequestError`."""

    @property
    def releases(self) -> Releases: ...
    @property
    def rollouts(self) -> Rollouts: ...
    async def health(self) -> Json: ...
    async def launch_fleet(self, request: FleetRequest) -> FleetRecord: ...
    async def list_fleets(self) -> list[FleetRecord]: ...
    async def fleet(self, fleet_id: str) -> FleetRecord: ...
    async def stop_fleet(self, fleet_id: str) -> FleetRecord: ...
    async def change_fleet(self, fleet_id: str, change: Json) -> Json: ...
    async def fleet_devices(
        self,
        fleet_id: str,
        *,
        group: str | None,
        behaviour: str | None,
        limit: int,
        after: str | None,
        max_attempts: int,
    ) -> Json: ...
    async def check_fleet(self, fleet_id: str) -> Json: ...
    async def metrics(self, fleet_id: str | None) -> str: ...
    async def provision(self, device_ids: list[str] | None, options: Json, release: str | None) -> Json: ...
    async def list_runs(self) -> list[Json]: ...
    async def run(self, run_id: str) -> Json: ...
    async def devices(
        self, *, state: DeviceState | None, run_id: str | None, limit: int, after: str | None
    ) -> Json: ...
    async def device(self, device_id: str) -> Json: ...
    async def statistics(self) -> Json: ...


class ProvisionRequest(BaseModel):
    """What to provision: the named devices, or all new ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_RUN_DEVICES)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    release: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """None: the one that comes with the service."""


def problem(status: int, title: str, detail: str, **more: Any) -> JSONResponse:
    """An answer after RFC 9457; whatever it says is masked once more on its way out."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": mask_sas(detail), **more}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def create_api(backend: Backend) -> FastAPI:
    """The application for one service; it starts nothing by itself."""
    app = FastAPI(title="Muster", version=__version__, docs_url="/api/docs", openapi_url="/api/openapi.json")

    @app.get("/api/health")
    async def health() -> Json:
        return await backend.health()

    @app.post("/api/fleets", status_code=HTTPStatus.CREATED)
    async def launch_fleet(request: FleetRequest) -> FleetRecord:
        return await backend.launch_fleet(request)

    @app.get("/api/fleets")
    async def list_fleets() -> Json:
        return {"fleets": await backend.list_fleets()}

    _add_fleet_calls(app, backend)

    @app.post("/api/provision", status_code=HTTPStatus.ACCEPTED)
    async def provision(request: ProvisionRequest) -> Json:
        return await backend.provision(request.device_ids, request.options, request.release)

    @app.get("/api/runs")
    async def list_runs() -> Json:
        return {"runs": await backend.list_runs()}

    @app.get("/api/runs/{run_id}")
    async def run(run_id: str) -> Json:
        return await backend.run(run_id)

    @app.get("/api/devices")
    async def devices(
        state: DeviceState | None = None,
        run_id: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: str | None = None,
    ) -> Json:
        return await backend.devices(state=state, run_id=run_id, limit=limit, after=after)

    @app.get("/api/devices/{device_id}")
    async def device(device_id: str) -> Json:
        return await backend.device(device_id)

    @app.get("/api/statistics")
    async def statistics() -> Json:
        return await backend.statistics()

    @app.get("/metrics")
    async def metrics(fleet_id: str | None = None) -> Response:
        return Response(await backend.metrics(fleet_id), media_type=METRICS_TYPE)

    app.include_router(release_routes(lambda: backend.releases))
    app.include_router(rollout_routes(lambda: backend.rollouts))
    _add_error_handlers(app)
    app.middleware("http")(_guard)
    app.add_middleware(_AnswersAtTheEnd)
    return app


def _add_fleet_calls(app: FastAPI, backend: Backend) -> None:
    """What is asked of one fleet."""

    @app.get("/api/fleets/{fleet_id}")
    async def fleet(fleet_id: str) -> FleetRecord:
        return await backend.fleet(fleet_id)

    @app.delete("/api/fleets/{fleet_id}")
    async def stop_fleet(fleet_id: str) -> FleetRecord:
        return await backend.stop_fleet(fleet_id)

    @app.post("/api/fleets/{fleet_id}/changes")
    async def change_fleet(fleet_id: str, change: Json) -> Json:
        return await backend.change_fleet(fleet_id, change)

    @app.get("/api/fleets/{fleet_id}/devices")
    async def fleet_devices(
        fleet_id: str,
        group: str | None = None,
        behaviour: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: str | None = None,
        max_attempts: Annotated[int, Query(ge=1, le=100)] = RunOptions.max_attempts,
    ) -> Json:
        return await backend.fleet_devices(
            fleet_id, group=group, behaviour=behaviour, limit=limit, after=after, max_attempts=max_attempts
        )

    @app.get("/api/fleets/{fleet_id}/check")
    async def check_fleet(fleet_id: str) -> Json:
        return await backend.check_fleet(fleet_id)


class _AnswersAtTheEnd:
    """Answers calls that the server cuts off when it stops: they would end as a traceback, with no answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def sending(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if answering:
                raise
            refusal = problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Stopping",
                "The service stopped before it could answer: `muster up` starts it again, and `muster watch` "
                "then shows whether a run has begun.",
            )
            await refusal(scope, receive, send)


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    # A page from elsewhere, reached through a name that resolves to loopback, must not drive the service.
    host = (request.url.hostname or "").strip("[]")
    if host not in _LOOPBACK:
        return problem(
            HTTPStatus.FORBIDDEN,
            "Forbidden host",
            f"This API answers to 127.0.0.1 and localhost only, not to {host!r}.",
        )
    origin = request.headers.get("origin")
    if origin is not None and (urlsplit(origin).hostname or "") not in _LOOPBACK:
        return problem(
            HTTPStatus.FORBIDDEN, "Forbidden origin", f"This API takes no calls from pages of {origin}."
        )
    if "transfer-encoding" in request.headers:
        return problem(
            HTTPStatus.LENGTH_REQUIRED, "Length required", "Send the request with its Content-Length."
        )
    length = request.headers.get("content-length", "0")
    upload = request.url.path == RELEASES_PATH
    if not length.isdigit() or int(length) > (MAX_UPLOAD_BYTES if upload else MAX_BODY_BYTES):
        return problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "Request too large",
            f"A firmware may have {MAX_FIRMWARE_BYTES:,} bytes at most: give a smaller one."
            if upload
            else f"A request may have {MAX_BODY_BYTES} bytes at most. Split it into smaller runs.",
        )
    return await call_next(request)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> JSONResponse:
        return problem(error.status, error.title, str(error))

    @app.exception_handler(SettingsError)
    @app.exception_handler(ContractError)
    async def unusable(_request: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid request", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        details = [
            f"{'.'.join(str(part) for part in item['loc'] if part not in ('body', 'query'))}: {item['msg']}"
            for item in error.errors()
        ]
        more = f"; and {len(details) - _MAX_ERRORS_SHOWN} more" if len(details) > _MAX_ERRORS_SHOWN else ""
        return problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Invalid request",
            "; ".join(detail.removeprefix(": ") for detail in details[:_MAX_ERRORS_SHOWN]) + more,
        )

    @app.exception_handler(HTTPException)
    async def no_such_call(request: Request, error: HTTPException) -> JSONResponse:
        return problem(
            error.status_code,
            HTTPStatus(error.status_code).phrase,
            f"{request.method} {request.url.path}: {error.detail}. The calls are listed at /api/docs.",
        )

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "Internal error",
            f"{request.method} {request.url.path} failed inside the service: {type(error).__name__}. "
            f"The service's log has the details.",
        )
