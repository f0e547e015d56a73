"""A program written for the SDK runs on a task hub by changing its two constructors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from provisioning.engine import AsyncTaskHubClient, TaskHubClient, TaskHubWorker
from tests.conftest import free_port
from tests.unit.engine import sample_program


@pytest.fixture
def sdk_address() -> Iterator[str]:
    """Where the SDK's own in-memory backend listens."""
    port = free_port()
    backend = create_test_backend(port=port)
    yield f"localhost:{port}"
    backend.stop()


def test_the_sample_on_the_sdk(sdk_address: str) -> None:
    """What the program does on the SDK's own worker, client and backend: the measure for ours."""
    with TaskHubGrpcClient(host_address=sdk_address) as client:
        worker = TaskHubGrpcWorker(host_address=sdk_address)
        assert sample_program.run(worker, client) == sample_program.EXPECTED


def test_the_sample_on_a_hub(path: Path) -> None:
    """S-HUB-7: the same program, the two constructors changed."""
    with TaskHubClient(hub=path) as client:
        worker = TaskHubWorker(hub=path)
        assert sample_program.run(worker, client) == sample_program.EXPECTED


async def test_the_asynchronous_client_on_a_hub(path: Path) -> None:
    """S-HUB-4: on a loop other than the engine's."""
    with TaskHubWorker(hub=path) as worker:
        worker.add_orchestrator(sample_program.fan_out_fan_in)
        worker.add_activity(sample_program.get_work_items)
        worker.add_activity(sample_program.process)
        worker.start()
        async with AsyncTaskHubClient(hub=path) as client:
            ids = await asyncio.gather(
                *(client.schedule_new_orchestration("fan_out_fan_in", input=n) for n in range(4))
            )
            states = await asyncio.gather(
                *(client.wait_for_orchestration_completion(i, timeout=20) for i in ids)
            )
            assert [state and state.get_output() for state in states] == [0, 0, 1, 5]


# Signatures


def public_methods(owner: type) -> dict[str, Callable[..., Any]]:
    return {
        name: method
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
    }


def parameters(method: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    return {
        p.name: (p.kind, p.default) for p in inspect.signature(method).parameters.values() if p.name != "self"
    }


def assert_fits(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    """Ours has all parameters of theirs, of the same kind and with the same defaults."""
    wanted, present = parameters(theirs), parameters(ours)
    assert {name: present.get(name) for name in wanted} == wanted, theirs.__name__
    more = [name for name in present if name not in wanted]
    assert all(present[name][0] == inspect.Parameter.KEYWORD_ONLY for name in more), more


@pytest.mark.parametrize(
    ("ours", "theirs"), [(AsyncTaskHubClient, AsyncTaskHubGrpcClient), (TaskHubClient, TaskHubGrpcClient)]
)
def test_the_clients_have_the_sdks_methods_with_its_signatures(ours: type, theirs: type) -> None:
    """S-HUB-7: nothing is missing."""
    wanted, present = public_methods(theirs), public_methods(ours)
    assert wanted.keys() - present.keys() == set()
    for name in wanted:
        assert_fits(present[name], wanted[name])
        assert inspect.iscoroutinefunction(present[name]) == inspect.iscoroutinefunction(wanted[name]), name


def test_the_synchronous_client_has_all_that_the_asynchronous_one_has() -> None:
    """S-HUB-7: a thin shell, with nothing forgotten, and the same signatures."""
    asynchronous, present = public_methods(AsyncTaskHubClient), public_methods(TaskHubClient)
    wanted = {name: m for name, m in asynchronous.items() if inspect.iscoroutinefunction(m)}
    assert present.keys() == wanted.keys()
    for name in wanted:
        assert inspect.signature(present[name]) == inspect.signature(wanted[name])


def test_the_worker_has_the_sdks_methods_with_its_signatures() -> None:
    """S-HUB-7: nothing is missing."""
    wanted, present = public_methods(TaskHubGrpcWorker), public_methods(TaskHubWorker)
    assert wanted.keys() - present.keys() == {"add_capability"}  # a matter of the wire
    for name in wanted.keys() & present.keys() - {"use_work_item_filters"}:  # whose default is private
        assert_fits(present[name], wanted[name])


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        (TaskHubWorker, TaskHubGrpcWorker, set()),
        (TaskHubClient, TaskHubGrpcClient, {"logger", "log_handler", "log_formatter"}),
        (AsyncTaskHubClient, AsyncTaskHubGrpcClient, {"logger", "log_handler", "log_formatter"}),
    ],
)
def test_the_options_are_the_sdks(ours: type, theirs: type, more: set[str]) -> None:
    """S-HUB-7: all of them but what is about connections, payload stores, traces, and the clients' logs."""
    wire = {"host_address", "metadata", "channel", "secure_channel", "interceptors", "channel_options"}
    elsewhere = {"resiliency_options", "payload_store", "emit_trace_spans"}
    wanted, present = parameters(theirs), parameters(ours)
    assert wanted.keys() - present.keys() == wire | elsewhere | more
    shared = wanted.keys() & present.keys()
    assert {name: present[name] for name in shared} == {name: wanted[name] for name in shared}
