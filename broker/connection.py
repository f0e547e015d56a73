"""One MQTT connection on an asyncio loop, for a service that must lose nothing.

paho-mqtt does the protocol; this module lends it the event loop instead of a thread and adds what a
durable consumer needs:

- a persistent session, kept through reconnects, and subscribed again where the broker has lost it;
- manual acknowledgement: a PUBACK leaves only after `Delivery.ack()`, in the order of arrival
  (MQTT 3.1.1, 4.6.0-2), and only on the connection that brought the message: packet ids of an earlier
  connection mean other messages on a later one;
- bounds: messages that wait for their acknowledgement, and publishes that wait for theirs.

Every connection gets a paho client of its own, so no queue or packet id of a lost one lives on; publishes
that were not acknowledged are sent again by `BrokerConnection`.

Errors: `broker.address`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from broker.address import (
    BrokerAddress,
    BrokerAddressError,
    BrokerConnectionError,
    BrokerTlsError,
    ConnectionClosedError,
    PublishTimeoutError,
)
from broker.link import ConnectionOptions, Delivery, Link, Publish
from broker.tls import TlsFiles

__all__ = [
    "BrokerAddress",
    "BrokerAddressError",
    "BrokerConnection",
    "BrokerConnectionError",
    "BrokerTlsError",
    "ConnectionClosedError",
    "ConnectionOptions",
    "ConnectionStatistics",
    "Delivery",
    "PublishTimeoutError",
    "TlsFiles",
]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConnectionStatistics:
    """Counters since the start, and the present backlog."""

    connected: bool
    connects: int
    connect_failures: int
    disconnects: int
    sessions_lost: int
    received: int
    redelivered: int
    acknowledged: int
    stale_acknowledgements: int
    published: int
    publish_timeouts: int
    unacknowledged: int
    publishing: int


class BrokerConnection:
    """A connection that is kept: it reconnects for ever, with jittered backoff, until it is closed.

    `on_message` is called on the loop for each message; it must not block, and it must see to it that
    `Delivery.ack()` is called in the end. `subscriptions` are taken at QoS 1: on the first connection of
    this object (which brings the retained messages) and whenever the broker has lost the session.
    `tls` is for an `mqtts://` URL (BrokerTlsError where a file of it can't be used); without it the broker is
    known by the system's authorities.
    `on_new_session` is called after a connect, subscriptions included, at which the broker knew no session:
    what it had taken and not delivered, in either direction, is lost.

    Entering does not wait for the broker; `wait_connected()` does.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        on_message: Callable[[Delivery], None],
        on_new_session: Callable[[], None] = lambda: None,
        subscriptions: Sequence[str] = (),
        tls: TlsFiles | None = None,
        options: ConnectionOptions | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        if not client_id:
            raise ValueError("A persistent session needs a client id.")
        self.address = BrokerAddress.parse(url)
        self.tls_context = (tls or TlsFiles()).context() if self.address.tls else None
        self.client_id = client_id
        self.subscriptions = tuple(subscriptions)
        self.options = options or ConnectionOptions()
        self._on_message = on_message
        self._on_new_session = on_new_session
        self._random = random_source or random.Random()
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._closed = False
        self._pending: dict[int, Publish] = {}
        self._next_publish = 0
        self._publish_slots = asyncio.Semaphore(self.options.max_inflight_publishes)
        self._counters = dict.fromkeys(
            (
                "connects",
                "connect_failures",
                "disconnects",
                "sessions_lost",
                "received",
                "redelivered",
                "acknowledged",
                "stale_acknowledgements",
                "published",
                "publish_timeouts",
            ),
            0,
        )

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_connected(), name="broker-connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._link is not None:
            self._link.close("closed")
            self._link = None
        self._connected.clear()
        for publish in self._pending.values():
            if not publish.done.done():
                publish.done.set_exception(
                    ConnectionClosedError(
                        f"The connection to {self.address.url} was closed during a publish."
                    )
                )

    @property
    def connected(self) -> bool:
        """True between a complete connect (subscriptions included) and its loss."""
        return self._connected.is_set()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until connected and subscribed; TimeoutError after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            await self._connected.wait()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        """Publish at QoS 1 and return at the broker's PUBACK, through reconnects where need be.

        Raises PublishTimeoutError after `timeout_s` (waiting for a turn included; the broker may have got
        the message all the same) and ConnectionClosedError when the connection is closed.
        """
        if self._closed:
            raise ConnectionClosedError(f"The connection to {self.address.url} is closed.")
        try:
            async with asyncio.timeout(timeout_s), self._publish_slots:
                key = self._next_publish
                self._next_publish += 1
                publish = Publish(topic, payload, retain, asyncio.get_running_loop().create_future())
                self._pending[key] = publish
                try:
                    if self._link is not None and self._connected.is_set():
                        self._link.send(publish)
                    await publish.done
                finally:
                    del self._pending[key]
        except TimeoutError:
            self._counters["publish_timeouts"] += 1
            state = "connected but slow" if self.connected else "not connected"
            raise PublishTimeoutError(
                f"The broker at {self.address.url} did not acknowledge a message to {topic!r} within "
                f"{timeout_s:g} s ({state})."
            ) from None
        self._counters["published"] += 1

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of the counters."""
        return ConnectionStatistics(
            connected=self.connected,
            unacknowledged=self._link.unacknowledged if self._link is not None else 0,
            publishing=len(self._pending),
            **self._counters,
        )

    # -- for the link --------------------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Take a message from the link; an `on_message` that raises counts as handled."""
        self._counters["received"] += 1
        if delivery.duplicate:
            self._counters["redelivered"] += 1
        try:
            self._on_message(delivery)
        except Exception:
            # Not acknowledging would have the broker send the same message for ever.
            _LOG.exception("dropped a message on %r: its handler failed", delivery.topic)
            delivery.ack()

    def note_acknowledged(self, count: int, *, stale: int) -> None:
        """Count PUBACKs sent, or left out since their connection is gone."""
        self._counters["acknowledged"] += count
        self._counters["stale_acknowledgements"] += stale

    def note_session_lost(self) -> None:
        """Count a reconnect at which the broker had forgotten the session."""
        self._counters["sessions_lost"] += 1

    # -- the keeper ----------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        options = self.options
        failures = 0
        first = True
        while True:
            link = Link(owner=self, session_needed=first)
            self._link = link
            try:
                await link.open()
            except (OSError, BrokerConnectionError, ValueError) as error:
                self._counters["connect_failures"] += 1
                failures += 1
                # Once per outage: the broker may stay away for hours.
                if failures == 1:
                    _LOG.warning("no connection to the broker at %s (%s); trying on", self.address.url, error)
            else:
                self._counters["connects"] += 1
                if failures or not first:
                    _LOG.info("connected to the broker at %s again", self.address.url)
                failures = 0
                first = False
                self._connected.set()
                for publish in list(self._pending.values()):
                    if not publish.done.done():
                        link.send(publish)
                if not link.session_present:
                    self._on_new_session()
                reason = await link.lost
                self._connected.clear()
                self._counters["disconnects"] += 1
                _LOG.warning("lost the connection to the broker at %s: %s", self.address.url, reason)
            link.close("lost")
            ceiling_s = min(options.max_backoff_s, options.first_backoff_s * 2.0 ** min(failures, 16))
            await asyncio.sleep(self._random.uniform(ceiling_s / 2, ceiling_s))
