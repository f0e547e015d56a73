"""The HTTP API of rollouts: thin handlers over `operations.Rollouts`.

| call | answer |
|---|---|
| POST /api/rollouts, GET /api/rollouts, GET /api/rollouts/{rollout_id} | create, list, one with its waves |
| POST /api/rollouts/plan | what a plan comes to, with nothing created |
| POST /api/rollouts/{rollout_id}/actions | pause, resume, approve, next, cancel, exclude, add, pace |
| POST /api/rollouts/{rollout_id}/retry | a new rollout of what failed in this one |
| GET /api/rollouts/{rollout_id}/devices | its devices by pages, what became of them in it |
| GET /api/rollouts/{rollout_id}/devices/{device_id} | one of them with its steps |
| GET /api/rollouts/{rollout_id}/log | what was done to it, and what became of it |
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from provisioning.http.conditions import MAX_CONDITION_CHARS, as_etag, wanted
from provisioning.settings import MAX_RUN_DEVICES

from .operations import RETRIED_STATES, Rollouts
from .plan import MAX_WAVES

Json = dict[str, Any]
Action = Literal["pause", "resume", "approve", "next", "cancel", "force_cancel", "exclude", "add", "pace"]

State = Literal[
    "pending",
    "queued",
    "packaging",
    "notified",
    "downloading",
    "downloaded",
    "activating",
    "provisioned",
    "failed",
    "timed_out",
    "rejected",
    "cancelled",
]
"""Of a device in a rollout: as in its counts."""

MAX_DEVICES_LISTED: Final = 1_000
_UNKNOWN: Final = "api"
_Actor = Annotated[str, StringConstraints(min_length=1, max_length=200)]


IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=MAX_CONDITION_CHARS)]
_VERSIONED: Final[dict[int | str, Json]] = {
    200: {"headers": {"ETag": {"schema": {"type": "string"}, "description": "Its version, for If-Match."}}}
}


class PlanRequest(BaseModel):
    """A plan, as `provisioning.rollouts.plan` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Json
    actor: _Actor = _UNKNOWN
    """Who asks: it goes into the rollout's log."""


class ActionRequest(BaseModel):
    """What an operator wants of a rollout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    actor: _Actor = _UNKNOWN
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None
    devices: Annotated[list[str], Field(max_length=MAX_RUN_DEVICES)] = Field(default_factory=list)
    """With exclude and add."""
    pace: Json | None = None
    """With pace: keys of the plan's `pace` that are to change."""


class RetryRequest(BaseModel):
    """Which devices of an earlier rollout a new one is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    actor: _Actor = _UNKNOWN
    states: Annotated[list[str], Field(min_length=1, max_length=10)] = Field(
        default_factory=lambda: list(RETRIED_STATES)
    )


def rollout_routes(rollouts: Callable[[], Rollouts]) -> APIRouter:
    """The routes, for the rollouts of a service that runs by the time of a call."""
    router = APIRouter(prefix="/api/rollouts")

    @router.post("", status_code=HTTPStatus.CREATED)
    async def create(request: PlanRequest) -> Json:
        """Start a rollout by a plan."""
        return await rollouts().create(request.plan, actor=request.actor)

    @router.post("/plan")
    async def preview(request: PlanRequest) -> Json:
        """What a plan comes to now; nothing is started."""
        return await rollouts().preview(request.plan)

    @router.get("")
    async def listing() -> Json:
        """All rollouts, the latest first."""
        return {"rollouts": await rollouts().latest()}

    @router.get("/{rollout_id}", responses=_VERSIONED)
    async def show(rollout_id: str, response: Response) -> Json:
        """One rollout with its waves."""
        view = await rollouts().view(rollout_id)
        response.headers["ETag"] = as_etag(view["version"])
        return view

    @router.post("/{rollout_id}/actions", responses=_VERSIONED)
    async def act(
        rollout_id: str, request: ActionRequest, response: Response, if_match: IfMatch = None
    ) -> Json:
        """Pause, resume, approve, cancel or change a rollout; with If-Match only if it is as it was."""
        done = await rollouts().act(
            rollout_id,
            request.action,
            actor=request.actor,
            reason=request.reason,
            devices=request.devices,
            pace=request.pace,
            versions=wanted(if_match),
        )
        response.headers["ETag"] = as_etag(done["view"]["version"])
        return done

    @router.post("/{rollout_id}/retry", status_code=HTTPStatus.CREATED)
    async def retry(rollout_id: str, request: RetryRequest) -> Json:
        """Start a rollout of what failed in this one."""
        return await rollouts().retry(rollout_id, actor=request.actor, states=request.states)

    @router.get("/{rollout_id}/devices")
    async def devices(
        rollout_id: str,
        state: Annotated[list[State] | None, Query()] = None,
        wave: Annotated[int | None, Query(ge=1, le=MAX_WAVES)] = None,
        after: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_DEVICES_LISTED)] = 100,
    ) -> Json:
        """A page of a rollout's devices, by state and wave."""
        return await rollouts().devices(rollout_id, states=state, wave=wave, after=after, limit=limit)

    @router.get("/{rollout_id}/devices/{device_id}")
    async def device(rollout_id: str, device_id: str) -> Json:
        """One device of a rollout, with what became of it there."""
        return await rollouts().device(rollout_id, device_id)

    @router.get("/{rollout_id}/log")
    async def log(rollout_id: str) -> Json:
        """What was done to a rollout and by whom, the oldest first."""
        return {"log": await rollouts().log(rollout_id)}

    return router
