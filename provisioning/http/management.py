"""The HTTP management API of Durable Functions: same paths, parameters, status codes and JSON.

docs/HTTP-API.md has the table, and what differs. Paths are below `/runtime/webhooks/durabletask`; what starts
an orchestration is also at `/api/orchestrators`, where Durable Functions' own samples have it.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, Protocol

from durabletask.client import OrchestrationState, OrchestrationStatus
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response

from provisioning.engines import ENDED

from .guard import base_url
from .instances import (
    MAX_INSTANCES_ON_PAGE,
    MAX_WAIT_S,
    BadRequestError,
    InstanceFilter,
    Instances,
    utc,
)
from .lenient import Moment
from .payloads import (
    MANAGEMENT,
    InstanceStatus,
    Json,
    ManagementUrls,
    MaskedJson,
    PurgeResult,
    RuntimeStatus,
    history_json,
    management_urls,
    state_json,
)
from .problems import Problem, raw_path

DEFAULT_TOP: Final = 100
MAX_DEPTH: Final = 100
"""Levels of what is given as an input or an event."""
TASK_HUB: Final = "muster"

_RETRY_AFTER_START_S: Final = "10"
_RETRY_AFTER_S: Final = "5"
_CONTINUATION: Final = "x-ms-continuation-token"
_TRUNCATED: Final = "x-muster-history-truncated"
_STATUSES = {status.value.lower(): status for status in RuntimeStatus}
_PURGE_PARAMETERS: Final = {
    "createdTimeFrom",
    "createdTimeTo",
    "runtimeStatus",
    "taskHub",
    "connection",
    "code",
}


class Managed(Protocol):
    """What the routes ask of the service."""

    @property
    def instances(self) -> Instances: ...
    @property
    def url(self) -> str: ...


InstanceId = Annotated[str, Path(description="The instance's id, percent-encoded.", examples=["run-1:dev-1"])]
Reason = Annotated[str | None, Query(max_length=4_000, description="For the record.")]
_TaskHub = Annotated[
    str | None, Query(description="Accepted, and without effect: a service has one task hub.")
]
_Connection = Annotated[str | None, Query(description="Accepted, and without effect.")]
_Code = Annotated[str | None, Query(description="Accepted, and without effect: a token goes into a header.")]
Timeout = Annotated[
    float | None,
    Query(
        ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds to wait for its end before the answer."
    ),
]
Interval = Annotated[
    float | None, Query(ge=0, description="Accepted, and without effect: the end is waited for, not polled.")
]
Version = Annotated[str | None, Query(max_length=256, description="The orchestration's version.")]
Statuses = Annotated[
    list[str] | None,
    Query(description=f"Any of {', '.join(RuntimeStatus)}; several by commas, or by repeating it."),
]


async def universal(
    taskHub: _TaskHub = None,
    connection: _Connection = None,
    code: _Code = None,
) -> None:
    """The parameters that Durable Functions' clients send with every call."""


def _a_problem(description: str) -> Json:
    return {"model": Problem, "description": description}


_LOCATION: Final[Json] = {
    "Location": {"description": "Where to ask after it.", "schema": {"type": "string", "format": "uri"}},
    "Retry-After": {"description": "Seconds until then.", "schema": {"type": "integer"}},
}
_UNKNOWN: dict[int | str, Json] = {404: _a_problem("There is no such instance.")}
_ENDED: dict[int | str, Json] = {410: _a_problem("It has ended.")}
_UNSUPPORTED: dict[int | str, Json] = {501: _a_problem("The engine has not got it.")}
_STARTED: dict[int | str, Json] = {
    200: {"description": "It has ended within `timeout`: its output, or how it stands with it."},
    202: {"model": ManagementUrls, "description": "Under way.", "headers": _LOCATION},
    400: _a_problem("No such orchestrator, or what was sent is no JSON."),
    409: _a_problem("An instance of that id has not ended."),
}
_ANY_JSON: Json = {"requestBody": {"content": {"application/json": {"schema": {}}}, "required": False}}


