"""One device's orchestration against every fault of its device, on the SDK's own engine and on ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationState
from durabletask.task import TaskFailedError
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from provisioning import orchestrations
from provisioning.engine import AsyncTaskHubClient, Engine
from provisioning.orchestrations import DeviceProvisioningOrchestration, ProvisionNewDevices, call_patiently
from tests.conftest import free_port

Json = dict[str, Any]
RUN = "run-1"
INSTANCE = f"{RUN}:dev-1"
GOOD = {"package_id": "pkg-1", "size_bytes": 100, "sha256": "a" * 64}
FAST = {"ack_timeout_s": 1.0, "activation_timeout_s": 1.0, "max_attempts": 2, "outage_tolerance_s": 0.0}
PATIENT = {**FAST, "ack_timeout_s": 60.0, "activation_timeout_s": 60.0}


class World:
    """The activities of the tests: they record what they are asked, and let the test wait for it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Json]] = []
        self.new_devices: list[str] = []
        self.failing: set[str] = set()
        self.rejected: str | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def activities(self) -> dict[str, Callable[[Any, Json], Any]]:
        def named(name: str, answer: Callable[[Json], Any]) -> Callable[[Any, Json], Any]:
            def activity(_ctx: Any, request: Json) -> Any:
                self.calls.append((name, request))
                self._loop.call_soon_threadsafe(self._changed.set)
                if name in self.failing:
                    raise OSError("the wire is cut")
                return answer(request)

            return activity

        answers: dict[str, Callable[[Json], Any]] = {
            orchestrations.GET_NEW_DEVICE_IDS: lambda _: self.new_devices,
            orchestrations.CREATE_INSTALLATION_PACKAGE: lambda _: (
                {**GOOD, "release": "demo-1.0.0"} if self.rejected is None else {"rejected": self.rejected}
            ),
            orchestrations.SEND_PACKAGE_URL_TO_DEVICE: lambda _: None,
            orchestrations.ACTIVATE_DEVICE: lambda _: None,
            orchestrations.RECORD_OUTCOME: lambda _: None,
        }
        return {name: named(name, answer) for name, answer in answers.items()}

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    async def wait_called(self, name: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while self.count(name) < times:
                self._changed.clear()
                await self._changed.wait()


class Hub:
    """An engine with the orchestrations on it, and its client."""

    def __init__(self, client: Any, world: World) -> None:
        self.client = client
        self.world = world

    async def start(self, options: Json, **more: Any) -> None:
        await self.client.schedule_new_orchestration(
            DeviceProvisioningOrchestration,
            input={"device_id": "dev-1", "options": options, **more},
            instance_id=INSTANCE,
        )

    async def event(self, name: str, **data: Any) -> None:
        await self.client.raise_orchestration_event(
            INSTANCE, name, data={"package_id": "pkg-1", "attempt": 1, **data}
        )

    async def ack(self, **data: Any) -> None:
        await self.event("DownloadCompletedAck", **{**GOOD, **data})

    async def outcome(self) -> Json:
        state: OrchestrationState = await self.client.wait_for_orchestration_completion(INSTANCE, timeout=30)
        assert state.runtime_status.name == "COMPLETED", state.failure_details
        assert "top-secret" not in f"{state.serialized_output}{state.serialized_custom_status}"
        outcome: Json = json.loads(state.serialized_output or "null")
        recorded = [request for name, request in self.world.calls if name == orchestrations.RECORD_OUTCOME]
        record = dict(recorded[-1])
        device_s, steps_s = record.pop("device_s"), record.pop("steps_s")
        assert record.pop("run_id") == RUN
        assert record == {name: outcome[name] for name in record}
        assert {"state", "attempts", "error", "ended_at"} < record.keys()
        assert set(steps_s) == {step["step"] for step in outcome["steps"]}
        assert 0 <= sum(steps_s.values()) <= device_s + 0.001
        return outcome


@pytest.fixture(params=["embedded", "sdk"])
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hub]:
    world = World()
    if request.param == "embedded":
        engine = Engine(tmp_path / "engine.db")
        for orchestrator in (ProvisionNewDevices, DeviceProvisioningOrchestration):
            engine.add_orchestrator(orchestrator)
        for name, activity in world.activities().items():
            engine.add_named_activity(name, activity)
        async with engine:
            yield Hub(AsyncTaskHubClient(engine), world)
        return
    port = free_port()
    backend = create_test_backend(port=port)
    worker = TaskHubGrpcWorker(host_address=f"127.0.0.1:{port}")
    for orchestrator in (ProvisionNewDevices, DeviceProvisioningOrchestration):
        worker.add_orchestrator(orchestrator)
    for name, activity in world.activities().items():
        worker._registry.add_named_activity(name, activity)  # the SDK registers by __name__ only
    worker.start()  # type: ignore[no-untyped-call]  # the SDK's own
    client = AsyncTaskHubGrpcClient(host_address=f"127.0.0.1:{port}")
    try:
        yield Hub(client, world)
    finally:
        await client.close()
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(backend.stop)


async def test_a_device_goes_all_the_way(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called("SendPackageUrlToDevice")
    await hub.ack()
    await hub.world.wait_called("ActivateDevice")
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"], outcome["error"]) == ("provisioned", 1, None)
    assert outcome["firmware_version"] == "1.0.0"
    assert [step["step"] for step in outcome["steps"]] == [
        "packaging",
        "notifying",
        "downloading",
        "activating",
    ]
    assert all(step["started_at"] <= step["ended_at"] for step in outcome["steps"])


async def test_a_device_that_returns_is_told_again_within_the_same_attempt(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called("SendPackageUrlToDevice")
    await hub.client.raise_orchestration_event(INSTANCE, "DeviceReturned")
    await hub.world.wait_called("SendPackageUrlToDevice", 2)
    await hub.ack()
    await hub.world.wait_called("ActivateDevice")
    await hub.client.raise_orchestration_event(INSTANCE, "DeviceReturned")
    await hub.world.wait_called("ActivateDevice", 2)
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("provisioned", 1)
    assert hub.world.count("CreateInstallationPackage") == 1
    first, again = (request for called, request in hub.world.calls if called == "ActivateDevice")
    assert first == again
    first, again = (request for called, request in hub.world.calls if called == "SendPackageUrlToDevice")
    # By a URL of its own, which lasts for what is left of the wait.
    assert again.pop("sas_lifetime_s") <= first.pop("sas_lifetime_s") == PATIENT["ack_timeout_s"] + 60
    assert first == again


async def test_events_that_come_before_the_wait_begins_are_not_lost(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.ack()
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    assert (await hub.outcome())["state"] == "provisioned"


async def test_no_ack_in_time_is_a_new_package_url_and_in_the_end_a_time_out(hub: Hub) -> None:
    await hub.start({**PATIENT, "ack_timeout_s": 0.2})
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("timed_out", 2)
    assert hub.world.count("CreateInstallationPackage") == hub.world.count("SendPackageUrlToDevice") == 2
    attempts = [request["attempt"] for name, request in hub.world.calls if name == "SendPackageUrlToDevice"]
    assert attempts == [1, 2]


async def test_a_late_ack_of_an_earlier_attempt_counts(hub: Hub) -> None:
    await hub.start({**PATIENT, "ack_timeout_s": 0.3, "max_attempts": 50})
    await hub.world.wait_called("SendPackageUrlToDevice", 2)
    await hub.ack(attempt=1)
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    assert (await hub.outcome())["state"] == "provisioned"


async def test_an_ack_with_the_wrong_hash_is_named_and_the_next_attempt_may_succeed(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called("SendPackageUrlToDevice")
    await hub.ack(sha256="b" * 64)
    await hub.world.wait_called("SendPackageUrlToDevice", 2)
    await hub.ack(attempt=2)
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"], outcome["error"]) == ("provisioned", 2, None)
    wrong = next(step for step in outcome["steps"] if step["error"])
    assert wrong["step"] == "downloading"
    assert "bbbb" in wrong["error"]


async def test_an_ack_for_another_package_is_named_and_otherwise_ignored(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called("SendPackageUrlToDevice")
    await hub.ack(package_id="other")
    await hub.ack()
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("provisioned", 1)
    assert "other" in outcome["steps"][2]["error"]


async def test_a_failed_download_is_tried_again_up_to_the_limit(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called("SendPackageUrlToDevice")
    await hub.event("DownloadFailed", reason="http-404", detail="gone")
    # The same news of attempt 1 again must not use up attempt 2.
    await hub.event("DownloadFailed", reason="http-404", detail="gone")
    await hub.world.wait_called("SendPackageUrlToDevice", 2)
    await hub.event("DownloadFailed", attempt=2, reason="http-500", detail="")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("failed", 2)
    assert outcome["error"] == "download failed: http-500"


async def test_a_rejected_package_is_not_sent_again(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.event("PackageRejected", reason="wrong-model", detail="")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("rejected", 1)
    assert outcome["error"] == "rejected the package: wrong-model"


async def test_a_device_that_the_release_does_not_fit_is_rejected_at_once_and_told_nothing(hub: Hub) -> None:
    hub.world.rejected = "the release fw-2 is for the model m1, and the device's model is m2"
    await hub.start({**PATIENT, "retries": {"rejected": {"max_attempts": 2}}}, release="fw-2")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"], outcome["package"]) == ("rejected", 1, None)
    assert outcome["error"] == hub.world.rejected
    assert [name for name, _ in hub.world.calls] == ["CreateInstallationPackage", "RecordOutcome"]
    assert hub.world.calls[0][1]["release"] == "fw-2"


async def test_without_a_release_nothing_is_said_of_one(hub: Hub) -> None:
    hub.world.new_devices = ["dev-1"]
    hub.world.rejected = "so that it ends"
    for release in ({}, {"release": "fw-2"}):
        run_id = await hub.client.schedule_new_orchestration(
            ProvisionNewDevices, input={"device_ids": None, "options": PATIENT, **release}
        )
        await hub.client.wait_for_orchestration_completion(run_id, timeout=30)
    named = [request.get("release", "-") for name, request in hub.world.calls if name != "RecordOutcome"]
    assert named == ["-", "-", "fw-2", "fw-2"]


async def test_a_failed_activation_is_commanded_again(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.ack()
    await hub.world.wait_called("ActivateDevice")
    await hub.event("ActivationFailed", reason="busy", detail="")
    await hub.world.wait_called("ActivateDevice", 2)
    await hub.event("ActivationCompleted", attempt=2, firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["error"]) == ("provisioned", None)
    assert hub.world.count("SendPackageUrlToDevice") == 1


async def test_a_device_that_has_lost_its_download_gets_the_package_again(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.ack()
    await hub.world.wait_called("ActivateDevice")
    await hub.event("ActivationFailed", reason="package-not-present", detail="")
    await hub.world.wait_called("SendPackageUrlToDevice", 2)
    await hub.ack(attempt=2)
    await hub.world.wait_called("ActivateDevice", 2)
    # A second command must not look like the first one again: a device answers that one as it did before.
    commands = [request for name, request in hub.world.calls if name == "ActivateDevice"]
    assert [command["activation_attempt"] for command in commands] == [1, 2]
    await hub.event("ActivationCompleted", attempt=2, firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"], outcome["error"]) == ("provisioned", 2, None)


async def test_a_device_that_loses_every_download_fails(hub: Hub) -> None:
    await hub.start(PATIENT)
    for attempt in (1, 2):
        await hub.world.wait_called("SendPackageUrlToDevice", attempt)
        await hub.ack(attempt=attempt)
        await hub.world.wait_called("ActivateDevice", attempt)
        await hub.event("ActivationFailed", attempt=attempt, reason="package-not-present", detail="")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("failed", 2)
    assert "package-not-present" in outcome["error"]


async def test_an_activation_that_is_never_confirmed_times_out(hub: Hub) -> None:
    await hub.start({**PATIENT, "activation_timeout_s": 0.2})
    await hub.ack()
    outcome = await hub.outcome()
    assert outcome["state"] == "timed_out"
    assert hub.world.count("ActivateDevice") == 2


async def test_an_activity_that_fails_beyond_the_tolerance_fails_the_device_and_only_it(hub: Hub) -> None:
    hub.world.failing = {"CreateInstallationPackage"}
    await hub.start(FAST)
    outcome = await hub.outcome()
    assert outcome["state"] == "failed"
    assert "the wire is cut" in outcome["error"]
    assert outcome["steps"][0]["error"] is not None


async def test_the_devices_deadline_ends_it_while_it_waits_and_between_tries_of_an_activity(hub: Hub) -> None:
    hub.world.failing = {"SendPackageUrlToDevice"}
    await hub.start({**PATIENT, "outage_tolerance_s": 60.0, "device_timeout_s": 1.0})
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("timed_out", 1)
    assert outcome["error"] == "deadline of the device (1 s) passed in notifying, attempt 1"


async def test_a_late_ack_ends_the_wait_for_the_next_attempt(hub: Hub) -> None:
    await hub.start({**PATIENT, "ack_timeout_s": 0.2, "retries": {"no_ack": {"delay_s": 3600.0}}})
    async with asyncio.timeout(30):
        while True:
            state = await hub.client.get_orchestration_state(INSTANCE)
            if '"waiting"' in (state.serialized_custom_status or ""):
                break
            await asyncio.sleep(0.02)
    await hub.client.raise_orchestration_event(INSTANCE, "DeviceReturned")
    await hub.ack()
    await hub.world.wait_called("ActivateDevice")
    await hub.event("ActivationCompleted", firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("provisioned", 1)
    assert hub.world.count("SendPackageUrlToDevice") == 1


async def test_a_run_provisions_each_device_once_and_adds_them_up(hub: Hub) -> None:
    hub.world.new_devices = ["a", "b", "c"]
    await hub.client.schedule_new_orchestration(
        ProvisionNewDevices,
        input={"device_ids": None, "options": {**FAST, "max_attempts": 1}},
        instance_id=RUN,
    )
    for device_id in ("a", "b"):
        await hub.client.wait_for_orchestration_start(f"{RUN}:{device_id}", timeout=30)
        for name, data in (
            ("DownloadCompletedAck", GOOD),
            ("ActivationCompleted", {"firmware_version": "2"}),
        ):
            await hub.client.raise_orchestration_event(
                f"{RUN}:{device_id}", name, data={"package_id": "pkg-1", "attempt": 1, **data}
            )
    state = await hub.client.wait_for_orchestration_completion(RUN, timeout=30)
    output = json.loads(state.serialized_output)
    assert output["counts"] == {"provisioned": 2, "timed_out": 1}
    assert [failure["device_id"] for failure in output["failures"]] == ["c"]


async def test_a_run_without_devices_ends_at_once(hub: Hub) -> None:
    await hub.client.schedule_new_orchestration(
        ProvisionNewDevices, input={"device_ids": None}, instance_id=RUN
    )
    state = await hub.client.wait_for_orchestration_completion(RUN, timeout=30)
    assert json.loads(state.serialized_output)["devices"] == 0


class Clock:
    """As much of an orchestration's context as retries need: a clock that runs where one waits."""

    def __init__(self) -> None:
        self.current_utc_datetime = datetime(2026, 1, 1)  # noqa: DTZ001 (as in the SDK)
        self.delays_s: list[float] = []
        self.tries = 0

    def call_activity(self, activity: str, *, input: Any) -> str:
        self.tries += 1
        return "try"

    def create_timer(self, delay: timedelta) -> str:
        self.current_utc_datetime += delay
        self.delays_s.append(delay.total_seconds())
        return "wait"


@pytest.mark.parametrize("tolerance_s", [0.0, 0.4, 10.0, 300.0, 7 * 86_400.0])
def test_retries_last_as_long_as_the_run_tolerates_an_outage(tolerance_s: float) -> None:
    clock = Clock()
    flow = call_patiently(cast(Any, clock), "Activity", {}, tolerance_s=tolerance_s)
    failure = TaskFailedError("the wire is cut", OSError("the wire is cut"))
    yielded: Any = next(flow)
    with contextlib.suppress(TaskFailedError):
        while True:
            yielded = flow.throw(failure) if yielded == "try" else flow.send(None)
    assert tolerance_s <= sum(clock.delays_s) <= tolerance_s * 1.01 + 5
    assert clock.delays_s == sorted(clock.delays_s)
    assert clock.tries == len(clock.delays_s) + 1 < 1_000


async def test_a_try_that_succeeded_is_not_taken_back_when_the_time_has_run_out(hub: Hub) -> None:
    hub.world.failing.add(orchestrations.CREATE_INSTALLATION_PACKAGE)
    # Each time-out is a turn, on the SDK's engine a replay, later than the tolerance of the first failure.
    await hub.start({**FAST, "outage_tolerance_s": 1.0})
    await hub.world.wait_called(orchestrations.CREATE_INSTALLATION_PACKAGE)
    hub.world.failing.clear()
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("timed_out", 2)


async def test_a_second_ack_of_a_lost_download_does_not_count_for_the_next(hub: Hub) -> None:
    await hub.start(PATIENT)
    await hub.world.wait_called(orchestrations.SEND_PACKAGE_URL_TO_DEVICE)
    await hub.ack()
    await hub.ack()  # as it comes on an engine without idempotency keys
    await hub.world.wait_called(orchestrations.ACTIVATE_DEVICE)
    await hub.event("ActivationFailed", reason="package-not-present", attempt=1)
    await hub.world.wait_called(orchestrations.SEND_PACKAGE_URL_TO_DEVICE, 2)
    await hub.ack(attempt=2)
    await hub.world.wait_called(orchestrations.ACTIVATE_DEVICE, 2)
    await hub.event("ActivationCompleted", attempt=2, firmware_version="1.0.0")
    outcome = await hub.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("provisioned", 2)
    assert "of a download that was lost" in outcome["steps"][-2]["error"]
