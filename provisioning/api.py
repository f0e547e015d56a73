"""The HTTP API: thin handlers over `Backend`. `http/` has what they share, and the management API.

| call | answer |
|---|---|
| GET /api/health | is the service, the broker and blob storage there |
| POST /api/fleets, GET /api/fleets | launch a fleet, list them |
| GET /api/fleets/{fleet_id}, DELETE /api/fleets/{fleet_id} | one fleet with statistics; stop it |
| POST /api/fleets/{fleet_id}/changes | change devices of it while it runs |
| GET /api/fleets/{fleet_id}/devices | its devices as they are to be, in pages |
| GET /api/fleets/{fleet_id}/check | whether each of them ended as it should |
| GET /api/behaviours | how devices of a fleet may behave |
| POST /api/provision | start a run: 202 with its id and how many devices it claimed |
| GET /api/runs, GET /api/runs/{run_id} | runs, the latest first; one run with counts, times, failures |
| GET /api/runs/{run_id}/devices | a run's devices in pages, what became of each in it |
| /api/overview, /api/devices, /api/cells, /api/ready, /metrics, series, children | see `inspection.api` |
| /api/releases, /api/rollouts, /api/events | see `releases.api`, `rollouts.api`, `events.api` |
| /api/enrolments | see `enrolment.api` |
| GET /api/keys, POST /api/keys | the keys that packages are signed with; one more, which signs from now on |
| DELETE /api/keys/{key_id} | devices refuse what this key has signed |
| GET /api/statistics | counters of every part |
| GET /, GET /page/… | the page for people |
| /login, /logout, /api/session | see `http.login` |
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

from . import __version__
from .enrolment.api import enrolment_routes
from .enrolment.store import Enrolments
from .events.api import Events, event_routes
from .fleets import FleetRecord, FleetRequest
from .http.access import GRANT, Access, Guarded
from .http.counting import Counting, HttpCounts
from .http.documentation import DESCRIPTION, add_documentation
from .http.guard import AnswersAtTheEnd
from .http.instances import Instances
from .http.lenient import AsLenient
from .http.limits import BodyLimits
from .http.login import session_routes
from .http.management import management_routes
from .http.payloads import MaskedJson
from .http.problems import add_error_handlers
from .http.security_headers import SecurityHeaders
from .inspection.api import inspection_routes
from .inspection.overview import Inspection
from .page import page_routes
from .releases.api import release_routes
from .releases.store import Releases
from .rollouts.api import rollout_routes
from .rollouts.operations import Rollouts
from .sas import SharedUrls, sas_routes
from .settings import MAX_PAGE, MAX_RUN_DEVICES, RunOptions
from .signing import KeyRing

Json = dict[str, Any]


class Backend(Protocol):
    """What the API asks of the service; each may raise `RequestError`."""

    @property
    def url(self) -> str: ...
    @property
    def enrolments(self) -> Enrolments: ...
    @property
    def releases(self) -> Releases: ...
    @property
    def keys(self) -> KeyRing: ...
    @property
    def rollouts(self) -> Rollouts: ...
    @property
    def events(self) -> Events: ...
    @property
    def inspection(self) -> Inspection: ...
    @property
    def instances(self) -> Instances: ...
    @property
    def urls(self) -> SharedUrls: ...
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
    async def behaviours(self, max_attempts: int) -> Json: ...
    async def provision(self, device_ids: list[str] | None, options: Json, release: str | None) -> Json: ...
    async def list_runs(self) -> list[Json]: ...
    async def run(self, run_id: str) -> Json: ...
    async def run_devices(self, run_id: str, *, limit: int, after: str | None) -> Json: ...
    async def statistics(self) -> Json: ...


class ProvisionRequest(BaseModel):
    """What to provision: the named devices, or all new ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_RUN_DEVICES)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    release: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """None: the one that comes with the service."""


class _Api(FastAPI):
    """An application whose every answer has the security headers, those of defects included."""

    def build_middleware_stack(self) -> ASGIApp:
        return SecurityHeaders(super().build_middleware_stack())


