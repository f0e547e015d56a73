"""The HTTP API of enrolments: thin handlers over `store.Enrolments`. No key and no token goes through it.

| call | answer |
|---|---|
| GET /api/enrolments | pages of them, by id; `state=enrolled` or `revoked` |
| POST /api/enrolments | enrol devices |
| GET /api/enrolments/{device_id} | one |
| POST /api/enrolments/actions | revoke, restore or remove devices |
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from provisioning.settings import MAX_PAGE

from .records import MAX_AT_ONCE
from .store import Enrolments

Json = dict[str, Any]
DeviceIds = Annotated[list[str], Field(min_length=1, max_length=MAX_AT_ONCE)]

PATH: Final = "/api/enrolments"


class EnrolRequest(BaseModel):
    """Devices that may connect from now on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_ids: DeviceIds


class EnrolmentAction(BaseModel):
    """What is done to devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["revoke", "restore", "remove"]
    device_ids: DeviceIds


def enrolment_routes(enrolments: Callable[[], Enrolments]) -> APIRouter:
    """The routes, for the enrolments of a service that runs by the time of a call."""
    router = APIRouter(prefix=PATH)

    @router.get("")
    async def listing(
        state: Literal["enrolled", "revoked"] | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: str | None = None,
    ) -> Json:
        """A page of the enrolments, by device id."""
        revoked = None if state is None else state == "revoked"
        page = await enrolments().page(after=after, revoked=revoked, limit=limit + 1)
        return {
            "enrolments": [one.to_json() for one in page[:limit]],
            "next": page[limit - 1].device_id if len(page) > limit else None,
        }

    @router.post("", status_code=HTTPStatus.CREATED)
    async def enrol(request: EnrolRequest) -> Json:
        """Let devices connect; who was revoked stays so."""
        new = await enrolments().enrol(request.device_ids)
        return {"devices": len(request.device_ids), "new": new}

    @router.get("/{device_id}")
    async def show(device_id: str) -> Json:
        """One enrolment."""
        return (await enrolments().show(device_id)).to_json()

    @router.post("/actions")
    async def act(request: EnrolmentAction) -> Json:
        """Revoke devices (they are disconnected, and refused), restore them, or remove their enrolments."""
        actions = {
            "revoke": enrolments().revoke,
            "restore": enrolments().restore,
            "remove": enrolments().remove,
        }
        changed = await actions[request.action](request.device_ids)
        return {"action": request.action, "changed": changed}

    return router
