"""What a device says on a connection, and in which order, to a broker that does what the test says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from broker.connection import BrokerAddress
from broker.messages import Presence, Register
from devices import packets
from devices.credentials import Credentials
from devices.link import Link, Outgoing
from devices.pacing import Ramp
from devices.spec import RampSpec
from devices.statistics import Counters, Latencies
from devices.surroundings import LinkOptions, Surroundings
from tests.unit.devices.scripted_broker import (
    CONNACK,
    CONNACK_KNOWN,
    CONNECT,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Broker,
    listening,
    suback,
)

ANSWER = Outgoing(topic="devices/dev/events/X", payload=b"answer")


class Life:
    """A device's link that runs, and its broker; it answers each message with the next of ``answers``."""

    def __init__(self, broker: Broker, address: BrokerAddress, answers: list[Outgoing]) -> None:
        loop = asyncio.get_running_loop()
        self.broker = broker
        self._answers = answers
        self._registered: asyncio.Queue[None] = asyncio.Queue()
        around = Surroundings(
            address=address,
            http=cast("Any", None),
            verifier=cast("Any", None),
            distrustful=cast("Any", None),
            counters=Counters(),
            latencies=Latencies(),
            ramp=Ramp(RampSpec(devices_per_s=10_000), loop.time),
            true_clock=loop.time,
            complain=lambda *_: None,
            credentials=Credentials(),
            report=lambda _: None,
            link=LinkOptions(first_backoff_s=0.01, max_backoff_s=0.02),
        )
        self.link = Link(
            "dev",
            1,
            around,
            describe=lambda: Register(model="m", firmware_version="1"),
            on_registered=lambda: self._registered.put_nowait(None),
            on_message=lambda topic, payload: self.link.answer(self._answers.pop(0)),
        )

    async def published(self, topic: str) -> packets.Incoming:
        """The next packet, which must be a PUBLISH on ``topic``; it is not acknowledged."""
        message = packets.read_publish(0x32, await self.broker.receive(PUBLISH))
        assert message.topic == topic
        return message

    async def connects(self, connack: bytes = CONNACK) -> Register:
        """A whole connection, until it has registered, in the order that the contract asks for."""
        await self.broker.receive(CONNECT)
        self.broker.send(connack)
        return await self.announces()

    async def announces(self) -> Register:
        """All of it after the CONNACK."""
        subscription = await self.broker.receive(SUBSCRIBE)
        online = await self.published("devices/dev/presence")
        assert Presence.model_validate_json(online.payload).state == "online"
        assert self.broker.quiet
        self.broker.send(suback(subscription, 1, 1))
        register = await self.published("devices/dev/register")
        assert self._registered.empty()
        for message in (online, register):
            assert message.packet_id is not None
            self.broker.send(packets.puback(message.packet_id))
        await self._registered.get()
        return Register.model_validate_json(register.payload)


@asynccontextmanager
async def running(*answers: Outgoing) -> AsyncIterator[Life]:
    async with listening() as (broker, address):
        life = Life(broker, address, list(answers))
        task = asyncio.create_task(life.link.run())
        try:
            yield life
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_it_subscribes_says_online_and_registers_in_this_order() -> None:
    async with running() as life:
        assert not life.link.registered
        await life.connects()
        assert life.link.connected
        assert life.link.registered


async def test_it_is_fresh_until_it_has_registered_and_again_where_the_broker_has_lost_the_session() -> None:
    async with running() as life:
        started = await life.connects()
        life.broker.close()
        known = await life.connects(CONNACK_KNOWN)
        life.broker.close()
        lost = await life.connects()
        assert started.fresh is not None
        assert known.fresh is None
        assert lost.fresh not in (None, started.fresh)


async def test_what_is_answered_in_the_connacks_own_breath_leaves_after_the_registration() -> None:
    async with running(ANSWER) as life:
        await life.broker.receive(CONNECT)
        life.broker.send(CONNACK + packets.publish(7, "devices/dev/package", b""))
        assert await life.broker.receive(PUBACK) == b"\x00\x07"
        await life.announces()
        await life.published(ANSWER.topic)


async def test_an_answer_without_puback_is_repeated_after_the_next_registration() -> None:
    async with running(ANSWER) as life:
        await life.connects()
        life.broker.send(packets.publish(1, "devices/dev/package", b""))
        await life.published(ANSWER.topic)
        await life.broker.receive(PUBACK)
        life.broker.close()
        await life.connects(CONNACK_KNOWN)
        assert (await life.published(ANSWER.topic)).payload == ANSWER.payload


async def test_telemetry_is_bounded_while_nothing_is_confirmed_and_answers_go_out_all_the_same() -> None:
    async with running() as life:
        await life.connects()
        for number in range(17):
            life.link.tell(Outgoing(topic=f"devices/dev/events/{number}", payload=b""))
        life.link.answer(ANSWER)
        for number in range(16):
            await life.published(f"devices/dev/events/{number}")
        await life.published(ANSWER.topic)


async def test_where_its_subscriptions_are_refused_it_does_not_register() -> None:
    async with running() as life:
        await life.broker.receive(CONNECT)
        life.broker.send(CONNACK)
        subscription = await life.broker.receive(SUBSCRIBE)
        await life.published("devices/dev/presence")
        life.broker.send(suback(subscription, 1, packets.REFUSED))
        # It cuts the connection, and tries again.
        await life.broker.receive(CONNECT)
        assert not life.link.registered


async def test_a_shorter_outage_does_not_end_a_longer_one() -> None:
    async with running() as life:
        # An operator has taken it offline, and while it waits for the ramp a behaviour drops its connection.
        life.link.leave(math.inf)
        life.link.leave(0.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await life.broker.receive(CONNECT)
        life.link.come_back()
        await life.connects()


async def test_memory_that_is_lost_as_the_registration_is_confirmed_is_told_of_by_the_next() -> None:
    async with running() as life:
        await life.broker.receive(CONNECT)
        life.broker.send(CONNACK)
        life.broker.send(suback(await life.broker.receive(SUBSCRIBE), 1, 1))
        await life.published("devices/dev/presence")
        register = await life.published("devices/dev/register")
        assert life.link._client is not None
        assert register.packet_id is not None
        # In one turn of the loop: the device has not heard yet that it is registered.
        life.link._client._confirm(register.packet_id, b"")
        life.link.reboot(0.0)
        await life._registered.get()
        assert (await life.connects(CONNACK_KNOWN)).fresh is not None
