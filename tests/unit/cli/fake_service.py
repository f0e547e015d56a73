"""A double of the service for tests of the command line: the API's contract on the standard library.

It keeps fleets, devices and runs in memory. A run ends one device with every look at it, so that a test of
`watch` sees it go on without any clock.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from devices.statistics import merge
from tests.unit.cli.fake_releases import FakeReleases
from tests.unit.cli.fake_rollouts import FakeRefusalError, FakeRollouts

Json = dict[str, Any]
START = "2026-01-02T03:04:05.000+00:00"


class FakeProblemError(Exception):
    """An answer as application/problem+json."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class FakeService:
    """Serves until the end of the ``with`` block; ``requests`` holds what was asked, oldest first."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.requests: list[tuple[str, str, Json | None]] = []
        self.fleets: list[Json] = []
        self.devices: dict[str, Json] = {}
        self.runs: dict[str, Json] = {}
        self.outcomes: dict[str, str] = {}
        self.page_limit = 1000
        # After so many looks at it a fleet is stopped; 0: never.
        self.fleet_looks = 0
        self.unregistered = 0
        """How many devices of a fleet have not registered yet; one less at each look."""
        self.missed = 0
        self.differences: list[Json] = []
        self.rollouts = FakeRollouts()
        self.releases = FakeReleases()
        self.keys = [a_key("key-1")]
        self.sas = {"policy": "muster-1-2", "pending": False}
        self.enrolments: dict[str, Json] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.answer(self, "GET")

            def do_POST(self) -> None:
                service.answer(self, "POST")

            def do_DELETE(self) -> None:
                service.answer(self, "DELETE")

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake service")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.state_dir.mkdir(exist_ok=True)
        self.write_record(os.getpid())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def write_record(self, pid: int) -> None:
        """Write service.json with this address and any pid."""
        (self.state_dir / "service.json").write_text(json.dumps({"pid": pid, "url": self.url}))

    def add_device(self, device_id: str, state: str = "new", **more: Any) -> Json:
        """Register a device."""
        device = {
            "device_id": device_id,
            "model": "demo-1",
            "firmware_version": "0.9.0",
            "state": state,
            "online": True,
            "run_id": None,
            "attempt": None,
            "progress": None,
            "updated_at": START,
            "error": None,
            "tags": {},
            "registered_at": START,
            "instance_id": None,
            "steps": [],
            "package": None,
            "outcome": None,
            **more,
        }
        self.devices[device_id] = device
        return device

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        size = int(handler.headers.get("Content-Length", 0))
        raw = handler.rfile.read(size)
        multipart = handler.headers.get("Content-Type", "").startswith("multipart/")
        body = self.releases.read(handler.headers, raw) if multipart else json.loads(raw) if size else None
        self.requests.append((method, handler.path, body))
        try:
            status, document = self._route(method, handler.path, body)
        except (FakeProblemError, FakeRefusalError) as problem:
            status = problem.status
            document = {
                "type": "about:blank",
                "title": "Problem",
                "status": status,
                "detail": problem.detail,
            }
        raw = json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    def _route(self, method: str, target: str, body: Json | None) -> tuple[int, Json]:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match method, [unquote(part) for part in url.path.split("/")[2:]]:
            case "GET", ["health"]:
                return 200, {"status": "ok", "pid": os.getpid()}
            case "GET", ["fleets"]:
                return 200, {"fleets": self.fleets}
            case "POST", ["fleets"]:
                return 201, self._launch(body or {})
            case "GET", ["fleets", fleet_id]:
                return 200, self._fleet(fleet_id)
            case "DELETE", ["fleets", fleet_id]:
                return 200, self._stop(fleet_id)
            case "POST", ["fleets", fleet_id, "changes"]:
                return 200, self._change(fleet_id, body or {})
            case "GET", ["fleets", fleet_id, "devices"]:
                return 200, self._fleet_devices(fleet_id)
            case "GET", ["fleets", fleet_id, "check"]:
                return 200, self._check(fleet_id)
            case "GET", ["keys"]:
                return 200, {"keys": self.keys}
            case "POST", ["keys"]:
                return 201, self._rotate(prepare=query.get("prepare") == "true")
            case "DELETE", ["keys", key_id]:
                return 200, self._retire(key_id)
            case _, ["enrolments", *rest]:
                return self._enrolments(method, rest, body or {}, query)
            case ("GET", ["sas"]) | ("POST", ["sas", "revoke"]):
                return 200, self.sas
            case _, ["releases", *rest]:
                return self.releases.route(method, rest, body or {})
            case _, ["rollouts", *rest]:
                return self.rollouts.route(method, rest, body or {}, parse_qs(url.query))
            case "POST", ["provision"]:
                return 202, self._provision(body or {})
            case "GET", ["runs"]:
                return 200, {"runs": list(self.runs.values())}
            case "GET", ["runs", run_id]:
                return 200, self._run(run_id)
            case "GET", ["runs", run_id, "devices"]:
                return 200, self._run_devices(run_id)
            case "GET", ["devices"]:
                return 200, self._devices(query)
            case "GET", ["devices", device_id]:
                if device_id not in self.devices:
                    raise FakeProblemError(404, f"Unknown device: {device_id}. See `muster devices`.")
                return 200, self.devices[device_id]
        raise FakeProblemError(404, f"{method} {url.path}: Not Found")

    def _enrolments(
        self, method: str, rest: list[str], body: Json, query: dict[str, str]
    ) -> tuple[int, Json]:
        match method, rest:
            case "POST", []:
                new = [name for name in body["device_ids"] if name not in self.enrolments]
                for name in new:
                    self.enrolments[name] = {
                        "device_id": name,
                        "state": "enrolled",
                        "by": "operator",
                        "enrolled_at": START,
                        "revoked_at": None,
                    }
                return 201, {"devices": len(body["device_ids"]), "new": len(new)}
            case "POST", ["actions"]:
                state = "revoked" if body["action"] == "revoke" else "enrolled"
                changed = [name for name in body["device_ids"] if self.enrolments[name]["state"] != state]
                for name in changed:
                    self.enrolments[name]["state"] = state
                    self.enrolments[name]["revoked_at"] = START if state == "revoked" else None
                return 200, {"action": body["action"], "changed": changed}
            case "GET", []:
                # Two to a page.
                after, wanted = query.get("after", ""), query.get("state")
                found = [
                    one
                    for name, one in sorted(self.enrolments.items())
                    if name > after and wanted in (None, one["state"])
                ]
                return 200, {
                    "enrolments": found[:2],
                    "next": found[1]["device_id"] if len(found) > 2 else None,
                }
            case "GET", [device_id]:
                return 200, self.enrolments[device_id]
        raise FakeProblemError(405, f"{method} is not for enrolments")

    def _rotate(self, *, prepare: bool) -> Json:
        for key in () if prepare else self.keys:
            key["state"] = "trusted"
        self.keys.append({**a_key(f"key-{len(self.keys) + 1}"), "state": "next" if prepare else "signs"})
        return self.keys[-1]

    def _retire(self, key_id: str) -> Json:
        for key in self.keys[:-1]:
            if key["key_id"] == key_id:
                key.update(state="retired", retired_at=START)
                return key
        raise FakeProblemError(409, f"{key_id} signs the packages: make another one first")

    def _launch(self, request: Json) -> Json:
        spec = request["spec"]
        fleet = {
            "fleet_id": f"fleet-{len(self.fleets) + 1}",
            "devices": sum(group["count"] for group in spec["groups"]),
            "connected": 0,
            "seed": spec["seed"],
            "groups": spec["groups"],
            "processes": request.get("processes", 1),
            "shard": request.get("shard"),
            "pids": [4711],
            "running": True,
            "restarts": 0,
            "changes": 0,
            "started_at": START,
            "error": None,
        }
        self.fleets.append(fleet)
        for group in spec["groups"]:
            for number in range(group["first"], group["first"] + group["count"]):
                self.add_device(f"{group['prefix']}-{number:05d}")
        return fleet

    def _find(self, fleet_id: str) -> Json:
        for fleet in self.fleets:
            if fleet["fleet_id"] == fleet_id:
                return fleet
        raise FakeProblemError(404, f"Unknown fleet: {fleet_id}. See `muster fleet list`.")

    def _fleet(self, fleet_id: str) -> Json:
        self.fleet_looks -= 1
        if self.fleet_looks == 0:
            self._stop(fleet_id)
        fleet = self._find(fleet_id)
        return {**fleet, "statistics": self.statistics_of(fleet)}

    def statistics_of(self, fleet: Json) -> Json:
        """What a fleet counts: everything a bit."""
        self.unregistered = max(0, self.unregistered - 1)
        return merge(
            [
                {
                    "ever_registered": fleet["devices"] - self.unregistered,
                    "connects": 12,
                    "messages_in": 3,
                    "bytes_in": 4_000,
                    "latencies": {"ack": {"count": 1, "sum_s": 0.1, "buckets": {"73": 1}}},
                    "groups": {
                        group["name"]: {"devices": group["count"], "connected": group["count"]}
                        for group in fleet["groups"]
                    },
                }
            ]
        )

    def _stop(self, fleet_id: str) -> Json:
        fleet = self._find(fleet_id)
        self.fleets.remove(fleet)
        return {**fleet, "running": False, "statistics": self.statistics_of(fleet)}

    def _change(self, fleet_id: str, change: Json) -> Json:
        fleet = self._find(fleet_id)
        answer = {
            "fleet_id": fleet_id,
            "do": change["do"],
            "affected": fleet["devices"],
            "processes": 2,
            "missed": self.missed,
            "lasts": change["do"] != "storm",
        }
        if change["do"] != "add":
            return answer
        return {**answer, "group": {"name": "group-2", "prefix": "dev", "first": 4, **change["group"]}}

    def _fleet_devices(self, fleet_id: str) -> Json:
        self._find(fleet_id)
        devices = [
            {
                "device_id": device_id,
                "group": "devices",
                "behaviour": "healthy",
                "running": True,
                "online": False,
                "expected": "timed_out",
            }
            for device_id in sorted(self.devices)
        ]
        return {"devices": devices, "next": None, "total": len(devices)}

    def _check(self, fleet_id: str) -> Json:
        fleet = self._find(fleet_id)
        return {
            "fleet_id": fleet_id,
            "devices": fleet["devices"],
            "as_expected": fleet["devices"] - len(self.differences),
            "not_judged": 0,
            "not_provisioned_yet": 0,
            "different": len(self.differences),
            "differences": self.differences,
        }

    def _provision(self, body: Json) -> Json:
        wanted = body["device_ids"]
        if wanted is None:
            wanted = [name for name, device in self.devices.items() if device["state"] == "new"]
            if not wanted:
                raise FakeProblemError(409, "No new device waits to be provisioned.")
        if unknown := [name for name in wanted if name not in self.devices]:
            raise FakeProblemError(404, f"Unknown device: {', '.join(unknown)}. See `muster devices`.")
        run_id = f"run-{len(self.runs) + 1}"
        for name in wanted:
            self.devices[name] |= {"state": "queued", "run_id": run_id, "attempt": 1}
        self.runs[run_id] = {
            "run_id": run_id,
            "status": "running",
            "devices": len(wanted),
            "started_at": f"2026-01-02T03:04:{len(self.runs):02d}.000+00:00",
            "ended_at": None,
        }
        misfits = self.releases.not_fitting if body.get("release") else 0
        return {"run_id": run_id, "devices": len(wanted), "not_fitting": misfits}

    def _run(self, run_id: str) -> Json:
        if run_id in self.rollouts.known:
            return self.rollouts.known[run_id].run()
        if run_id not in self.runs:
            raise FakeProblemError(404, f"Unknown run: {run_id}.")
        run = self.runs[run_id]
        mine = [device for device in self.devices.values() if device["run_id"] == run_id]
        left = [device for device in mine if device["state"] == "queued"]
        if left:
            outcome = self.outcomes.get(left[0]["device_id"], "provisioned")
            left[0]["state"] = outcome
            left[0]["error"] = None if outcome == "provisioned" else "no acknowledgement within 1 s"
        elif run["status"] == "running":
            run["status"] = "completed"
        counts: dict[str, int] = {}
        for device in mine:
            counts[device["state"]] = counts.get(device["state"], 0) + 1
        done = len(mine) - counts.get("queued", 0)
        return {
            **run,
            "counts": counts,
            "elapsed_s": 2.0,
            "devices_per_s": done / 2.0,
            "eta_s": 3.0 if left else None,
            "failures": [
                {
                    "device_id": device["device_id"],
                    "state": device["state"],
                    "reason": device["error"],
                    "at": START,
                }
                for device in mine
                if device["error"]
            ],
            "percentiles": {
                "device": {"p50_s": 0.5, "p95_s": 1.5, "p99_s": 75.0},
                "steps": {
                    "downloading": {"p50_s": 0.25, "p95_s": 0.5, "p99_s": 0.75},
                    "packaging": {"p50_s": 0.125, "p95_s": 0.25, "p99_s": 0.5},
                    "activating": {"p50_s": None, "p95_s": None, "p99_s": None},
                },
            },
        }

    def _run_devices(self, run_id: str) -> Json:
        found = [
            device | {"attempts": device["attempt"], "ended_at": START, "device_s": 2.0, "steps_s": {}}
            for device in self.devices.values()
            if device["run_id"] == run_id
        ]
        return {"devices": found, "next": None, "total": len(found)}

    def _devices(self, query: dict[str, str]) -> Json:
        found = [
            device
            for name, device in sorted(self.devices.items())
            if query.get("state", device["state"]) == device["state"]
            and query.get("run_id", device["run_id"]) == device["run_id"]
        ]
        after = query.get("after", "")
        rest = [device for device in found if device["device_id"] > after]
        limit = min(int(query.get("limit", 100)), self.page_limit)
        page = rest[:limit]
        more = len(rest) > limit
        return {
            "devices": page,
            "next": page[-1]["device_id"] if more else None,
            "total": len(found),
        }


def a_key(key_id: str) -> Json:
    """A signing key as the API shows it."""
    return {
        "key_id": key_id,
        "public_key": f"public-{key_id}=",
        "state": "signs",
        "created_at": START,
        "retired_at": None,
    }
