"""A service that is only staged: the page's API with as many devices as wanted, and events at will.

For what a real fleet can't be made to do on purpose: ten thousand devices at once, hostile names, a stream
that is cut. The tests of the page and `benchmarks.page` use it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from provisioning.http.problems import add_error_handlers
from provisioning.page import page_routes
from provisioning.rollouts.plan import RolloutPlan, wave_sizes
from provisioning.states import FINAL, DeviceState

Json = dict[str, Any]

ROLLOUT: Final = "rollout-20260101-000000-abcd"
STATES: Final = ("pending", *(state.value for state in DeviceState))
_WAY: Final = ("pending", "queued", "packaging", "notified", "downloading", "downloaded", "activating")
_AT: Final = "2026-01-01T00:00:00.000+00:00"


class Stage:
    """The devices, and what is told of them; `move` lets some of them get on."""

    def __init__(self, devices: int, *, seed: int = 1, name: str | None = "Winter firmware") -> None:
        self.ids = [f"dev-{number:05d}" for number in range(1, devices + 1)]
        self.states = dict.fromkeys(self.ids, "pending")
        self.name = name
        self.error = "download failed: connection reset"
        self.model = "demo-1"
        self.tags: dict[str, str] = {"site": "north"}
        self.session: Json = {"access": "full", "by": "loopback", "ends_in_s": None}
        self.streaming = True
        """False: the stream is a 503, as behind what lets none through."""
        self.deserted = asyncio.Event()
        """Set when the last reader of the stream has gone."""
        self._dice = random.Random(seed)
        self._readers: set[asyncio.Queue[tuple[str, Json] | None]] = set()

    @property
    def readers(self) -> int:
        """How many read the stream."""
        return len(self._readers)

    def counts(self) -> dict[str, int]:
        """Devices by state."""
        found = dict.fromkeys(STATES, 0)
        for state in self.states.values():
            found[state] += 1
        return found

    def move(self, many: int) -> Json:
        """Let so many devices take a step; returns the event's data."""
        changed = []
        for device_id in self._dice.sample(self.ids, min(many, len(self.ids))):
            state = self.states[device_id]
            if state not in _WAY:
                continue
            place = _WAY.index(state) + 1
            ends = ("provisioned", "provisioned", "provisioned", "failed", "timed_out", "rejected")
            self.states[device_id] = _WAY[place] if place < len(_WAY) else self._dice.choice(ends)
            changed.append(self.row(device_id))
        return {"at": _AT, "devices": changed}

    def row(self, device_id: str) -> list[Any]:
        """One device, as the event has it."""
        state = self.states[device_id]
        return [device_id, state, ROLLOUT, 1, None, 1, self.error if state == "failed" else None]

    def tell(self, event: str, data: Json) -> None:
        """Send an event to all readers."""
        for reader in self._readers:
            reader.put_nowait((event, data))

    def close(self) -> None:
        """End all streams."""
        for reader in self._readers:
            reader.put_nowait(None)

    def rollout(self) -> Json:
        """The rollout, as the event has it."""
        counts = self.counts()
        ended = sum(counts[state.value] for state in FINAL)
        over = ended == len(self.ids)
        wave = {"number": 1, "devices": len(self.ids), "state": "done" if over else "running"}
        return {
            "rollout_id": ROLLOUT,
            "name": self.name,
            "release": None,
            "state": "completed" if over else "running",
            "reason": None,
            "wave": 1,
            "waves": [{**wave, "counts": counts, "success_percent": None}],
            "devices": len(self.ids),
            "counts": counts,
            "created_at": _AT,
            "ended_at": _AT if over else None,
            "retry_of": None,
            "in_flight": sum(counts[state] for state in _WAY[1:]),
            "elapsed_s": 12.5,
            "devices_per_s": 80.0,
            "eta_s": None if over else 100.0,
        }

    def device(self, device_id: str) -> Json:
        """One device in short."""
        state = self.states[device_id]
        return {
            "device_id": device_id,
            "model": self.model,
            "firmware_version": self.model,
            "state": "new" if state == "pending" else state,
            "online": True,
            "run_id": ROLLOUT,
            "attempt": 1,
            "progress": None,
            "updated_at": _AT,
            "error": self.error if state == "failed" else None,
        }

    async def stream(self) -> AsyncIterator[str]:
        """The events of one reader."""
        queue: asyncio.Queue[tuple[str, Json] | None] = asyncio.Queue()
        self._readers.add(queue)
        self.deserted.clear()
        try:
            yield _event(0, "hello", {"service": "staged", "version": "0"})
            number = 0
            while (told := await queue.get()) is not None:
                number += 1
                yield _event(number, *told)
        finally:
            self._readers.discard(queue)
            if not self._readers:
                self.deserted.set()


def _event(number: int, event: str, data: Json) -> str:
    return f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"


