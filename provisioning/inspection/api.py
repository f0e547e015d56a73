"""The routes of what people look at: thin handlers over `overview.Inspection`.

| call | answer |
|---|---|
| GET /api/overview | what is going on |
| GET /api/devices, GET /api/devices/{device_id} | by filters, in pages; one with its steps |
| GET /api/cells, GET /api/rollouts/{rollout_id}/cells | a byte per device: all, or those of a rollout |
| GET /api/rollouts/{rollout_id}/series, GET /api/runs/{run_id}/series | a rollout, or a run, over time |
| GET /api/instances/{instanceId}/children | the sub-orchestrations of an orchestration, in pages |
| GET /api/ready | 200 where all is there that provisioning needs |
| GET /metrics | the service and its fleets for Prometheus |
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel

from broker.masking import masked
from provisioning.http.conditions import MAX_CONDITION_CHARS, as_etag, is_unchanged
from provisioning.http.counting import HttpCounts
from provisioning.http.payloads import MaskedJson, state_json
from provisioning.settings import MAX_PAGE
from provisioning.states import DeviceState

from .cells import Cells
from .children import MAX_CHILDREN
from .devices import MAX_TAGS, DeviceFilter, Sort
from .overview import Inspection
from .series import MAX_POINTS

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_PREFIX_CHARS: Final = 64
Json = dict[str, Any]
_CHILD_FIELDS: Final = ("instanceId", "name", "runtimeStatus", "createdTime", "lastUpdatedTime")
_ETAG: Final = {"ETag": {"schema": {"type": "string"}, "description": "For If-None-Match."}}
_SAME: Final[dict[int | str, Json]] = {304: {"description": "It is as it was."}}

Points = Annotated[int, Query(ge=1, le=MAX_POINTS)]
Label = Annotated[str | None, Query(max_length=200)]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=MAX_CONDITION_CHARS)]


class CellsOfDevices(BaseModel):
    """The states of devices in order of id, a byte each."""

    states: list[str]
    """What the codes mean: 0 is the first."""
    ids: list[str] | None = None
    """Left out with ids=false."""
    codes: str
    """Base64 of a byte for each device."""
    etag: str


def inspection_routes(inspection: Callable[[], Inspection], http: HttpCounts) -> APIRouter:
    """The routes, for a service that runs by the time of a call; ``http`` are the requests to it."""
    router = APIRouter()

    @router.get("/api/overview")
    async def overview() -> MaskedJson:
        """What is going on: rollouts, runs, devices, fleets, failures, health."""
        return MaskedJson(await inspection().overview())

    @router.get("/api/ready")
    async def ready() -> Json:
        """Whether all is there that provisioning needs; a 503 says what is missing."""
        await inspection().check_ready()
        return {"status": "ready"}

    @router.get("/api/cells", response_model=CellsOfDevices, responses={200: {"headers": _ETAG}, **_SAME})
    async def cells(ids: bool = True, if_none_match: IfNoneMatch = None) -> Response:
        """A byte per device: the states of all."""
        return _cells_answer(await inspection().cells(with_ids=ids), if_none_match)

    @router.get(
        "/api/rollouts/{rollout_id}/cells",
        response_model=CellsOfDevices,
        responses={200: {"headers": _ETAG}, **_SAME},
    )
    async def cells_of_rollout(
        rollout_id: str, ids: bool = True, if_none_match: IfNoneMatch = None
    ) -> Response:
        """A byte per device: what has become of a rollout's devices in it."""
        return _cells_answer(await inspection().cells(rollout_id, with_ids=ids), if_none_match)

    @router.get("/api/rollouts/{rollout_id}/series")
    async def series_of_rollout(rollout_id: str, points: Points = 120) -> Json:
        """A rollout over time: how many devices ended how, and how long they took."""
        return await inspection().series_of_rollout(rollout_id, points=points)

    @router.get("/api/runs/{run_id}/series")
    async def series(run_id: str, points: Points = 120) -> Json:
        """A run over time: how many devices ended how, and how long they took."""
        return await inspection().series(run_id, points=points)

    @router.get("/api/instances/{instanceId:path}/children")
    async def children(
        instance_id: Annotated[str, Path(alias="instanceId", max_length=256)],
        top: Annotated[int, Query(ge=1, le=MAX_CHILDREN)] = 100,
        after: Annotated[str | None, Query(max_length=50)] = None,
    ) -> MaskedJson:
        """A page of the sub-orchestrations of an orchestration's latest execution, in order of their
        starts.
        """
        found, following, parent_id = await inspection().children(instance_id, top=top, after=after)
        shown = [state_json(state, show_input=False) for state in found]
        return MaskedJson(
            {
                "children": [{name: state[name] for name in _CHILD_FIELDS} for state in shown],
                "next": following,
                "parent": parent_id,
            }
        )

    _add_devices(router, inspection)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(fleet_id: str | None = None) -> Response:
        """The service and its fleets in Prometheus' text format, or one fleet alone."""
        return Response(masked(await inspection().metrics(fleet_id, http)), media_type=METRICS_TYPE)

    return router


def _add_devices(router: APIRouter, inspection: Callable[[], Inspection]) -> None:
    @router.get("/api/devices")
    async def devices(
        state: Annotated[list[DeviceState] | None, Query(max_length=len(DeviceState))] = None,
        run_id: Label = None,
        model: Label = None,
        tag: Annotated[list[str] | None, Query(max_length=MAX_TAGS)] = None,
        online: bool | None = None,
        q: Annotated[str | None, Query(max_length=MAX_PREFIX_CHARS)] = None,
        sort: Sort = "device_id",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: Annotated[str | None, Query(max_length=1_000)] = None,
    ) -> MaskedJson:
        """A page of the devices that fit all filters; `next` is the `after` of the page that follows."""
        which = DeviceFilter(
            states=state or (), run_id=run_id, model=model, tags=tag or (), online=online, prefix=q
        )
        return MaskedJson(await inspection().devices.page(which, sort=sort, limit=limit, after=after))

    @router.get("/api/devices/{device_id}")
    async def device(device_id: str) -> Json:
        """One device with the steps of its latest run, and how it ended in its latest ones."""
        return await inspection().devices.one(device_id)


def _cells_answer(cells: Cells, if_none_match: str | None) -> Response:
    headers = {"ETag": as_etag(cells.etag), "Cache-Control": "no-cache"}
    if is_unchanged(if_none_match, cells.etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(cells.to_json(), media_type="application/json", headers=headers)
