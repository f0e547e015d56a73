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

    BrokerError
    └── BrokerConnectionError       no connection, or none that is of use
        ├── BrokerAddressError      the URL can't be used
        ├── PublishTimeoutError     no PUBACK in time: the broker is away or too slow
        └── ConnectionClosedError   the connection was closed by its owner
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.errors import BrokerError

_LOG = logging.getLogger(__name__)

# How many packets are read before other work on the loop gets its turn.
_MAX_PACKETS_PER_READ = 256
_KEEPALIVE_CHECK_INTERVAL_S = 1.0
_TCP_CORK: int | None = getattr(socket, "TCP_CORK", None)


class BrokerConnectionError(BrokerError):
    """Base of what a broker connection raises."""


class BrokerAddressError(BrokerConnectionError, ValueError):
    """The broker's URL can't be used; the message names it and the form that can."""


class PublishTimeoutError(BrokerConnectionError, TimeoutError):
    """The broker did not acknowledge a publish in time; it may or may not have got it."""


class ConnectionClosedError(BrokerConnectionError):
    """The connection was closed by its owner while something waited on it."""


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """Where a broker is and how to log in there."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> BrokerAddress:
        """Read `mqtt://[user:password@]host[:port]` or `mqtts://…`; BrokerAddressError otherwise."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise BrokerAddressError("The broker's URL has no usable port. Use mqtt://host:port.") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            # The URL may hold a password: only its scheme is repeated.
            raise BrokerAddressError(
                f"A broker's URL must look like mqtt://host:port or mqtts://host:port, not {parts.scheme}://…"
            )
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port if port is not None else (8883 if tls else 1883),
            tls=tls,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )

    @property
    def url(self) -> str:
        """The address without credentials, fit for logs and answers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """Limits and times of a connection; the defaults serve 10,000 devices on one machine."""

    keepalive_s: int = 30
    connect_timeout_s: float = 5.0
    first_backoff_s: float = 0.2
    max_backoff_s: float = 3.0
    max_unacked: int = 4096
    """Messages taken from the socket and not acknowledged; at the limit, reading pauses."""
    max_inflight_publishes: int = 1024
    """Publishes sent or waiting to be; further callers wait their turn."""


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


class Delivery:
    """One message from the broker, to be acknowledged when its effect is on disk."""

    __slots__ = ("_link", "_mid", "duplicate", "payload", "retained", "settled", "topic")

    def __init__(
        self, *, link: _Link, mid: int, topic: str, payload: bytes, retained: bool, duplicate: bool
    ) -> None:
        self._link = link
        self._mid = mid
        self.topic = topic
        self.payload = payload
        self.retained = retained
        self.duplicate = duplicate
        self.settled = False

    @property
    def mid(self) -> int:
        """The packet id: 0 for QoS 0, and meaningful on its own connection only."""
        return self._mid

    def ack(self) -> None:
        """Let the PUBACK go out as soon as all earlier messages have theirs.

        A second call does nothing. After the connection is lost nothing is sent: the broker delivers
        the message again, so effects must be idempotent.
        """
        if not self.settled:
            self.settled = True
            self._link.settle()


@dataclass(eq=False, slots=True)
class _Publish:
    """A publish until its PUBACK."""

    topic: str
    payload: bytes
    retain: bool
    done: asyncio.Future[None]


class _Link:
    """One network connection: a paho client, its socket on the loop, and what is not acknowledged on it."""

    def __init__(self, *, owner: BrokerConnection, session_needed: bool) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._session_needed = session_needed
        self._unacked: deque[Delivery] = deque()
        self._publishes: dict[int, _Publish] = {}
        self._packets = 0
        self._reading = False
        self._writing = False
        self._flush_planned = False
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self._subscribe_mid: int | None = None
        self._socket: Any = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when connected and subscribed; failed when the broker refuses either."""
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, when the connection is gone."""

        address = owner.address
        # MQTT 3.1.1: it is what every broker speaks, Aedes included.
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=owner.client_id,
            clean_session=False,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = owner.options.connect_timeout_s
        # Bounded by `max_inflight_publishes` instead: paho walks its whole queue per PUBACK where it counts.
        client.max_inflight_messages_set(0)
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        if address.tls:
            client.tls_set()
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._client = client

    # -- opening and closing -------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and, where needed, subscribe. Raises OSError or BrokerConnectionError."""
        timeout_s = self._owner.options.connect_timeout_s
        address = self._owner.address
        # paho's connect blocks (DNS, TCP): it runs in a thread, and with no socket callbacks set yet it
        # writes CONNECT by itself. The loop takes over only when it has returned.
        connecting = self._loop.run_in_executor(
            None, self._client.connect, address.host, address.port, self._owner.options.keepalive_s
        )
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await connecting
            self.close("closed while connecting")
            raise
        self._attach()
        try:
            async with asyncio.timeout(timeout_s):
                await self.ready
        except TimeoutError:
            self.close(f"no CONNACK within {timeout_s:g} s")
            raise BrokerConnectionError(
                f"The broker at {address.url} took the connection but did not answer within {timeout_s:g} s."
            ) from None
        except BaseException:
            self.close("closed while connecting")
            raise

    def _attach(self) -> None:
        sock: Any = self._client.socket()
        if sock is None:
            self._lose("the broker closed the connection")
            return
        self._socket = sock
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.on_socket_close = lambda *_: self._detach()
        self._client.on_socket_register_write = lambda *_: self._plan_flush()
        self._loop.add_reader(sock, self._read)
        self._reading = True
        if self._client.want_write():
            self._plan_flush()
        self._check_keepalive()

    def _detach(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        self._reading = self._writing = False
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
            self._keepalive_timer = None

    def close(self, reason: str) -> None:
        """Say DISCONNECT if there is a connection, and let go of the socket at once."""
        if self._client.socket() is not None:
            with contextlib.suppress(OSError):
                self._client.disconnect()
                self._client.loop_write()
        sock: Any = self._client.socket()
        self._detach()
        if sock is not None:
            sock.close()
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(
                BrokerConnectionError(f"Connection to {self._owner.address.url}: {reason}.")
            )
            # Whoever waits sees it; nobody waiting is no reason for a warning.
            self.ready.exception()
        if not self.lost.done():
            self.lost.set_result(reason)

    # -- the loop's side -----------------------------------------------------------------------------

    def _read(self) -> None:
        # One loop_read handles at least one packet where there is one. Reading until nothing more comes
        # saves a poll per packet; the bound keeps other work from starving.
        for _ in range(_MAX_PACKETS_PER_READ):
            before = self._packets
            self._client.loop_read()
            if self._packets == before or not self._reading:
                return
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._reading:
            self._read()

    def _plan_flush(self) -> None:
        # Not add_writer: the socket is nearly always writable, and one deferred flush takes all packets
        # that this turn of the loop makes.
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        sock = self._socket
        if sock is None:
            return
        # paho sends packet by packet; corked, a burst of PUBACKs leaves as one segment.
        if _TCP_CORK is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, 1)
        self._client.loop_write()
        if self._socket is None:
            return
        if _TCP_CORK is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, 0)
        if self._client.want_write() != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(sock, self._flush)
            else:
                self._loop.remove_writer(sock)

    def _check_keepalive(self) -> None:
        self._keepalive_timer = None
        if self._socket is None:
            return
        self._client.loop_misc()
        if self._socket is not None:
            self._keepalive_timer = self._loop.call_later(_KEEPALIVE_CHECK_INTERVAL_S, self._check_keepalive)

    # -- paho's callbacks, on the loop ---------------------------------------------------------------

    def _on_connect(
        self,
        client: Client,
        _userdata: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._packets += 1
        if reason.is_failure:
            self._lose(f"refused: {reason}")
            return
        if not flags.session_present and not self._session_needed:
            self._owner.note_session_lost()
        subscriptions = self._owner.subscriptions
        if subscriptions and (self._session_needed or not flags.session_present):
            code, self._subscribe_mid = client.subscribe([(topic, 1) for topic in subscriptions])
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lose(f"could not subscribe: {code!r}")
        elif not self.ready.done():
            self.ready.set_result(None)

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._packets += 1
        if mid != self._subscribe_mid or self.ready.done():
            return
        if any(reason.is_failure for reason in reasons):
            self._lose("the broker refused a subscription: check its access rules")
        else:
            self.ready.set_result(None)

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        self._lose(str(reason).lower())

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self._packets += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        delivery = Delivery(
            link=self,
            mid=message.mid if message.qos else 0,
            topic=topic,
            payload=bytes(message.payload),
            retained=message.retain,
            duplicate=message.dup,
        )
        if message.qos:
            self._unacked.append(delivery)
            if self._reading and len(self._unacked) >= self._owner.options.max_unacked:
                self._reading = False
                self._loop.remove_reader(self._socket)
        else:
            delivery.settled = True
        self._owner.deliver(delivery)

    def _on_publish(
        self, _client: Client, _userdata: Any, mid: int, _reason: ReasonCode, _properties: Properties
    ) -> None:
        self._packets += 1
        publish = self._publishes.pop(mid, None)
        if publish is not None and not publish.done.done():
            publish.done.set_result(None)

    # -- the owner's side ----------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        return len(self._unacked)

    def send(self, publish: _Publish) -> None:
        """Hand one publish to the socket; its future resolves at PUBACK."""
        info = self._client.publish(publish.topic, publish.payload, qos=1, retain=publish.retain)
        # Refused only where packet ids have wrapped onto one in use: the publish then times out.
        if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self._publishes[info.mid] = publish

    def settle(self) -> None:
        """Acknowledge what stands settled at the head of the queue."""
        unacked = self._unacked
        if self._socket is None:
            self._owner.note_acknowledged(0, stale=1)
            return
        count = 0
        while unacked and unacked[0].settled:
            self._client.ack(unacked.popleft().mid, 1)
            count += 1
        if count:
            self._owner.note_acknowledged(count, stale=0)
        if not self._reading and len(unacked) <= self._owner.options.max_unacked // 2:
            self._reading = True
            self._loop.add_reader(self._socket, self._read)


class BrokerConnection:
    """A connection that is kept: it reconnects for ever, with jittered backoff, until it is closed.

    `on_message` is called on the loop for each message; it must not block, and it must see to it that
    `Delivery.ack()` is called in the end. `subscriptions` are taken at QoS 1: on the first connection of
    this object (which brings the retained messages) and whenever the broker has lost the session.

    Entering does not wait for the broker; `wait_connected()` does.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        on_message: Callable[[Delivery], None],
        subscriptions: Sequence[str] = (),
        options: ConnectionOptions | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        if not client_id:
            raise ValueError("A persistent session needs a client id.")
        self.address = BrokerAddress.parse(url)
        self.client_id = client_id
        self.subscriptions = tuple(subscriptions)
        self.options = options or ConnectionOptions()
        self._on_message = on_message
        self._random = random_source or random.Random()
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._closed = False
        self._pending: dict[int, _Publish] = {}
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
                publish = _Publish(topic, payload, retain, asyncio.get_running_loop().create_future())
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
            link = _Link(owner=self, session_needed=first)
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
                reason = await link.lost
                self._connected.clear()
                self._counters["disconnects"] += 1
                _LOG.warning("lost the connection to the broker at %s: %s", self.address.url, reason)
            link.close("lost")
            ceiling_s = min(options.max_backoff_s, options.first_backoff_s * 2.0 ** min(failures, 16))
            await asyncio.sleep(self._random.uniform(ceiling_s / 2, ceiling_s))