def management_routes(managed: Callable[[], Managed]) -> APIRouter:
    """The routes, for the instances of a service that runs by the time of a call."""
    router = APIRouter(tags=["Durable Functions management"], dependencies=[Depends(universal)])
    _add_starts(router, managed)
    _add_questions(router, managed)
    _add_purges(router, managed)
    _add_changes(router, managed)
    return router


def _add_starts(router: APIRouter, managed: Callable[[], Managed]) -> None:
    async def start(
        request: Request,
        name: Annotated[str, Path(description="The orchestrator.", examples=["ProvisionNewDevices"])],
        instance_id: str | None,
        timeout_s: float | None,
        version: str | None,
    ) -> Response:
        given = await _json_of(request)
        instances = managed().instances
        chosen = await instances.start(name, instance_id=instance_id, input=given, version=version)
        return await _started(request, managed(), chosen, timeout_s)

    for prefix in ("/api", MANAGEMENT):

        @router.post(
            f"{prefix}/orchestrators/{{name}}",
            status_code=HTTPStatus.ACCEPTED,
            response_class=MaskedJson,
            responses=_STARTED,
            openapi_extra=_ANY_JSON,
        )
        async def start_orchestration(
            request: Request,
            name: str,
            timeout: Timeout = None,
            pollingInterval: Interval = None,
            version: Version = None,
        ) -> Response:
            """Start an instance of an orchestrator; the body is its input."""
            return await start(request, name, None, timeout, version)

        @router.post(
            f"{prefix}/orchestrators/{{name}}/{{instanceId:path}}",
            status_code=HTTPStatus.ACCEPTED,
            response_class=MaskedJson,
            responses=_STARTED,
            openapi_extra=_ANY_JSON,
        )
        async def start_orchestration_with_id(
            request: Request,
            name: str,
            instanceId: InstanceId,
            timeout: Timeout = None,
            pollingInterval: Interval = None,
            version: Version = None,
        ) -> Response:
            """Start an instance of that id; one that has ended gives way to it."""
            return await start(request, name, instanceId, timeout, version)


def _add_questions(router: APIRouter, managed: Callable[[], Managed]) -> None:
    more = {
        _CONTINUATION: {
            "description": "Of the next page, where there is one: send it in the header of that name.",
            "schema": {"type": "string"},
        }
    }

    @router.get(f"{MANAGEMENT}/instances/", include_in_schema=False)
    @router.get(
        f"{MANAGEMENT}/instances",
        response_class=MaskedJson,
        responses={200: {"model": list[InstanceStatus], "description": "A page of them.", "headers": more}},
    )
    async def list_instances(
        createdTimeFrom: Moment | None = None,
        createdTimeTo: Moment | None = None,
        runtimeStatus: Statuses = None,
        instanceIdPrefix: str | None = None,
        showInput: bool = True,
        top: Annotated[
            int, Query(ge=1, description=f"Instances at most; {MAX_INSTANCES_ON_PAGE:,} is the most.")
        ] = DEFAULT_TOP,
        token: Annotated[str | None, Header(alias=_CONTINUATION)] = None,
    ) -> Response:
        """A page of the instances that fit, in order of their creation."""
        which = _filter(createdTimeFrom, createdTimeTo, runtimeStatus, instanceIdPrefix)
        page = await managed().instances.page(which, top=top, token=token)
        following = page.continuation_token
        # In a thread: they may have megabytes of payloads.
        return await asyncio.to_thread(
            lambda: MaskedJson(
                [state_json(state, show_input=showInput) for state in page.items],
                headers=None if following is None else {_CONTINUATION: following},
            )
        )

    @router.get(
        f"{MANAGEMENT}/instances/{{instanceId:path}}",
        response_class=MaskedJson,
        responses={
            200: {"model": InstanceStatus, "description": "It has ended."},
            202: {"model": InstanceStatus, "description": "It has not ended.", "headers": _LOCATION},
            500: {
                "description": "It has failed, and `returnInternalServerErrorOnFailure` is true.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InstanceStatus"}}},
            },
            **_UNKNOWN,
            **_UNSUPPORTED,
        },
    )
    async def get_instance(
        request: Request,
        instanceId: InstanceId,
        showHistory: bool = False,
        showHistoryOutput: bool = False,
        showInput: bool = True,
        returnInternalServerErrorOnFailure: bool = False,
    ) -> Response:
        """How it stands with an instance."""
        instances = managed().instances
        state = await instances.state(instanceId)
        events, more = await instances.history(state) if showHistory else ([], False)

        def render() -> Response:
            content = state_json(state, show_input=showInput)
            if showHistory:
                content["historyEvents"] = history_json(
                    events, show_input=showInput, show_output=showHistoryOutput
                )
            response = _status_answer(state, content, returnInternalServerErrorOnFailure)
            if more:
                response.headers[_TRUNCATED] = "true"
            return response

        response = await asyncio.to_thread(render)
        if response.status_code == HTTPStatus.ACCEPTED:
            query = request.scope["query_string"].decode("latin-1")
            here = base_url(request.scope, managed().url) + raw_path(request.scope)
            response.headers["Location"] = f"{here}?{query}" if query else here
            response.headers["Retry-After"] = _RETRY_AFTER_S
        return response