def create_stage(stage: Stage) -> FastAPI:
    """The application: what the page asks for."""
    app = FastAPI()
    app.include_router(page_routes())
    add_error_handlers(app)
    _add_lists(app, stage)
    _add_launching(app, stage)

    @app.get("/api/events")
    async def events() -> Response:
        if not stage.streaming:
            return JSONResponse({"title": "No stream", "detail": "none", "status": 503}, status_code=503)
        return StreamingResponse(stage.stream(), media_type="text/event-stream")

    @app.get(f"/api/rollouts/{ROLLOUT}")
    async def rollout() -> Json:
        reasons = [{"state": "failed", "reason": stage.error, "count": 1, "example": stage.ids[0]}]
        pace = {"in_flight": 500, "per_minute": None}
        plan = {"waves": [{"gate": "none", "success_threshold_percent": None}], "pace": pace}
        return {**stage.rollout(), "reasons": reasons, "held": [], "started_at": _AT, "plan": plan}

    @app.get(f"/api/rollouts/{ROLLOUT}/log")
    async def log() -> Json:
        return {"log": [{"at": _AT, "actor": stage.error, "what": "created", "detail": stage.error}]}

    @app.get(f"/api/rollouts/{ROLLOUT}/series")
    async def series() -> Json:
        ended = {state.value: [3, 5, 8, 2] for state in FINAL}
        seconds: dict[str, list[float | None]] = {"p50": [0.4, 0.5, 0.4, None], "p95": [1.0, 1.2, 1.1, None]}
        return {"from": _AT, "step_s": 1, "ended": ended, "device_s": seconds, "in_flight": [5, 5, 5, 0]}

    @app.get("/api/cells")
    @app.get(f"/api/rollouts/{ROLLOUT}/cells")
    async def cells(request: Request, ids: bool = True) -> Response:
        codes = bytes(STATES.index(stage.states[device_id]) for device_id in stage.ids)
        answer: Json = {"states": list(STATES), "codes": base64.b64encode(codes).decode()}
        return JSONResponse(answer | ({"ids": stage.ids} if ids else {}))

    return app


def _add_lists(app: FastAPI, stage: Stage) -> None:
    @app.get("/api/session")
    async def session() -> Json:
        return stage.session

    @app.get("/api/health")
    async def health() -> Json:
        there = {"connected": True, "reachable": True, "url": "mqtt://x", "endpoint": "http://x"}
        return {"status": "ok", "version": "0", "started_at": _AT, "broker": there, "blob": there}

    @app.get("/api/overview")
    async def overview() -> Json:
        failures = [
            {
                "state": "failed",
                "reason": stage.error,
                "count": 3,
                "example": stage.ids[0],
                "run_id": ROLLOUT,
                "last_at": _AT,
            }
        ]
        fleet = {
            "fleet_id": "fleet-1",
            "devices": len(stage.ids),
            "running": True,
            "connected": len(stage.ids),
        }
        return {
            "rollouts": [stage.rollout()],
            "runs": [],
            "states": stage.counts(),
            "devices": len(stage.ids),
            "online": len(stage.ids),
            "fleets": [fleet],
            "failures": failures,
            "health": await health(),
        }

    @app.get("/api/rollouts")
    async def rollouts() -> Json:
        return {"rollouts": [{**stage.rollout(), "waves": 1}]}

    @app.get("/api/runs")
    async def runs() -> Json:
        return {"runs": []}

    @app.get("/api/devices")
    async def devices(limit: int = 100) -> Json:
        shown = [stage.device(device_id) for device_id in stage.ids[:limit]]
        return {"devices": shown, "next": None, "total": len(stage.ids)}

    @app.get(f"/api/rollouts/{ROLLOUT}/devices")
    async def members(limit: int = 100) -> Json:
        more: Json = {"wave": 1, "held": None, "held_by": None, "attempts": 1, "device_s": 0.5}
        shown = [{**stage.device(device_id), **more} for device_id in stage.ids[:limit]]
        return {"devices": shown, "next": None, "total": len(stage.ids)}

    @app.get("/api/devices/{device_id}")
    async def device(device_id: str) -> Json:
        step = {"step": "downloading", "attempt": 1, "started_at": _AT, "ended_at": _AT, "error": stage.error}
        more: Json = {"tags": stage.tags, "registered_at": _AT, "instance_id": None, "steps": [step]}
        return {**stage.device(device_id), **more, "package": None, "retrying_at": None, "history": []}


def _add_launching(app: FastAPI, stage: Stage) -> None:
    @app.get("/api/behaviours")
    async def behaviours() -> Json:
        names = ("healthy", "slow", "offline", "corrupt")
        known = [{"name": name, "summary": stage.error, "expected": "failed"} for name in names]
        return {"behaviours": known}

    @app.get("/api/releases")
    async def releases() -> Json:
        firmware = {"size_bytes": 1_048_576}
        more: Json = {"models": [stage.model], "default": False, "created_at": _AT, "firmware": firmware}
        return {"releases": [{"name": "trial-1", "version": stage.model, **more}]}

    @app.post("/api/rollouts/plan")
    async def plan(request: Request) -> Json:
        given = RolloutPlan.from_json((await request.json())["plan"])
        devices = len(stage.ids)
        held: list[Json] = []
        sizes = wave_sizes(given, devices)
        return {
            "plan": given.to_json(),
            "devices": devices,
            "waves": sizes,
            "held": held,
            "not_fitting": 2,
        }

    @app.get("/runtime/webhooks/durabletask/instances")
    async def instances() -> list[Json]:
        times = {"createdTime": _AT, "lastUpdatedTime": _AT}
        return [{"instanceId": f"{ROLLOUT}#1#2", "name": "Lane", "runtimeStatus": "Running", **times}]


@contextlib.asynccontextmanager
async def staged(stage: Stage) -> AsyncIterator[str]:
    """Serve it on a free port of 127.0.0.1, on the running loop; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_stage(stage), log_config=None, timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stage.close()
        server.should_exit = True
        await task
        listener.close()
