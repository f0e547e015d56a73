"""Who a device is, over the whole way: at a broker that asks, and at one that lets in anybody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from broker import topics
from broker.address import BrokerAddress
from broker.identity import read_group_key
from broker.local import AccessControl, start_broker
from devices.credentials import Credentials
from devices.fleet import Fleet, FleetOptions
from devices.roster import Roster
from devices.spec import FleetSpec
from devices.surroundings import LinkOptions
from devices.verify import Verifier
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, fleet, wait_until

pytestmark = pytest.mark.real

LIFETIME_S = 2


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_a_fleet_is_provisioned_while_its_tokens_expire_until_it_is_revoked(
    tmp_path: Path, azurite: LocalAzurite, unique: str, kind: Any
) -> None:
    state_dir = tmp_path / "state"
    access = AccessControl(token_lifetime_s=LIFETIME_S)
    roster = Roster(FleetSpec.of(count=10, prefix=unique, behaviours={"healthy": 1, "impostor": 1}))
    async with await start_broker(state_dir=tmp_path, kind=kind, port=0, access=access) as broker:
        settings = ServiceSettings(
            state_dir=state_dir,
            broker_url=access.url(broker.url),
            blob_connection_string=azurite.connection_string,
            container=unique,
            api_port=0,
        )
        async with Service(settings, access=access) as service:
            api = Api(state_dir)
            health = await api.get("/api/health")
            assert health["broker"]["enrolled_only"]
            await service.enrolments.enrol(list(roster.entries), by="fleet-1")
            devices = Fleet(
                roster,
                address=BrokerAddress.parse(broker.url),
                verifier=Verifier.from_base64([health["trust"]["public_key"]]),
                credentials=Credentials(
                    group_key=read_group_key(state_dir / "group.key"), token_lifetime_s=LIFETIME_S
                ),
                options=FleetOptions(link=LinkOptions(first_backoff_s=0.1, max_backoff_s=0.2)),
            )
            async with devices:
                await api.wait_registered(10)

                async def renewed() -> bool:
                    return bool(devices.statistics()["reconnects"] >= 10)

                await wait_until("tokens have expired", renewed)
                run = await api.wait_ended(await api.provision())
                assert run["counts"]["provisioned"] == 10
                # On their own topics, where it is the service that refuses them: each impostor for two.
                assert (await api.get("/api/statistics"))["bridge"]["foreign"] >= 10

                await api.call(
                    "POST",
                    "/api/enrolments/actions",
                    {"action": "revoke", "device_ids": list(roster.entries)},
                )

                async def gone() -> bool:
                    return bool(devices.statistics()["connected"] == 0)

                await wait_until("nobody is connected", gone)
                failures = devices.statistics()["connect_failures"]

                async def refused() -> bool:
                    return bool(devices.statistics()["connect_failures"] >= failures + 10)

                await wait_until("all are refused", refused)
                assert not any(device["online"] for device in (await api.get("/api/devices"))["devices"])


async def test_at_an_open_broker_no_device_answers_for_another_nor_once_more(
    tmp_path: Path, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        settings = ServiceSettings(
            state_dir=state_dir,
            broker_url=broker.url,
            blob_connection_string=azurite.connection_string,
            container=unique,
            api_port=0,
        )
        async with (
            Service(settings),
            aiomqtt.Client(broker.host, broker.port) as thief,
        ):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            for filter_ in (topics.ALL_EVENTS, "devices/+/package"):
                await thief.subscribe(filter_, qos=1)
            said: list[aiomqtt.Message] = []

            async def listen() -> None:
                async for message in thief.messages:
                    said.append(message)  # noqa: PERF401 - each must be there as soon as it has come

            listening = asyncio.create_task(listen())
            async with fleet(broker.url, trust, count=2, behaviours="healthy=0.5,never-answers=0.5"):
                await api.wait_registered(2)
                run_id = await api.provision(options={"ack_timeout_s": 300})

                async def one_is_done() -> bool:
                    return bool((await api.get(f"/api/runs/{run_id}"))["counts"]["provisioned"] == 1)

                await wait_until("one is provisioned", one_is_done)
                healthy, silent = sorted(
                    await api.devices(run_id), key=lambda device: device["state"] != "provisioned"
                )
                package = next(
                    json.loads(bytes(message.payload))
                    for message in said
                    if str(message.topic) == topics.package(silent["device_id"])
                )
                ack = {
                    "v": 1,
                    **{
                        name: package[name]
                        for name in ("instance_id", "package_id", "attempt", "size_bytes", "sha256")
                    },
                }
                before = [
                    await api.get(f"/api/devices/{device['device_id']}") for device in (healthy, silent)
                ]
                own = [
                    message for message in said if f"/{healthy['device_id']}/events/" in str(message.topic)
                ]
                # Another one's acknowledgement, on its own topic.
                topic = topics.event(healthy["device_id"], "DownloadCompletedAck")
                await thief.publish(topic, json.dumps(ack).encode(), qos=1)
                # And all that the device itself has said, once more, after its end.
                for message in own:
                    payload = json.loads(bytes(message.payload))
                    for again in (payload, {**payload, "at": "2026-01-01T00:00:00Z"}):
                        await thief.publish(str(message.topic), json.dumps(again).encode(), qos=1)
                # The bridge takes one message after the other: when this is counted, so are they.
                await thief.publish(topics.event(healthy["device_id"], "Nothing"), b"{}", qos=1)

                async def heard() -> bool:
                    bridge = (await api.get("/api/statistics"))["bridge"]
                    return bool(bridge["malformed"] == 1 and bridge["in_flight"] == 0)

                await wait_until("all was heard", heard)
                bridge = (await api.get("/api/statistics"))["bridge"]
                after = [await api.get(f"/api/devices/{device['device_id']}") for device in (healthy, silent)]
            listening.cancel()
    assert bridge["foreign"] == 1
    assert [device["state"] for device in after] == ["provisioned", "notified"]
    for was, is_now in zip(before, after, strict=True):
        assert {**was, "updated_at": None} == {**is_now, "updated_at": None}
