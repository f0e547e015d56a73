"""One network connection of a `broker.connection.BrokerConnection`: a paho client, lent the event loop.

Every connection gets a paho client of its own, so no queue or packet id of a lost one lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from paho.mqtt.client import MQTT_LOG_ERR, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.address import BrokerAddress, BrokerConnectionError
from broker.tls import explain

# How many packets are read before other work on the loop gets its turn.
_MAX_PACKETS_PER_READ = 256
_KEEPALIVE_CHECK_INTERVAL_S = 1.0
_TCP_CORK: int | None = getattr(socket, "TCP_CORK", None)


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


class Delivery:
    """One message from the broker, to be acknowledged when its effect is on disk."""

    __slots__ = ("_link", "_mid", "duplicate", "payload", "retained", "settled", "topic")

    def __init__(
        self, *, link: Link, mid: int, topic: str, payload: bytes, retained: bool, duplicate: bool
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
class Publish:
    """A publish until its PUBACK."""

    topic: str
    payload: bytes
    retain: bool
    done: asyncio.Future[None]


class LinkOwner(Protocol):
    """What a link asks of the connection that it is a part of."""

    @property
    def address(self) -> BrokerAddress: ...
    @property
    def tls_context(self) -> ssl.SSLContext | None: ...
    @property
    def client_id(self) -> str: ...
    @property
    def subscriptions(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> ConnectionOptions: ...
    def deliver(self, delivery: Delivery) -> None:
        """Take a message."""

    def note_acknowledged(self, count: int, *, stale: int) -> None:
        """Count PUBACKs sent, or left out since their connection is gone."""

    def note_session_lost(self) -> None:
        """Count a reconnect at which the broker had forgotten the session."""


class Link:
    """One connection: a paho client, its socket on the loop, and what is not acknowledged on it."""

    def __init__(self, *, owner: LinkOwner, session_needed: bool) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._session_needed = session_needed
        #: Whether the broker knew our session when it accepted the connection.
        self.session_present = False
        self._unacked: deque[Delivery] = deque()
        self._publishes: dict[int, Publish] = {}
        self._packets = 0
        self._reading = False
        self._writing = False
        self._flush_planned = False
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self._subscribe_mid: int | None = None
        self._socket: Any = None
        # What paho has written of a failure; `on_disconnect` is told no more than that there was one.
        self._trouble: str | None = None
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
        if owner.tls_context is not None:
            client.tls_set_context(owner.tls_context)
            # A broker refuses a client's certificate after the client has set up TLS.
            client.on_log = self._on_log
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
        except ssl.SSLError as error:
            raise BrokerConnectionError(f"Connection to {address.url}: {explain(error)}.") from error
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
            if not self._reading or (self._packets == before and not self._has_more()):
                return
        self._loop.call_soon(self._read_on)

    def _has_more(self) -> bool:
        """Whether TLS has taken more from the socket than was read: for that the loop does not wake us."""
        sock = self._socket
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

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
        self._client.on_log = None
        if reason.is_failure:
            self._lose(f"refused: {reason}")
            return
        self.session_present = flags.session_present
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
        self._lose(explain(self._trouble) if self._trouble is not None else str(reason).lower())

    def _on_log(self, _client: Client, _userdata: Any, level: int, text: str) -> None:
        if level == MQTT_LOG_ERR:
            self._trouble = text

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

    def send(self, publish: Publish) -> None:
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
            if self._has_more():
                self._loop.call_soon(self._read_on)
