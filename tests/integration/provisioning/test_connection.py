"""The broker connection on real brokers: sessions, order, and what a lost connection leaves behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.connection import (
    BrokerAddress,
    BrokerAddressError,
    BrokerConnection,
    ConnectionClosedError,
    ConnectionOptions,
    Delivery,
    PublishTimeoutError,
)
from broker.local import LocalBroker, start_broker
from tests.conftest import free_port

pytestmark = pytest.mark.real

FAST = ConnectionOptions(first_backoff_s=0.02, max_backoff_s=0.1)


class Inbox:
    """Deliveries as they come; acknowledged at once or by the test."""

    def __init__(self, *, ack: bool = True) -> None:
        self.deliveries: list[Delivery] = []
        self.ack = ack
        self._came = asyncio.Event()

    def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._came.set()
        if self.ack:
            delivery.ack()

    def payloads(self) -> list[bytes]:
        return [delivery.payload for delivery in self.deliveries]

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.deliveries) < count:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def connected(
    url: str, client_id: str, inbox: Inbox, *topics: str, options: ConnectionOptions = FAST
) -> AsyncIterator[BrokerConnection]:
    async with BrokerConnection(
        url=url,
        client_id=client_id,
        on_message=inbox.take,
        subscriptions=topics,
        options=options,
        random_source=random.Random(1),
    ) as connection:
        await connection.wait_connected(10)
        yield connection


async def test_messages_come_in_order_and_their_acknowledgements_too(
    each_broker: LocalBroker, unique: str
) -> None:
    inbox = Inbox(ack=False)
    async with (
        connected(each_broker.url, f"{unique}-in", inbox, f"{unique}/#") as receiver,
        connected(each_broker.url, f"{unique}-out", Inbox()) as sender,
    ):
        for n in range(20):
            await sender.publish(f"{unique}/x", b"%d" % n, timeout_s=10)
        await inbox.wait(20)
        assert inbox.payloads() == [b"%d" % n for n in range(20)]
        # Settled from the last to the second: nothing may leave before the first is.
        for delivery in reversed(inbox.deliveries[1:]):
            delivery.ack()
        assert (receiver.statistics().acknowledged, receiver.statistics().unacknowledged) == (0, 20)
        inbox.deliveries[0].ack()
        inbox.deliveries[0].ack()
        assert (receiver.statistics().acknowledged, receiver.statistics().unacknowledged) == (20, 0)


async def test_what_was_not_acknowledged_comes_again_to_the_next_process(
    each_broker: LocalBroker, unique: str
) -> None:
    first, second, third = Inbox(ack=False), Inbox(), Inbox()
    async with connected(each_broker.url, f"{unique}-out", Inbox()) as sender:
        async with connected(each_broker.url, f"{unique}-in", first, f"{unique}/#"):
            await sender.publish(f"{unique}/x", b"kept", timeout_s=10)
            await sender.publish(f"{unique}/x", b"done", timeout_s=10)
            await first.wait(2)
        # Published while nobody is there.
        await sender.publish(f"{unique}/x", b"missed", timeout_s=10)
        async with connected(each_broker.url, f"{unique}-in", second, f"{unique}/#"):
            await second.wait(3)
            assert sorted(second.payloads()) == [b"done", b"kept", b"missed"]
        async with connected(each_broker.url, f"{unique}-in", third, f"{unique}/#"):
            await sender.publish(f"{unique}/x", b"last", timeout_s=10)
            await third.wait(1)
            assert third.payloads() == [b"last"]


async def test_an_acknowledgement_of_a_lost_connection_is_not_sent_on_the_next(
    tmp_path: Path, unique: str
) -> None:
    inbox = Inbox(ack=False)
    broker = await start_broker(state_dir=tmp_path, port=0)
    try:
        async with (
            connected(broker.url, f"{unique}-in", inbox, f"{unique}/#") as receiver,
            connected(broker.url, f"{unique}-out", Inbox()) as sender,
        ):
            await sender.publish(f"{unique}/x", b"one", timeout_s=10)
            await inbox.wait(1)
            await broker.stop()
            broker = await start_broker(state_dir=tmp_path, port=broker.port)
            # Again, on the new connection: the old delivery's packet id means nothing there.
            await inbox.wait(2)
            inbox.deliveries[0].ack()
            assert receiver.statistics().stale_acknowledgements == 1
            assert receiver.statistics().unacknowledged == 1
            inbox.deliveries[1].ack()
            assert receiver.statistics().unacknowledged == 0
    finally:
        await broker.stop()


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_a_publish_waits_for_the_broker_to_come_back(tmp_path: Path, unique: str, kind: Any) -> None:
    inbox = Inbox()
    broker = await start_broker(state_dir=tmp_path, kind=kind, port=0)
    try:
        async with connected(broker.url, unique, inbox, f"{unique}/#") as connection:
            await broker.stop()
            waiting = [
                asyncio.create_task(connection.publish(f"{unique}/{n}", b"x", timeout_s=30)) for n in range(5)
            ]
            with pytest.raises(PublishTimeoutError, match="did not acknowledge"):
                await connection.publish(f"{unique}/late", b"x", timeout_s=0.2)
            broker = await start_broker(state_dir=tmp_path, kind=kind, port=broker.port)
            await asyncio.gather(*waiting)
            await inbox.wait(5)
            statistics = connection.statistics()
            assert (statistics.published, statistics.publish_timeouts) == (5, 1)
            assert statistics.connects == 2
    finally:
        await broker.stop()


async def test_a_session_that_the_broker_lost_is_subscribed_again(tmp_path: Path, unique: str) -> None:
    inbox = Inbox()
    broker = await start_broker(state_dir=tmp_path / "one", port=0)
    try:
        async with connected(broker.url, unique, inbox, f"{unique}/#") as connection:
            await broker.stop()
            # Another data directory: this broker never heard of the session.
            broker = await start_broker(state_dir=tmp_path / "two", port=broker.port)
            await connection.publish(f"{unique}/x", b"heard", timeout_s=30)
            await inbox.wait(1)
            assert connection.statistics().sessions_lost == 1
    finally:
        await broker.stop()


async def test_reading_pauses_while_too_much_is_not_acknowledged(
    each_broker: LocalBroker, unique: str
) -> None:
    inbox = Inbox(ack=False)
    few = ConnectionOptions(max_unacked=10)
    async with (
        connected(each_broker.url, f"{unique}-in", inbox, f"{unique}/#", options=few),
        connected(each_broker.url, f"{unique}-out", Inbox()) as sender,
    ):
        await asyncio.gather(*(sender.publish(f"{unique}/x", b"%d" % n, timeout_s=10) for n in range(100)))
        await inbox.wait(10)
        # A batch that was read before the pause may go over the limit, by a packet at most.
        assert len(inbox.deliveries) <= 11
        inbox.ack = True
        for delivery in list(inbox.deliveries):
            delivery.ack()
        await inbox.wait(100)
        assert inbox.payloads() == [b"%d" % n for n in range(100)]


async def test_a_handler_that_fails_does_not_block_the_next_message(
    each_broker: LocalBroker, unique: str
) -> None:
    inbox = Inbox()

    def take(delivery: Delivery) -> None:
        if delivery.payload == b"bad":
            raise RuntimeError("can't")
        inbox.take(delivery)

    async with BrokerConnection(
        url=each_broker.url, client_id=unique, on_message=take, subscriptions=[f"{unique}/#"], options=FAST
    ) as connection:
        await connection.wait_connected(10)
        await connection.publish(f"{unique}/x", b"bad", timeout_s=10)
        await connection.publish(f"{unique}/x", b"good", timeout_s=10)
        await inbox.wait(1)
        assert connection.statistics().unacknowledged == 0


async def test_closing_ends_what_waits(unique: str) -> None:
    inbox = Inbox()
    async with BrokerConnection(
        url=f"mqtt://127.0.0.1:{free_port()}", client_id=unique, on_message=inbox.take, options=FAST
    ) as connection:
        waiting = asyncio.create_task(connection.publish("x", b"x", timeout_s=60))
        await asyncio.sleep(0)
        assert not connection.connected
    with pytest.raises(ConnectionClosedError):
        await waiting
    with pytest.raises(ConnectionClosedError):
        await connection.publish("x", b"x", timeout_s=1)


@pytest.mark.parametrize("url", ["127.0.0.1:1883", "http://127.0.0.1", "mqtt://", "mqtt://host:port"])
def test_a_bad_url_is_refused_with_the_form_that_works(url: str) -> None:
    with pytest.raises(BrokerAddressError, match="mqtt://host:port"):
        BrokerAddress.parse(url)


def test_an_address_keeps_its_password_to_itself() -> None:
    address = BrokerAddress.parse("mqtts://me:hunter%402@example.org")
    assert (address.port, address.username, address.password) == (8883, "me", "hunter@2")
    assert "hunter" not in f"{address!r}{address.url}"