def _add_purges(router: APIRouter, managed: Callable[[], Managed]) -> None:
    purged: Json = {"model": PurgeResult, "description": "They are gone."}
    nothing = {404: _a_problem("No instance that has ended fits."), **_UNSUPPORTED}

    @router.delete(f"{MANAGEMENT}/instances/", include_in_schema=False)
    @router.delete(f"{MANAGEMENT}/instances", response_class=MaskedJson, responses={200: purged, **nothing})
    async def purge_instances(
        request: Request,
        createdTimeFrom: Moment,
        createdTimeTo: Moment | None = None,
        runtimeStatus: Statuses = None,
    ) -> Response:
        """Remove all instances of that time that have ended."""
        if unknown := set(request.query_params) - _PURGE_PARAMETERS:
            raise BadRequestError(f"{min(unknown)}: a purge has no such filter; nothing was purged.")
        until = createdTimeTo or datetime.now(UTC)
        which = _filter(createdTimeFrom, until, runtimeStatus, None)
        return MaskedJson({"instancesDeleted": await managed().instances.purge_all(which)})

    @router.delete(
        f"{MANAGEMENT}/instances/{{instanceId:path}}",
        response_class=MaskedJson,
        responses={
            200: purged,
            **_UNKNOWN,
            412: _a_problem("It has not ended."),
            **_UNSUPPORTED,
        },
    )
    async def purge_instance(instanceId: InstanceId) -> Response:
        """Remove an instance that has ended."""
        deleted = await managed().instances.purge(instanceId)
        return MaskedJson({"instancesDeleted": deleted})


def _add_changes(router: APIRouter, managed: Callable[[], Managed]) -> None:
    here = f"{MANAGEMENT}/instances/{{instanceId:path}}"
    accepted: Any = {"status_code": HTTPStatus.ACCEPTED, "response_class": Response}
    going = {**_UNKNOWN, **_ENDED}

    @router.post(
        f"{here}/raiseEvent/{{eventName:path}}", **accepted, responses=going, openapi_extra=_ANY_JSON
    )
    async def raise_event(request: Request, instanceId: InstanceId, eventName: str) -> Response:
        """Raise an external event; the body is its data."""
        instances = managed().instances
        await instances.check_going(instanceId)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise BadRequestError("The data of an event is application/json: say so in Content-Type.")
        await instances.raise_event(instanceId, eventName, await _json_of(request))
        return _accepted()

    @router.post(f"{here}/terminate", **accepted, responses=going)
    async def terminate(instanceId: InstanceId, reason: Reason = None) -> Response:
        """End an instance, with its sub-orchestrations; the reason is its output."""
        await managed().instances.terminate(instanceId, reason)
        return _accepted()

    @router.post(f"{here}/suspend", **accepted, responses=going)
    async def suspend(instanceId: InstanceId, reason: Reason = None) -> Response:
        """Hold an instance back until it is resumed."""
        await managed().instances.suspend(instanceId, reason)
        return _accepted()

    @router.post(f"{here}/resume", **accepted, responses=going)
    async def resume(instanceId: InstanceId, reason: Reason = None) -> Response:
        """Let a suspended instance go on."""
        await managed().instances.resume(instanceId, reason)
        return _accepted()

    @router.post(
        f"{here}/rewind",
        **accepted,
        responses={**_UNKNOWN, 412: _a_problem("It has not failed."), **_UNSUPPORTED},
    )
    async def rewind(instanceId: InstanceId, reason: Reason = None) -> Response:
        """Let a failed instance go on from its last good state."""
        await managed().instances.rewind(instanceId, reason)
        return _accepted()

    @router.post(
        f"{here}/restart",
        status_code=HTTPStatus.ACCEPTED,
        response_class=MaskedJson,
        responses={
            200: _STARTED[200],
            202: _STARTED[202],
            **_UNKNOWN,
            409: _a_problem("It has not ended, and is to be restarted under its own id."),
            **_UNSUPPORTED,
        },
    )
    async def restart(
        request: Request,
        instanceId: InstanceId,
        restartWithNewInstanceId: bool = True,
        timeout: Timeout = None,
        pollingInterval: Interval = None,
    ) -> Response:
        """Begin an instance that has ended again with its input, under a new id or its own."""
        instances = managed().instances
        chosen = await instances.restart(instanceId, new_id=restartWithNewInstanceId)
        return await _started(request, managed(), chosen, timeout)


