"""MQTT 3.1.1 as far as a device speaks it: packets as bytes, pure.

A device publishes and subscribes with QoS 1, so nothing of QoS 2 is here. Numbers in brackets are sections of
the standard.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from devices.errors import ConnectionLostError, NotAuthorisedError

# Control packet types (2.2.1), as in the upper half of a packet's first byte.
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBACK: Final = 9
PINGRESP: Final = 13

PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"

MAX_PACKET_BYTES: Final = 1024 * 1024
"""Of what comes in: many times the contract's longest message, so that the contract is what refuses it."""
REFUSED: Final = 0x80
"""What SUBACK says of a subscription that was not granted (3.9.3)."""

_CONNECT: Final = 0x10
_SUBSCRIBE: Final = 0x82
_PUBLISH_QOS_1: Final = 0x32
_PUBACK: Final = b"\x40\x02"
_RETAIN: Final = 0x01
_QOS_1: Final = 1
_MAX_LENGTH_DIGITS: Final = 4
_REFUSALS: Final = {
    1: "it does not speak MQTT 3.1.1",
    2: "it does not accept the client id",
    3: "it is not available",
    4: "bad user name or password",
    5: "not authorised",
}
_BAD_CREDENTIALS: Final = frozenset({4, 5})


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """A message from the broker; with QoS 0 it has no packet id, and is not acknowledged."""

    topic: str
    payload: bytes
    packet_id: int | None


def connect(
    client_id: str,
    *,
    keepalive_s: int,
    will_topic: str,
    will_payload: bytes,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """CONNECT (3.1) with a persistent session and a retained will of QoS 1."""
    flags = 0x2C  # will, its QoS 1, its retain; no clean session
    fields = [_text(client_id), _text(will_topic), _prefixed(will_payload)]
    if username is not None:
        flags |= 0x80
        fields.append(_text(username))
        if password is not None:
            flags |= 0x40
            fields.append(_text(password))
    header = b"\x00\x04MQTT\x04" + struct.pack("!BH", flags, keepalive_s)
    return _packet(_CONNECT, header + b"".join(fields))


def subscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """SUBSCRIBE (3.8), QoS 1."""
    body = b"".join(_text(topic_filter) + bytes((_QOS_1,)) for topic_filter in filters)
    return _packet(_SUBSCRIBE, packet_id.to_bytes(2, "big") + body)


def publish(packet_id: int, topic: str, payload: bytes, *, retain: bool = False) -> bytes:
    """PUBLISH (3.3), QoS 1."""
    first = _PUBLISH_QOS_1 | _RETAIN if retain else _PUBLISH_QOS_1
    return _packet(first, _text(topic) + packet_id.to_bytes(2, "big") + payload)


def puback(packet_id: int) -> bytes:
    """PUBACK (3.4)."""
    return _PUBACK + packet_id.to_bytes(2, "big")


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole packets in ``data``, each as its first byte and its body, and the beginning of the next one.

    Raises `ConnectionLostError` for what can't be a packet, or is longer than `MAX_PACKET_BYTES`.
    """
    packets: list[tuple[int, bytes]] = []
    at = 0
    while (extent := _extent(data, at)) is not None:
        start, end = extent
        if end > len(data):
            break
        packets.append((data[at], data[start:end]))
        at = end
    return packets, data[at:]


def read_connack(body: bytes) -> bool:
    """Whether the broker knew the session (3.2); raises `ConnectionLostError` where it refuses the device."""
    if len(body) != 2:
        raise ConnectionLostError("the broker sent a CONNACK of the wrong size")
    if body[1]:
        kind = NotAuthorisedError if body[1] in _BAD_CREDENTIALS else ConnectionLostError
        raise kind(f"the broker refuses: {_REFUSALS.get(body[1], f'code {body[1]}')}")
    return bool(body[0] & 1)


def read_packet_id(body: bytes) -> int:
    """Whose confirmation a PUBACK or SUBACK is; raises `ConnectionLostError`."""
    if len(body) < 2:
        raise ConnectionLostError("the broker sent a confirmation of nothing")
    return int.from_bytes(body[:2], "big")


def read_publish(first: int, body: bytes) -> Incoming:
    """A PUBLISH of QoS 0 or 1; raises `ConnectionLostError`."""
    topic_end = 2 + int.from_bytes(body[:2], "big")
    qos = first >> 1 & 0x03
    start = topic_end + 2 if qos else topic_end
    if qos > _QOS_1 or len(body) < start:
        raise ConnectionLostError("the broker sent a PUBLISH that is malformed or not of QoS 0 or 1")
    try:
        topic = body[2:topic_end].decode()
    except UnicodeDecodeError:
        raise ConnectionLostError("the broker sent a topic that is not UTF-8") from None
    packet_id = int.from_bytes(body[topic_end:start], "big") if qos else None
    return Incoming(topic=topic, payload=body[start:], packet_id=packet_id)


def _extent(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at ``at`` begins and ends (2.2.3); None: its header has not come yet."""
    length = 0
    for digit in range(_MAX_LENGTH_DIGITS):
        position = at + 1 + digit
        if position >= len(data):
            return None
        value = data[position]
        length |= (value & 0x7F) << 7 * digit
        if value < 0x80:
            if length > MAX_PACKET_BYTES:
                raise ConnectionLostError(f"the broker sent a packet of {length:,} bytes")
            return position + 1, position + 1 + length
    raise ConnectionLostError("the broker sent what is no MQTT packet")


def _packet(first: int, body: bytes) -> bytes:
    length = len(body)
    if length < 0x80:
        return bytes((first, length)) + body
    digits = bytearray((first,))
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    digits.append(length)
    return bytes(digits) + body


def _text(text: str) -> bytes:
    return _prefixed(text.encode())


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
