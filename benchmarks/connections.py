"""How fast clients connect: bare aiomqtt, and the fleet's devices. One process, one fresh broker, one run.

``connect`` is aiomqtt's CONNECT alone, with a will and a persistent session; ``contract`` is aiomqtt doing
what the contract asks of a device on each connection (subscribe, ``online``, register; each awaited);
``devices`` is `devices.fleet.Fleet` with a ramp that doesn't limit.

    python -m benchmarks.connections connect|contract|devices SIZE DIRECTORY     # prints one JSON object
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiomqtt import Client, Will

from benchmarks import child
from benchmarks.workloads import Values
from broker import topics
from broker.connection import BrokerAddress
from broker.local import LocalBroker, start_broker
from broker.messages import Presence, Register
from devices.fleet import Fleet
from devices.limits import ensure_file_descriptors
from devices.roster import Roster
from devices.spec import FleetSpec, RampSpec
from devices.verify import Verifier
from provisioning.signing import SigningKey

BROKER_VARIABLE: Final = "MUSTER_BENCHMARK_BROKER"
"""Which broker, as `start_broker` has it; `child` hands it on."""
CONNECTS, REGISTRATIONS, CPU = "connects_per_s", "registrations_per_s", "cpu_ms_each"
NO_LIMIT_PER_S: Final = 100_000.0
_AT_ONCE: Final = 20
"""Bare clients on their way: a hundred or a thousand are slower, by a fifth."""
_TIMEOUT_S: Final = 60.0
_SHORTEST_LOOK_S: Final = 0.01


async def fresh_broker(directory: Path) -> LocalBroker:
    """A broker with nothing in it."""
    kind: Any = os.environ.get(BROKER_VARIABLE, "auto")
    return await start_broker(state_dir=directory / "stack", kind=kind, port=0)


class _Watch:
    """Seconds and CPU seconds from when it was made."""

    def __init__(self) -> None:
        self._began_s, self._cpu_s = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self._began_s

    def cpu_ms_each(self, size: int) -> float:
        return (time.process_time() - self._cpu_s) / size * 1_000


def _bare_client(broker: LocalBroker, device_id: str) -> Client:
    return Client(
        broker.host,
        broker.port,
        identifier=device_id,
        clean_session=False,
        timeout=_TIMEOUT_S,
        will=Will(topics.presence(device_id), Presence(state="offline").to_json(), topics.QOS, retain=True),
    )


async def _announce(client: Client, device_id: str) -> None:
    """What the contract asks for on each connection, the payloads included."""
    await client.subscribe(
        [(topics.package(device_id), topics.QOS), (topics.command(device_id, "+"), topics.QOS)]
    )
    online = Presence(state="online").to_json()
    await client.publish(topics.presence(device_id), online, topics.QOS, retain=True)
    register = Register(model="demo-1", firmware_version="0.9.0", fresh=device_id).to_json()
    await client.publish(topics.register(device_id), register, topics.QOS)


async def _bare(size: int, directory: Path, *, announce: bool) -> Values:
    ensure_file_descriptors(size)
    turn = asyncio.Semaphore(_AT_ONCE)
    clients: list[Client] = []

    async def join(broker: LocalBroker, device_id: str) -> None:
        async with turn:
            client = _bare_client(broker, device_id)
            await client.__aenter__()
            clients.append(client)
            if announce:
                await _announce(client, device_id)

    # The broker goes first: it is then its side of the connections that lingers in TIME_WAIT, and the
    # clients' ports are free for the next run. That each client's connection was lost is no news.
    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    async with await fresh_broker(directory) as broker:
        watch = _Watch()
        async with asyncio.TaskGroup() as group:
            for number in range(size):
                group.create_task(join(broker, f"bare-{number:05}"))
        return {
            REGISTRATIONS if announce else CONNECTS: size / watch.seconds(),
            CPU: watch.cpu_ms_each(size),
        }


async def run_connect(size: int, directory: Path) -> Values:
    """Bare aiomqtt, until the last CONNACK."""
    return await _bare(size, directory, announce=False)


async def run_contract(size: int, directory: Path) -> Values:
    """Bare aiomqtt, until the last PUBACK of a registration."""
    return await _bare(size, directory, announce=True)


async def run_devices(size: int, directory: Path) -> Values:
    """The fleet: until the last CONNACK, and until the last PUBACK of a registration."""
    ensure_file_descriptors(size)
    ramp = RampSpec(devices_per_s=NO_LIMIT_PER_S)
    roster = Roster(FleetSpec.of(count=size, behaviours={"healthy": 1}, ramp=ramp))
    broker = await fresh_broker(directory)
    watch = _Watch()
    fleet = Fleet(
        roster,
        address=BrokerAddress.parse(broker.url),
        verifier=Verifier.from_base64([SigningKey.generate().public_key]),
    )
    async with fleet:
        connected_s = await _reached(size, lambda: fleet.statistics()["connects"], watch)
        registered_s = await _reached(size, lambda: fleet.statistics()["ever_registered"], watch)
        values = {
            CONNECTS: size / connected_s,
            REGISTRATIONS: size / registered_s,
            CPU: watch.cpu_ms_each(size),
        }
        await broker.stop()
    return values


async def _reached(size: int, count: Callable[[], int], watch: _Watch) -> float:
    """The seconds until ``count`` is ``size``. To ask costs time too: it is done seldom, but at the end."""
    async with asyncio.timeout(_TIMEOUT_S):
        while (so_far := count()) < size:
            left_s = watch.seconds() * (size - so_far) / max(so_far, 1)
            await asyncio.sleep(max(_SHORTEST_LOOK_S, min(left_s / 2, watch.seconds())))
    return watch.seconds()


CONNECT, CONTRACT, DEVICES = "connect", "contract", "devices"
RUNS: Final[dict[str, child.Run]] = {
    CONNECT: run_connect,
    CONTRACT: run_contract,
    DEVICES: run_devices,
}

if __name__ == "__main__":
    child.serve(RUNS)
