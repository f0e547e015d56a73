"""A device's MQTT connection: the protocol on a transport of the event loop's, made for ten thousand of them.

Why not a general client: with aiomqtt, a connection costs several times the processor time and twice the
memory (tasks, locks, a thread's turn to connect, a system call for each field that is read). A device needs
little of MQTT, and that is in `devices.packets`.

Packets of one turn of the loop leave in one write. A message is acknowledged after it has been handled. What
the broker does not confirm in time, and a ping that it does not answer, end the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Final, cast

from broker.connection import BrokerAddress
from devices import packets
from devices.channel import SecureChannel
from devices.errors import ConnectionLostError

_MAX_PACKET_ID: Final = 0xFFFF
# CONNECT has no packet id, and 0 is none: its confirmation is waited for under this one.
_CONNECT_ID: Final = 0


class DeviceClient(asyncio.Protocol):
    """One connection: `open` it once, wait for its end by `wait_closed`; `finish` ends it, `sever` cuts it.

    ``connect`` is the CONNECT packet; ``on_message`` is called with the topic and payload of whatever comes.
    An error that it raises ends the connection, and is raised by `wait_closed`.
    """

    __slots__ = (
        "_closed",
        "_confirm_timeout_s",
        "_connect",
        "_keepalive",
        "_keepalive_s",
        "_last_id",
        "_last_sent_s",
        "_loop",
        "_on_message",
        "_outgoing",
        "_partial",
        "_patience",
        "_pinged",
        "_reason",
        "_transport",
        "_unconfirmed",
        "connected",
        "session_present",
    )

    def __init__(
        self,
        *,
        connect: bytes,
        keepalive_s: float,
        confirm_timeout_s: float,
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._keepalive_s = keepalive_s
        self._confirm_timeout_s = confirm_timeout_s
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._reason: Exception | None = None
        self._outgoing = b""
        self._partial = b""
        self._last_id = 0
        # What waits for its confirmation, and since when: the oldest first.
        self._unconfirmed: dict[int, tuple[asyncio.Future[bytes], float]] = {}
        self._patience: asyncio.TimerHandle | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._last_sent_s = 0.0
        self._pinged = False
        #: Whether the broker has accepted the connection, and it has not ended since.
        self.connected = False
        #: Whether the broker knew the session.
        self.session_present = False

    @property
    def unconfirmed(self) -> int:
        """How many publishes and subscriptions the broker has not confirmed yet."""
        return len(self._unconfirmed)

    async def open(self, address: BrokerAddress, *, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        """Connect; raises `ConnectionLostError`. An attempt that fails or is cancelled leaves no socket."""
        outer: asyncio.Protocol = self
        if tls is not None:
            # Known from the beginning, so that TLS can be cut while it is set up.
            outer = self._transport = SecureChannel(self, tls, address.host)
        try:
            async with asyncio.timeout(timeout_s):
                await self._loop.create_connection(lambda: outer, address.host, address.port)
                await self._confirmation(_CONNECT_ID)
        except BaseException as error:
            # A late CONNACK would else take the session away from the connection that comes after.
            self.sever()
            if isinstance(error, TimeoutError):
                raise ConnectionLostError(f"no answer in {timeout_s:g} s") from None
            if isinstance(error, OSError):
                raise ConnectionLostError(str(error)) from error
            raise

    async def wait_closed(self) -> None:
        """Wait for the connection's end. Raises `ConnectionLostError`, or what ``on_message`` raised."""
        await self._closed
        raise self._reason or ConnectionLostError("the connection was closed")

    def subscribe(self, filters: Sequence[str]) -> asyncio.Future[bytes]:
        """Subscribe with QoS 1; the future has SUBACK's codes, one for each filter, or `ConnectionLostError`.

        Raises it at once where the connection has ended already.
        """
        packet_id = self._next_id()
        confirmation = self._confirmation(packet_id)
        self._write(packets.subscribe(packet_id, filters))
        return confirmation

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> asyncio.Future[bytes]:
        """Publish with QoS 1; the future is done at PUBACK, or has `ConnectionLostError`.

        Raises it at once where the connection has ended already.
        """
        packet_id = self._next_id()
        confirmation = self._confirmation(packet_id)
        self._write(packets.publish(packet_id, topic, payload, retain=retain))
        return confirmation

    def finish(self) -> None:
        """Say DISCONNECT and close, if the connection is still there."""
        if self.connected and self._transport is not None:
            self._write(packets.DISCONNECT)
            self._flush()
            if self._transport.get_write_buffer_size() == 0:
                self.connected = False
                self._transport.close()
                return
        # A broker that reads no more would keep the socket open for what it never takes.
        self.sever()

    def sever(self) -> None:
        """Cut the connection without DISCONNECT, as a lost network does: the broker publishes the will."""
        self._end(ConnectionLostError("the device cut the connection"))

    # -- what the transport calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._connect)

    def data_received(self, data: bytes) -> None:
        self._pinged = False
        try:
            received, self._partial = packets.split(self._partial + data if self._partial else data)
            for first, body in received:
                if self._reason is not None:
                    return
                self._take(first, body)
        except (
            Exception
        ) as error:  # what `on_message` raises is for whoever waits, not for the event loop's log
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if not isinstance(exc, ConnectionLostError):
            exc = ConnectionLostError(str(exc) if exc else "the broker closed the connection")
        self._end(exc)
        self._transport = None
        if not self._closed.done():
            self._closed.set_result(None)

    # -- the parts ------------------------------------------------------------------------------------

    def _take(self, first: int, body: bytes) -> None:
        match first >> 4:
            case packets.PUBLISH:
                message = packets.read_publish(first, body)
                self._on_message(message.topic, message.payload)
                if message.packet_id is not None:
                    self._write(packets.puback(message.packet_id))
            case packets.PUBACK:
                self._confirm(packets.read_packet_id(body), b"")
            case packets.SUBACK:
                self._confirm(packets.read_packet_id(body), body[2:])
            case packets.CONNACK:
                self.session_present = packets.read_connack(body)
                self.connected = True
                self._last_sent_s = self._loop.time()
                self._keepalive = self._loop.call_later(self._keepalive_s, self._keep_alive)
                self._confirm(_CONNECT_ID, b"")
            case packets.PINGRESP:
                pass
            case kind:
                raise ConnectionLostError(f"the broker sent a packet of type {kind}")

    def _write(self, packet: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += packet

    def _flush(self) -> None:
        if self._outgoing and self.connected and self._transport is not None:
            self._transport.write(self._outgoing)
            self._last_sent_s = self._loop.time()
        self._outgoing = b""

    def _next_id(self) -> int:
        if not self.connected:
            raise self._reason or ConnectionLostError("the connection was closed")
        while True:
            self._last_id = self._last_id % _MAX_PACKET_ID + 1
            if self._last_id not in self._unconfirmed:
                return self._last_id

    def _confirmation(self, packet_id: int) -> asyncio.Future[bytes]:
        confirmation: asyncio.Future[bytes] = self._loop.create_future()
        if self._reason is not None:
            confirmation.set_exception(self._reason)
            return confirmation
        self._unconfirmed[packet_id] = confirmation, self._loop.time()
        if self._patience is None:
            self._patience = self._loop.call_later(self._confirm_timeout_s, self._lose_patience)
        return confirmation

    def _confirm(self, packet_id: int, codes: bytes) -> None:
        # Unknown: a PUBACK for what was given up.
        if (waiting := self._unconfirmed.pop(packet_id, None)) is not None and not waiting[0].done():
            waiting[0].set_result(codes)

    def _lose_patience(self) -> None:
        """The oldest of what is unconfirmed may have waited too long."""
        self._patience = None
        for _, since_s in self._unconfirmed.values():
            left_s = since_s + self._confirm_timeout_s - self._loop.time()
            if left_s > 0:
                self._patience = self._loop.call_later(left_s, self._lose_patience)
            else:
                self._end(ConnectionLostError(f"no confirmation in {self._confirm_timeout_s:g} s"))
            return

    def _keep_alive(self) -> None:
        """A ping may be due: it is where nothing was sent for a whole keepalive time."""
        left_s = self._last_sent_s + self._keepalive_s - self._loop.time()
        if left_s <= 0:
            if self._pinged:
                self._end(ConnectionLostError("the broker does not answer pings"))
                return
            self._pinged = True
            self._write(packets.PINGREQ)
            left_s = self._keepalive_s
        self._keepalive = self._loop.call_later(left_s, self._keep_alive)

    def _end(self, reason: Exception) -> None:
        """The first reason counts; the transport tells of the end by `connection_lost`."""
        if self._reason is not None:
            return
        self._reason = reason
        self.connected = False
        for timer in (self._patience, self._keepalive):
            if timer is not None:
                timer.cancel()
        for confirmation, _ in self._unconfirmed.values():
            if not confirmation.done():
                confirmation.set_exception(reason)
        self._unconfirmed.clear()
        if self._transport is not None:
            self._transport.abort()
