"""The rollouts of the fake service: the API's contract, in memory and without a clock.

With every look at it a rollout ends some devices of its wave, starts the next wave, or stands at a gate: so a
test sees it go on, and knows after how many looks it is where.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

START = "2026-01-02T03:04:05.000+00:00"
STATES = (
    *("pending", "queued", "packaging", "notified", "downloading", "downloaded", "activating"),
    *("provisioned", "failed", "timed_out", "rejected", "cancelled"),
)
FINAL = STATES[7:]
ENDED = ("completed", "cancelled", "failed")


class FakeRefusalError(Exception):
    """A request that is answered as a problem."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class FakeRollouts:
    """All rollouts; ``outcomes`` says how a device ends that is not to be provisioned."""

    def __init__(self) -> None:
        self.known: dict[str, FakeRollout] = {}
        self.device_ids: list[str] = []
        self.outcomes: dict[str, str] = {}
        self.refusal: FakeRefusalError | None = None
        self.per_look = 1
        self.not_fitting = 0
        self.of_devices: dict[str, Json] = {}
        """What else is said of a device that is asked for alone."""
        """How many devices a release that is named does not fit."""
        self.reasons = {"failed": "disk full", "timed_out": "no acknowledgement within 1 s"}

    def route(
        self, method: str, parts: list[str], body: Json, query: dict[str, list[str]] | None = None
    ) -> tuple[int, Json]:
        """Answer a request below /api/rollouts."""
        match method, parts:
            case "GET", []:
                latest_first = reversed(self.known.values())
                return 200, {"rollouts": [rollout.short() for rollout in latest_first]}
            case "POST", []:
                misfits = self.not_fitting if body["plan"].get("release") else 0
                created = self._create(body["plan"], body["actor"]).view()
                return 201, {**created, "not_fitting": misfits}
            case "POST", ["plan"]:
                waves = self._waves(body["plan"], self._targets(body["plan"]))
                return 200, {
                    "plan": body["plan"],
                    "devices": sum(len(wave) for wave in waves),
                    "waves": [len(wave) for wave in waves],
                    "not_fitting": self.not_fitting if body["plan"].get("release") else 0,
                }
        rollout = self.known.get(parts[0])
        if rollout is None:
            raise FakeRefusalError(404, f"There is no rollout {parts[0]!r}: `muster rollout list` shows all.")
        match method, parts[1:]:
            case "GET", []:
                rollout.go_on()
                return 200, rollout.view()
            case "GET", ["devices"]:
                return 200, rollout.page(query or {})
            case "GET", ["devices", name] if name in rollout.devices:
                steps: Json = {"steps": [], "instance_id": f"{parts[0]}:{name}"}
                return 200, rollout.device(name) | steps | self.of_devices.get(name, {})
            case "GET", ["log"]:
                return 200, {"log": rollout.log}
            case "POST", ["actions"]:
                return 200, {"changed": rollout.act(body), "view": rollout.view()}
            case "POST", ["retry"]:
                again = {"failed_in": parts[0], "failed_states": body["states"]}
                return 201, self._create({**rollout.plan, "targets": again}, body["actor"], parts[0]).view()
        raise FakeRefusalError(404, f"{method} {parts}: Not Found")

    def _create(self, plan: Json, actor: str, retry_of: str | None = None) -> FakeRollout:
        targets = self._targets(plan)
        rollout_id = f"rollout-{len(self.known) + 1}"
        rollout = FakeRollout(self, rollout_id, plan, self._waves(plan, targets), retry_of)
        rollout.note(actor, "created", None)
        self.known[rollout_id] = rollout
        return rollout

    def _targets(self, plan: Json) -> list[str]:
        if self.refusal is not None:
            raise self.refusal
        targets = plan.get("targets", {})
        if targets.get("failed_in"):
            before = self.known[targets["failed_in"]].devices
            return [name for name, state in before.items() if state in targets["failed_states"]]
        return list(targets.get("devices") or self.device_ids)

    def _waves(self, plan: Json, targets: list[str]) -> list[list[str]]:
        waves: list[list[str]] = []
        given = plan.get("waves") or [{"percent": 100.0}]
        done = 0
        for wave in given:
            end = done + wave["count"] if "count" in wave else round(len(targets) * wave["percent"] / 100)
            waves.append(targets[done:end])
            done = end
        waves[-1] += targets[done:]
        return waves


