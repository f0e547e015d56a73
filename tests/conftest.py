"""Fixtures that all tests share: real servers on free ports, started once per test process.

The brokers and Azurite of the session are for reading ``url``, ``port`` and ``connection_string``: each test
uses names of its own on them (`unique`). A test that stops or kills a server starts one for itself with
``start_broker`` or ``start_azurite`` on ``tmp_path``.

Where a part is missing its tests are skipped, which MUSTER_REQUIRE_ALL=1 (set in CI) turns into failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import pytest_asyncio

from broker.local import BrokerKind, InstallError, LocalBroker, start_broker
from broker.local.mosquitto import find_mosquitto
from broker.local.node import NodeStack, provide_node_stack
from broker.local.ports import any_free_port
from provisioning.azurite import LocalAzurite, start_azurite

if TYPE_CHECKING:
    from tests.backend import Backend

# These say where the tests get their parts from; every other setting of the user's must not reach a test.
KEPT_VARIABLES = {"MUSTER_CACHE", "MUSTER_CHROMIUM", "MUSTER_REQUIRE_ALL"}
SDK_LOOKS_S = 0.05
ENOUGH_BYTES = 4 * 1024**3


def pytest_configure() -> None:
    """Put the tests' files into memory where there is room: an engine's file is synced at each commit."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        about = os.statvfs(memory)
        # A container's own may be small, and may not be for programs, such as the tests put there.
        if about.f_bavail * about.f_frsize >= ENOUGH_BYTES and not about.f_flag & os.ST_NOEXEC:
            tempfile.tempdir = os.environ.setdefault("TMPDIR", str(memory))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    return any_free_port()


def missing(part: str) -> NoReturn:
    """Skip the test because ``part`` is not on this machine; fail it where nothing may be skipped."""
    if os.environ.get("MUSTER_REQUIRE_ALL") == "1":
        pytest.fail(f"{part}; MUSTER_REQUIRE_ALL=1 allows no skips")
    pytest.skip(part)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Hide the user's Muster settings from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("MUSTER_") and n not in KEPT_VARIABLES]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def sdk_workers_end_at_once() -> Iterator[None]:
    """The SDK's worker looks once a second whether it is to end, and has no option for it; here often."""
    from durabletask import worker

    class Quick(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        @staticmethod
        async def wait_for(awaitable: Awaitable[Any], timeout: float | None) -> Any:
            return await asyncio.wait_for(awaitable, SDK_LOOKS_S if timeout == 1.0 else timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "asyncio", Quick("asyncio"))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_tls_context_for_clients() -> Iterator[None]:
    """Each client of httpx reads all authorities' certificates, for 20 ms; none of them speaks TLS here."""
    import httpx

    with pytest.MonkeyPatch.context() as patch:
        one = functools.cache(httpx.create_ssl_context)
        patch.setattr("httpx._transports.default.create_ssl_context", one)
        yield


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, in letters and digits: for topics, containers, client ids."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack_cache() -> NodeStack:
    """Node and the npm packages of the local stack, fetched once into the user's cache."""
    try:
        return await provide_node_stack(progress=lambda line: print(line, flush=True))
    except InstallError as error:
        missing(f"the local stack could not be fetched: {error}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mosquitto_broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBroker]:
    """A Mosquitto of this test process."""
    if find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
    async with await start_broker(
        state_dir=tmp_path_factory.mktemp("mosquitto"), kind="mosquitto", port=0
    ) as broker:
        yield broker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def aedes_broker(
    tmp_path_factory: pytest.TempPathFactory, stack_cache: NodeStack
) -> AsyncIterator[LocalBroker]:
    """An Aedes of this test process."""
    async with await start_broker(state_dir=tmp_path_factory.mktemp("aedes"), kind="aedes", port=0) as broker:
        yield broker


@pytest.fixture(scope="session")
def any_broker(request: pytest.FixtureRequest) -> LocalBroker:
    """The broker that ``make demo`` would take on this machine."""
    return _broker(request, "aedes" if find_mosquitto() is None else "mosquitto")


@pytest.fixture(scope="session", params=["mosquitto", "aedes"])
def each_broker(request: pytest.FixtureRequest) -> LocalBroker:
    """Both brokers, one after the other: the test runs once with each."""
    return _broker(request, request.param)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def azurite(
    tmp_path_factory: pytest.TempPathFactory, stack_cache: NodeStack
) -> AsyncIterator[LocalAzurite]:
    """An Azurite of this test process."""
    async with await start_azurite(state_dir=tmp_path_factory.mktemp("azurite"), port=0) as storage:
        yield storage


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A Durable Task backend elsewhere; the test starts it."""
    from tests.backend import Backend

    made = Backend()
    yield made
    made.stop()


def _broker(request: pytest.FixtureRequest, kind: BrokerKind) -> LocalBroker:
    broker = request.getfixturevalue(f"{kind}_broker")
    assert isinstance(broker, LocalBroker)
    return broker