async def _started(request: Request, managed: Managed, instance_id: str, timeout_s: float | None) -> Response:
    """The answer to a start: after the instance's end where it comes in time."""
    if timeout_s is not None:
        state = await managed.instances.wait(instance_id, timeout_s)
        if state is not None:
            content = state_json(state, show_input=True)
            completed = state.runtime_status == OrchestrationStatus.COMPLETED
            return MaskedJson(content["output"] if completed else content)
    urls = management_urls(instance_id, base_url(request.scope, managed.url), TASK_HUB)
    return MaskedJson(
        urls,
        status_code=HTTPStatus.ACCEPTED,
        headers={"Location": urls["statusQueryGetUri"], "Retry-After": _RETRY_AFTER_START_S},
    )


def _status_answer(state: OrchestrationState, content: Json, error_on_failure: bool) -> Response:
    if state.runtime_status not in ENDED:
        return MaskedJson(content, status_code=HTTPStatus.ACCEPTED)
    failed = state.runtime_status == OrchestrationStatus.FAILED
    status = HTTPStatus.INTERNAL_SERVER_ERROR if failed and error_on_failure else HTTPStatus.OK
    return MaskedJson(content, status_code=status)


def _accepted() -> Response:
    return Response(status_code=HTTPStatus.ACCEPTED)


def _filter(
    created_from: datetime | None, created_to: datetime | None, statuses: list[str] | None, prefix: str | None
) -> InstanceFilter:
    named = [name.strip() for given in statuses or () for name in given.split(",")]
    found: list[OrchestrationStatus] = []
    for name in filter(None, named):
        if name.lower() not in _STATUSES:
            raise BadRequestError(f"runtimeStatus: {name!r} is none. There are {', '.join(RuntimeStatus)}.")
        # Canceled is a word of Durable Functions' that no instance has ever had.
        status = OrchestrationStatus.__members__.get(_STATUSES[name.lower()].name)
        found += [] if status is None else [status]
    return InstanceFilter(
        created_from=utc(created_from),
        created_to=utc(created_to),
        statuses=found if any(named) else None,
        id_prefix=prefix,
    )


async def _json_of(request: Request) -> Any:
    """The body; None where there is none. Raises BadRequestError for what is no JSON."""
    body = await request.body()
    if not body.strip():
        return None
    try:
        value = json.loads(body, parse_constant=_refuse, parse_float=_finite)
        if _depth(value) > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_DEPTH} levels")
    except RecursionError:
        raise BadRequestError(
            f"The body is no JSON that can be used: it has more than {MAX_DEPTH} levels."
        ) from None
    except ValueError as error:
        raise BadRequestError(f"The body is no JSON that can be used: {error}.") from error
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON's")


def _finite(digits: str) -> float:
    value = float(digits)
    # What is written again would be no JSON.
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _depth(value: Any) -> int:
    """How many levels of arrays and objects it has."""
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth
