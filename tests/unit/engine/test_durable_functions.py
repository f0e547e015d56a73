"""Durable Functions style: the seed's orchestrators, the wrappers, and replay."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask.client import OrchestrationStatus

import provisioning.engine.durable_functions as df
from tests.unit.engine.driving import Driver, output_of
from tests.unit.engine.hosts import EMBEDDED, SDK, Function, running

Context = df.DurableOrchestrationContext
Steps = Generator[Any, Any, Any]
SEED = Path(__file__).with_name("seed_orchestrators.md")


def seed_orchestrators(monkeypatch: pytest.MonkeyPatch) -> dict[str, Function]:
    """The document's orchestrators, with our module where they import Azure's."""
    monkeypatch.setitem(sys.modules, "azure.functions", types.ModuleType("azure.functions"))
    monkeypatch.setitem(sys.modules, "azure.durable_functions", df)
    found = re.findall(
        r"^## (\w+)\n\n```[Pp]ython\n(.*?)```", SEED.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    functions = {}
    for name, source in found:
        namespace: dict[str, Any] = {}
        exec(compile(source, f"{SEED.name}: {name}", "exec"), namespace)
        functions[name] = df.orchestrator(namespace["orchestrator_function"], name=name)
    return functions


@pytest.mark.parametrize("kind", [EMBEDDED, SDK])
async def test_the_seeds_orchestrators_run_as_they_stand(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrators = seed_orchestrators(monkeypatch)
    assert list(orchestrators) == ["DeviceProvisioningOrchestration", "ProvisionNewDevices"]
    loop = asyncio.get_running_loop()
    sent: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    def get_new_device_ids(_: None) -> list[str]:
        return ["device-1", "device-2", "device-3"]

    def create_installation_package(device_id: str) -> str:
        return f"https://blobs.example/{device_id}?sig=…"

    def send_package_url_to_device(package: dict[str, str]) -> None:
        loop.call_soon_threadsafe(sent.put_nowait, package)

    activities = [
        df.activity(get_new_device_ids, name="GetNewDeviceIds"),
        df.activity(create_installation_package, name="CreateInstallationPackage"),
        df.activity(send_package_url_to_device, name="SendPackageUrlToDevice"),
    ]
    async with running(kind, tmp_path / "engine.db", orchestrators.values(), activities) as host:
        await host.start("ProvisionNewDevices", instance_id="run")
        async with asyncio.timeout(20):
            packages = sorted([await sent.get() for _ in range(3)], key=lambda p: p["id"])
        assert packages == [
            {"id": f"device-{n}", "url": f"https://blobs.example/device-{n}?sig=…"} for n in (1, 2, 3)
        ]
        for number in range(3):
            state = await host.client.get_orchestration_state("run")
            assert state.runtime_status == OrchestrationStatus.RUNNING
            await host.event(f"run:{number}", "DownloadCompletedAck", True)
            assert await host.output_of(f"run:{number}") is None
        assert await host.output_of("run") is None


# Replay

ANSWER_BY = timedelta(seconds=60)


def supervises(context: Context) -> Steps:
    """Waits and timers that lose and are left behind, and tasks in several composites."""
    seen: list[Any] = [context.new_guid().hex]
    both = context.task_all([context.call_activity("a"), context.call_activity("b")])
    for reminders in range(5):
        context.set_custom_status(reminders)
        answer = context.wait_for_external_event("Answer")
        deadline = context.create_timer(context.current_utc_datetime + ANSWER_BY)
        winner = yield context.task_any([answer, deadline, both])
        if winner is both:
            return seen + both.result
        if winner is answer:
            seen.append(answer.result)
            deadline.cancel()
        else:
            seen.append("late")
    return None


@pytest.mark.parametrize("reloaded", [False, True])
def test_replay_leads_to_where_the_live_orchestration_is(reloaded: bool) -> None:
    driver = Driver(df.orchestrator(supervises))
    # After each turn the driver compares the live execution with a replayed one.
    for messages in (
        [driver.start_message()],
        [driver.fired(3)],
        [driver.event("Answer", "one"), driver.done(1, "A")],
        [driver.event("Answer", "two"), driver.event("Answer", "three")],
    ):
        assert driver.turn(*messages).completion is None
        if reloaded:
            driver.reload()
    guid, *seen = output_of(driver.turn(driver.done(2, "B")))
    assert seen == ["late", "one", "two", "three", "A", "B"]
    assert len(guid) == 32


def test_is_replaying_says_so() -> None:
    seen: list[bool] = []

    def watches(context: Context) -> Steps:
        seen.append(context.is_replaying)
        yield context.call_activity("a")
        seen.append(context.is_replaying)
        yield context.call_activity("b")

    driver = Driver(df.orchestrator(watches))
    driver.start()
    driver.turn(driver.done(1))
    seen.clear()
    driver.reload()
    assert seen == [True, True]
    driver.turn(driver.done(2))
    assert driver.last is not None
    assert driver.last.completion is not None


def test_an_execution_that_is_let_go_runs_its_finally_blocks_once() -> None:
    """What they ask for is no longer heard; that they won't end is nobody's trouble."""
    left: list[str] = []

    def holds(context: Context) -> Steps:
        try:
            yield context.call_activity("a")
        finally:
            left.append("finally")
            yield context.call_activity("b")

    driver = Driver(df.orchestrator(holds))
    driver.start()
    left.clear()
    driver.execution.close()
    assert left == ["finally"]


# The wrappers


def test_wrapped_functions_have_the_names_that_calls_use() -> None:
    def fn(context: Context) -> None: ...

    assert df.orchestrator(fn).__name__ == "fn"
    assert df.orchestrator(fn, name="ProvisionNewDevices").__name__ == "ProvisionNewDevices"
    assert df.activity(fn, name="CreatePackage").__name__ == "CreatePackage"
    assert df.Orchestrator.create(fn).__name__ == "fn"
    with pytest.raises(ValueError, match="lambda"):
        df.orchestrator(lambda context: None)
    assert df.orchestrator(lambda context: None, name="named").__name__ == "named"


def test_functions_of_another_shape_are_refused_by_name() -> None:
    def native(context: Any, input_: Any) -> None: ...

    def bare() -> None: ...

    async def coroutine(context: Any) -> None: ...

    wrong: Any
    for wrong in (native, bare):
        with pytest.raises(TypeError, match=rf"activity takes one argument, and .*{wrong.__name__}"):
            df.activity(wrong)
        with pytest.raises(TypeError, match=r"register one that takes \(context, input\)"):
            df.orchestrator(wrong)
    with pytest.raises(TypeError, match="write yield instead of await"):
        df.orchestrator(coroutine)


def test_retry_options_are_checked_and_readable() -> None:
    options = df.RetryOptions(first_retry_interval_in_milliseconds=1500, max_number_of_attempts=3)
    assert (options.first_retry_interval_in_milliseconds, options.max_number_of_attempts) == (1500, 3)
    with pytest.raises(ValueError, match="first_retry_interval_in_milliseconds"):
        df.RetryOptions(0, 3)
    with pytest.raises(ValueError, match="max_number_of_attempts"):
        df.RetryOptions(1, 0)