class FakeRollout:
    """One rollout."""

    def __init__(
        self,
        rollouts: FakeRollouts,
        rollout_id: str,
        plan: Json,
        waves: list[list[str]],
        retry_of: str | None,
    ) -> None:
        self.rollouts = rollouts
        self.rollout_id = rollout_id
        self.plan = plan
        self.waves = waves
        self.retry_of = retry_of
        self.devices = {name: "pending" for wave in waves for name in wave}
        self.state = "scheduled" if plan.get("schedule", {}).get("start_at") else "running"
        self.reason: str | None = None
        self.wave = 0 if self.state == "scheduled" else 1
        self.looks = 0
        self.log: list[Json] = []
        self.held: dict[str, str] = {}
        """Devices that wait for another run."""

    def note(self, actor: str, what: str, detail: str | None) -> None:
        self.log.append({"at": START, "actor": actor, "what": what, "detail": detail})

    def go_on(self) -> None:
        """What happens between two looks."""
        self.looks += 1
        left = [name for name in self.devices if self.devices[name] == "notified"]
        for name in left[: self.rollouts.per_look]:
            self.devices[name] = self.rollouts.outcomes.get(name, "provisioned")
        if self.state == "cancelling" and not self.in_flight:
            self.state = "cancelled"
        if self.state != "running" or self.wave == 0:
            return
        mine = self.waves[self.wave - 1]
        room = self.plan.get("pace", {}).get("in_flight", 500) - self.in_flight
        for name in [name for name in mine if self.devices[name] == "pending"][:room]:
            self.devices[name] = "notified"
        if all(self.devices[name] in FINAL for name in mine):
            self._end_wave()

    def _end_wave(self) -> None:
        wave = (self.plan.get("waves") or [{}])[self.wave - 1]
        threshold = wave.get("success_threshold_percent")
        good = self._success(self.waves[self.wave - 1])
        if self.wave == len(self.waves):
            self.state = "completed"
        elif threshold is not None and good is not None and good < threshold:
            self.state, self.reason = "paused", f"wave {self.wave}: {good:g}% provisioned, not {threshold:g}%"
        elif wave.get("gate") == "approval":
            self.state = "awaiting_approval"
        elif wave.get("gate") == "pause":
            self.state = "waiting"
        else:
            self.wave += 1

    def act(self, body: Json) -> bool:
        """Do what an operator asks for; False where it changes nothing."""
        if self.state in ENDED:
            raise FakeRefusalError(409, f"{self.rollout_id} has ended ({self.state}): retry makes another.")
        before = (self.state, self.wave, dict(self.devices), dict(self.plan.get("pace", {})))
        match body["action"]:
            case "pause":
                self.state, self.reason = "paused", f"Paused: by {body['actor']}."
            case "resume" if self.state == "paused":
                self.state, self.reason = "running", None
                if all(self.devices[name] in FINAL for name in self.waves[self.wave - 1]):
                    self.wave += 1
            case "approve" | "next":
                if body["action"] == "approve" and self.state != "awaiting_approval":
                    raise FakeRefusalError(409, f"{self.rollout_id} waits for no approval.")
                self.state = "running"
                self.wave += 1
            case "cancel" | "force_cancel":
                self.state, self.reason = "cancelling", f"Cancelled by {body['actor']}."
                self._cancel(("pending",) if body["action"] == "cancel" else ("pending", "notified"))
            case "exclude":
                for name in body["devices"]:
                    if self.devices.get(name) == "pending":
                        self.devices[name] = "cancelled"
            case "add":
                new = [name for name in body["devices"] if name not in self.devices]
                self.waves[-1] += new
                self.devices |= dict.fromkeys(new, "pending")
            case "pace":
                self.plan = {**self.plan, "pace": {**self.plan.get("pace", {}), **body["pace"]}}
        changed = before != (self.state, self.wave, self.devices, self.plan.get("pace", {}))
        if changed:
            self.note(body["actor"], body["action"], body.get("reason"))
        return changed

    def _cancel(self, states: tuple[str, ...]) -> None:
        for name, state in self.devices.items():
            if state in states:
                self.devices[name] = "cancelled"

    @property
    def in_flight(self) -> int:
        return sum(state == "notified" for state in self.devices.values())

    def _success(self, names: list[str]) -> float | None:
        ended = [self.devices[name] for name in names if self.devices[name] in FINAL]
        return 100 * ended.count("provisioned") / len(ended) if ended else None

    def _counts(self, names: list[str]) -> Json:
        found = [self.devices[name] for name in names]
        return {state: found.count(state) for state in STATES}

    def _wave_state(self, number: int) -> str:
        if all(self.devices[name] in FINAL for name in self.waves[number - 1]) and (
            number <= self.wave or self.state in ENDED
        ):
            return "done"
        if number > self.wave:
            return "pending"
        return self.state if self.state in ("paused", "waiting") else "running"

    def short(self) -> Json:
        """The rollout in a list."""
        return {
            "rollout_id": self.rollout_id,
            "name": self.plan.get("name"),
            "release": self.plan.get("release"),
            "state": self.state,
            "reason": self.reason,
            "wave": self.wave,
            "waves": len(self.waves),
            "devices": len(self.devices),
            "counts": self._counts(list(self.devices)),
            "created_at": START,
            "ended_at": START if self.state in ENDED else None,
        }

    def device(self, name: str) -> Json:
        """One device as the list of a rollout's has it."""
        state = self.devices[name]
        missed = state in FINAL and state != "provisioned"
        return {
            "device_id": name,
            "wave": next(number for number, wave in enumerate(self.waves, start=1) if name in wave),
            "state": state,
            "held": "wait" if name in self.held else None,
            "held_by": self.held.get(name),
            "attempts": int(state in FINAL),
            "progress": 1.0 if state == "provisioned" else None,
            "error": self.rollouts.reasons.get(state) if missed else None,
            "online": True,
            "model": "demo-1",
            "firmware_version": "1",
            "ended_at": START if state in FINAL else None,
            "device_s": 1.5 if state in FINAL else None,
            "steps_s": {
                "packaging": 0.5 if state in FINAL else None,
                "notifying": None,
                "downloading": 0.75 if state == "provisioned" else None,
                "activating": None,
            },
        }

    def page(self, query: dict[str, list[str]]) -> Json:
        """A page of its devices."""
        found = [
            name
            for name in sorted(self.devices)
            if self.devices[name] in query.get("state", STATES)
            and ("wave" not in query or name in self.waves[int(query["wave"][0]) - 1])
        ]
        left = [name for name in found if name > query.get("after", [""])[0]]
        page = left[: int(query["limit"][0])]
        return {
            "devices": [self.device(name) for name in page],
            "next": page[-1] if len(left) > len(page) else None,
            "total": len(found),
        }

    def run(self) -> Json:
        """The run that it is on record as."""
        return {
            "run_id": self.rollout_id,
            "status": "completed" if self.state in ENDED else "running",
            "devices": len(self.devices),
            "failures": [
                {"device_id": name, "state": state, "reason": self.rollouts.reasons.get(state), "at": START}
                for name, state in self.devices.items()
                if state in FINAL and state != "provisioned"
            ],
        }

    def view(self) -> Json:
        """The whole rollout."""
        missed: dict[str, list[str]] = {}
        for name, state in self.devices.items():
            if state in FINAL and state != "provisioned":
                missed.setdefault(state, []).append(name)
        ended = sum(state in FINAL for state in self.devices.values())
        elapsed_s = self.looks * 0.5
        rate = ended / elapsed_s if elapsed_s and ended else None
        return {
            **self.short(),
            "waves": [
                {
                    "number": number,
                    "devices": len(names),
                    "state": self._wave_state(number),
                    "counts": self._counts(names),
                    "success_percent": self._success(names),
                }
                for number, names in enumerate(self.waves, start=1)
            ],
            "in_flight": self.in_flight,
            "elapsed_s": elapsed_s,
            "devices_per_s": rate,
            "eta_s": (len(self.devices) - ended) / rate if rate and self.state not in ENDED else None,
            "reasons": [
                {
                    "reason": self.rollouts.reasons.get(state, "the rollout was cancelled"),
                    "state": state,
                    "count": len(names),
                    "example": names[0],
                }
                for state, names in missed.items()
            ],
            "held": [{"run_id": run_id, "how": "wait", "devices": 1} for run_id in self.held.values()],
            "started_at": START if self.wave else None,
            "retry_of": self.retry_of,
            "plan": self.plan,
        }
