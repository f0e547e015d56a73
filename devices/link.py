"""A device's link to the service: a persistent MQTT session that is always there again.

It keeps the contract's rules of connecting: stable client id, persistent session, will; it subscribes, says
``online`` and registers on **every** connection (as ``fresh`` where this process or the broker remembers
nothing of what was said before), and then publishes again, byte for byte, the last durable
event that the service has not moved on from: the service applies the same bytes once.

Publishing never blocks the device's work: what is published leaves in order, and if the connection breaks
before the PUBACK, that repetition makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from broker import topics
from broker.messages import Event, Presence, Register
from devices import packets
from devices.client import DeviceClient
from devices.errors import ConnectionLostError, NotAuthorisedError
from devices.pacing import backoff_s
from devices.surroundings import Surroundings

_LOG = logging.getLogger(__name__)

_MAX_PENDING_PUBLISHES: Final = 16
# A connection that held so long was a good one: the backoff begins anew after it.
_STABLE_AFTER_S: Final = 5.0
_KEEPALIVE_SPREAD_S: Final = 15
_WILL: Final = Presence(state="offline").to_json()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """An event as published: repeated, it must be the same bytes."""

    topic: str
    payload: bytes
    since_s: float | None = None
    """For an acknowledgement: when the message came that it is about, by the true clock."""

    @classmethod
    def of(cls, device_id: str, event: Event, *, since_s: float | None = None) -> Outgoing:
        """``event`` as ``device_id`` publishes it."""
        topic = topics.event(device_id, type(event).__name__)
        return cls(topic=topic, payload=event.to_json(), since_s=since_s)


class Link:
    """One device's link; `run` until cancelled, `say_goodbye` before that for a graceful end.

    ``describe`` gives the registration of the moment, ``on_registered`` is called after each one, and
    ``on_message`` with the topic and payload of whatever comes.
    """

    __slots__ = (
        "_around",
        "_away_until_s",
        "_client",
        "_describe",
        "_device_id",
        "_failures",
        "_fresh",
        "_hurry_s",
        "_on_message",
        "_on_registered",
        "_refusals",
        "_resting",
        "_seed",
        "_unanswered",
        "_up_since_s",
        "registered",
    )

    def __init__(
        self,
        device_id: str,
        seed: int,
        around: Surroundings,
        *,
        describe: Callable[[], Register],
        on_registered: Callable[[], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self._device_id = device_id
        self._seed = seed
        self._around = around
        self._describe = describe
        self._on_registered = on_registered
        self._on_message = on_message
        # By the fleet's clock; when the connection was last lost on purpose, how soon it is to be back.
        self._away_until_s = 0.0
        self._hurry_s: float | None = None
        self._resting: asyncio.Future[None] | None = None
        self._failures = 0
        # How often in a row the broker did not take the credentials.
        self._refusals = 0
        self._up_since_s: float | None = None
        # What the next registration says: a token while nothing is remembered that was said before.
        self._fresh: str | None = secrets.token_hex(8)
        self._client: DeviceClient | None = None
        self._unanswered: Outgoing | None = None
        self.registered = False

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it has not been lost since."""
        return self._client is not None and self._client.connected

    async def run(self) -> None:
        """Connect, serve, reconnect with jittered backoff; for ever, until cancelled."""
        around = self._around
        while True:
            gate = await self._wait_turn()
            if (away_s := self._away_until_s - around.clock()) > 0:
                await self._rest(away_s)
                continue
            began_s = around.true_clock()
            try:
                await self._connect_and_serve(began_s, gate)
            except ConnectionLostError as error:
                _LOG.debug("%s: %s", self._device_id, error)
            if self._up_since_s is not None and around.true_clock() - self._up_since_s > _STABLE_AFTER_S:
                self._failures = 0
            self._up_since_s = None
            self._failures += 1
            await self._rest(self._reconnect_delay_s())

    async def say_goodbye(self) -> None:
        """Publish ``offline`` as a device does that is switched off in order, if the broker is there."""
        if (client := self._client) is not None:
            offline = Presence(state="offline", at=self._around.now())
            try:
                async with asyncio.timeout(self._around.link.goodbye_timeout_s):
                    await client.publish(topics.presence(self._device_id), offline.to_json(), retain=True)
            except (ConnectionLostError, TimeoutError):
                # The broker is away: its will says the same.
                self._around.counters.publish_failures += 1

    def leave(self, duration_s: float) -> None:
        """Lose the network, without a goodbye, for ``duration_s``; `math.inf`: until `come_back`.

        Where it is away for longer already that holds: what is lost can't be lost for a shorter time.
        """
        self._stay_away(duration_s)
        if self._client is not None:
            self._client.sever()

    def come_back(self) -> None:
        """The network is there again; where it was not away nothing changes."""
        self._away_until_s = 0.0
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)

    async def doze(self, duration_s: float) -> None:
        """Say goodbye, disconnect in order, and connect again after ``duration_s``."""
        if (client := self._client) is None:
            return
        await self.say_goodbye()
        self._stay_away(duration_s)
        client.finish()

    def reboot(self, duration_s: float) -> None:
        """Forget what was said, lose the connection without a goodbye, be back after ``duration_s``."""
        self._fresh = secrets.token_hex(8)
        self._unanswered = None
        self.leave(duration_s)

    def storm(self, within_s: float) -> None:
        """Lose the connection and be back ``within_s``, past the ramp and without backoff."""
        if self._client is not None:
            self._hurry_s = within_s
            self._failures = 0
            self._client.sever()

    def answer(self, outgoing: Outgoing) -> None:
        """Publish a durable event, now and after each reconnect, until `forget_unanswered` or the next."""
        self._unanswered = outgoing
        self._send(outgoing, needed=True)

    def repeat(self, outgoing: Outgoing) -> None:
        """Publish an earlier answer again; a later one that is still unanswered stays the one to repeat."""
        self._around.counters.events_repeated += 1
        if self._unanswered is None:
            self._unanswered = outgoing
        self._send(outgoing)

    def tell(self, outgoing: Outgoing) -> None:
        """Publish telemetry, if the broker is there: nobody waits for it."""
        self._send(outgoing)

    def forget_unanswered(self) -> None:
        """Something newer has come from the service: the last durable event has arrived."""
        self._unanswered = None

    def _stay_away(self, duration_s: float) -> None:
        self._away_until_s = max(self._away_until_s, self._around.clock() + duration_s)
        self._failures = 0

    async def _connect_and_serve(self, began_s: float, gate: AbstractAsyncContextManager[None]) -> None:
        around, counters = self._around, self._around.counters
        client = self._new_client()
        try:
            async with gate:
                tls = None if around.tls is None else around.tls.context_for(self._device_id)
                await client.open(around.address, tls=tls, timeout_s=around.link.connect_timeout_s)
        except ConnectionLostError as error:
            counters.connect_failures += 1
            self._refusals += isinstance(error, NotAuthorisedError)
            around.report(f"can't connect to {around.address.url}: {error}")
            raise
        self._refusals = 0
        self._up_since_s = around.true_clock()
        counters.connects += 1
        counters.reconnects += self.registered
        # What came in the CONNACK's own breath is answered after the registration: this is the first word.
        self._client = client
        try:
            await self._announce(client, began_s)
            await client.wait_closed()
        finally:
            self._client = None
            counters.disconnects += 1
            client.finish()

    def _new_client(self) -> DeviceClient:
        options = self._around.link
        username, password = self._around.credentials.for_device(self._device_id, refusals=self._refusals)
        # Spread, so that the pings of ten thousand idle devices don't come together.
        keepalive_s = options.keepalive_s + self._seed % _KEEPALIVE_SPREAD_S
        connect = packets.connect(
            self._device_id,
            keepalive_s=keepalive_s,
            will_topic=topics.presence(self._device_id),
            will_payload=_WILL,
            username=username,
            password=password,
        )
        return DeviceClient(
            connect=connect,
            keepalive_s=keepalive_s,
            confirm_timeout_s=options.publish_timeout_s,
            on_message=self._take,
        )

    def _take(self, topic: str, payload: bytes) -> None:
        counters = self._around.counters
        counters.messages_in += 1
        counters.bytes_in += len(topic) + len(payload)
        self._on_message(topic, payload)

    async def _announce(self, client: DeviceClient, began_s: float) -> None:
        """Subscribe and say ``online``, in this order and before anything else; then register.

        At last repeat what may have been lost.
        """
        around, device_id = self._around, self._device_id
        try:
            subscribing = client.subscribe((topics.package(device_id), topics.command(device_id, "+")))
            online = Presence(state="online", at=around.now())
            self._send(Outgoing(topic=topics.presence(device_id), payload=online.to_json()), retain=True)
            if any(code >= packets.REFUSED for code in await subscribing):
                around.report(f"the broker refuses the subscriptions of {device_id}: check its ACL")
                client.sever()
                return
            if not client.session_present and self._fresh is None:
                self._fresh = secrets.token_hex(8)
            register = self._describe().model_copy(update={"fresh": self._fresh})
            topic, payload = topics.register(device_id), register.to_json()
            await client.publish(topic, payload)
            around.counters.messages_out += 1
            around.counters.bytes_out += len(topic) + len(payload)
            if self._fresh == register.fresh:
                # Else it has lost its memory since it said so.
                self._fresh = None
        except ConnectionLostError:
            around.counters.publish_failures += 1
            return
        around.counters.registrations += 1
        around.latencies.connect.observe(around.true_clock() - began_s)
        self.registered = True
        if self._unanswered is not None:
            around.counters.events_repeated += 1
            self._send(self._unanswered, needed=True)
        self._on_registered()

    async def _wait_turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for the ramp; returns the gate to connect through. Who comes back in a storm has neither."""
        hurry_s, self._hurry_s = self._hurry_s, None
        if hurry_s is not None:
            return nullcontext()
        await self._around.ramp.wait_turn()
        return self._around.opening

    async def _rest(self, seconds: float) -> None:
        """Wait by the fleet's clock, or until `come_back`."""
        loop = asyncio.get_running_loop()
        self._resting = resting = loop.create_future()
        handle = None
        if seconds != math.inf:
            handle = loop.call_later(seconds / self._around.speed, _wake, resting)
        try:
            await resting
        finally:
            self._resting = None
            if handle is not None:
                handle.cancel()

    def _reconnect_delay_s(self) -> float:
        if self._hurry_s is not None:
            return self._hurry_s
        options = self._around.link
        delay_s = backoff_s(
            seed=self._seed,
            failures=self._failures,
            first_s=options.first_backoff_s,
            max_s=options.max_backoff_s,
        )
        return max(delay_s, self._away_until_s - self._around.clock())

    def _send(self, outgoing: Outgoing, *, retain: bool = False, needed: bool = False) -> None:
        if (client := self._client) is None or not client.connected:
            return
        if client.unconfirmed >= _MAX_PENDING_PUBLISHES and not needed:
            self._around.counters.publish_failures += 1
            return
        confirmation = client.publish(outgoing.topic, outgoing.payload, retain=retain)
        confirmation.add_done_callback(partial(self._count, outgoing))

    def _count(self, outgoing: Outgoing, confirmation: asyncio.Future[bytes]) -> None:
        around, counters = self._around, self._around.counters
        if confirmation.exception() is not None:
            counters.publish_failures += 1
            return
        counters.events_published += 1
        counters.messages_out += 1
        counters.bytes_out += len(outgoing.topic) + len(outgoing.payload)
        if outgoing.since_s is not None:
            around.latencies.ack.observe(around.true_clock() - outgoing.since_s)


def _wake(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)