def create_api(backend: Backend, access: Access | None = None) -> FastAPI:
    """The application for one service; it starts nothing by itself.

    Without an ``access`` it is for this machine alone.
    """
    http = HttpCounts()
    access = access or Access.on_this_machine()
    app = _Api(
        title="Muster",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        default_response_class=MaskedJson,
    )

    @app.get("/api/health")
    async def health() -> Json:
        """Whether the service, the broker, blob storage and the engine are there."""
        return await backend.health()

    @app.post("/api/fleets", status_code=HTTPStatus.CREATED)
    async def launch_fleet(request: FleetRequest) -> FleetRecord:
        """Launch a fleet of simulated devices."""
        return await backend.launch_fleet(request)

    @app.get("/api/fleets")
    async def list_fleets() -> Json:
        """All fleets."""
        return {"fleets": await backend.list_fleets()}

    _add_fleet_calls(app, backend)
    _add_key_calls(app, backend)

    @app.post("/api/provision", status_code=HTTPStatus.ACCEPTED)
    async def provision(request: ProvisionRequest) -> Json:
        """Start a run over the named devices, or all new ones; it has claimed them when this answers."""
        return await backend.provision(request.device_ids, request.options, request.release)

    @app.get("/api/runs")
    async def list_runs() -> Json:
        """The latest runs."""
        return {"runs": await backend.list_runs()}

    @app.get("/api/runs/{run_id}")
    async def run(run_id: str) -> Json:
        """One run with its counts, times and last failures."""
        return await backend.run(run_id)

    @app.get("/api/runs/{run_id}/devices")
    async def run_devices(
        run_id: str,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: str | None = None,
    ) -> Json:
        """A page of a run's devices, with what became of each in it and how long its steps took."""
        return await backend.run_devices(run_id, limit=limit, after=after)

    @app.get("/api/statistics")
    async def statistics() -> Json:
        """Counters of every part of the service."""
        return await backend.statistics()

    app.include_router(enrolment_routes(lambda: backend.enrolments))
    app.include_router(release_routes(lambda: backend.releases))
    app.include_router(sas_routes(lambda: backend.urls))
    app.include_router(inspection_routes(lambda: backend.inspection, http))
    app.include_router(rollout_routes(lambda: backend.rollouts))
    app.include_router(event_routes(lambda: backend.events))
    app.include_router(management_routes(lambda: backend))
    app.include_router(session_routes(access, GRANT))
    app.include_router(page_routes())
    add_documentation(app)
    add_error_handlers(app)
    for middleware in (AsLenient, BodyLimits, AnswersAtTheEnd):  # the last is the first to be asked
        app.add_middleware(middleware)
    app.add_middleware(Guarded, access=access)
    app.add_middleware(Counting, counts=http)
    return app


def _add_fleet_calls(app: FastAPI, backend: Backend) -> None:
    """What is asked of one fleet."""

    @app.get("/api/behaviours")
    async def behaviours(
        max_attempts: Annotated[int, Query(ge=1, le=100)] = RunOptions.max_attempts,
    ) -> Json:
        """How devices of a fleet may behave, and the state that each should end in."""
        return await backend.behaviours(max_attempts)

    @app.get("/api/fleets/{fleet_id}")
    async def fleet(fleet_id: str) -> FleetRecord:
        """One fleet with its statistics."""
        return await backend.fleet(fleet_id)

    @app.delete("/api/fleets/{fleet_id}")
    async def stop_fleet(fleet_id: str) -> FleetRecord:
        """Stop a fleet."""
        return await backend.stop_fleet(fleet_id)

    @app.post("/api/fleets/{fleet_id}/changes")
    async def change_fleet(fleet_id: str, change: Json) -> Json:
        """Change devices of a fleet while it runs: docs/FLEET.md has the changes."""
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
        """A page of a fleet's devices, as they are to be."""
        return await backend.fleet_devices(
            fleet_id, group=group, behaviour=behaviour, limit=limit, after=after, max_attempts=max_attempts
        )

    @app.get("/api/fleets/{fleet_id}/check")
    async def check_fleet(fleet_id: str) -> Json:
        """Whether each device of a fleet has ended as its behaviour says."""
        return await backend.check_fleet(fleet_id)


def _add_key_calls(app: FastAPI, backend: Backend) -> None:
    """The keys that packages are signed with."""

    @app.get("/api/keys")
    async def list_keys() -> Json:
        """All keys, the oldest first; their `state` says which one signs."""
        return {"keys": backend.keys.to_json()}

    @app.post("/api/keys", status_code=HTTPStatus.CREATED)
    async def rotate_key(prepare: bool = False) -> Json:
        """Make a key that signs from now on; with `prepare` one that does so at the next call without."""
        return await (backend.keys.prepare() if prepare else backend.keys.rotate())

    @app.delete("/api/keys/{key_id}")
    async def retire_key(key_id: str) -> Json:
        """Have devices refuse what this key has signed."""
        return await backend.keys.retire(key_id)
