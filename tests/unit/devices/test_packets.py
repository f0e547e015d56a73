"""The device's MQTT packets against paho's, which is another implementation, and cut at any place."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from devices import packets
from devices.errors import ConnectionLostError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=40)
IDS = st.integers(1, 0xFFFF)


class Recorder(Client):
    """A paho client that keeps what it would send."""

    def __init__(self, client_id: str = "x") -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id, clean_session=False)
        self.sent = b""
        self._sock = Mock()  # without a socket it publishes nothing

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: MQTTMessageInfo | None = None
    ) -> MQTTErrorCode:
        self.sent += bytes(packet)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


@given(TEXT, st.integers(1, 0xFFFF), TEXT, st.binary(max_size=300), st.none() | TEXT, st.none() | TEXT)
def test_connect_is_what_paho_sends(
    client_id: str, keepalive_s: int, topic: str, will: bytes, username: str | None, password: str | None
) -> None:
    paho = Recorder(client_id)
    paho.will_set(topic, will, qos=1, retain=True)
    if username is not None:
        paho.username_pw_set(username, password)
    paho._send_connect(keepalive_s)
    assert paho.sent == packets.connect(
        client_id,
        keepalive_s=keepalive_s,
        will_topic=topic,
        will_payload=will,
        username=username,
        password=password,
    )


@given(IDS, TEXT, st.binary(max_size=20) | st.integers(100, 70_000).map(bytes), st.booleans())
def test_publish_is_what_paho_sends_and_reads_back(
    packet_id: int, topic: str, payload: bytes, retain: bool
) -> None:
    paho = Recorder()
    paho._send_publish(packet_id, topic.encode(), payload, qos=1, retain=retain)
    packet = packets.publish(packet_id, topic, payload, retain=retain)
    assert paho.sent == packet
    [(first, body)], rest = packets.split(packet)
    assert rest == b""
    assert packets.read_publish(first, body) == packets.Incoming(
        topic=topic, payload=payload, packet_id=packet_id
    )


@given(IDS, st.lists(TEXT, min_size=1, max_size=3))
def test_subscribe_is_what_paho_sends(packet_id: int, filters: list[str]) -> None:
    paho = Recorder()
    paho._last_mid = packet_id - 1
    paho._send_subscribe(False, [(topic.encode(), 1) for topic in filters])
    assert paho.sent == packets.subscribe(packet_id, filters)


@given(st.lists(st.integers(0, 300).map(bytes), max_size=5), st.integers(1, 400))
def test_packets_are_whole_however_the_stream_is_cut(bodies: list[bytes], piece: int) -> None:
    sent = [packets.publish(number + 1, "t", body) for number, body in enumerate(bodies)]
    stream, received, rest = b"".join(sent), [], b""
    for at in range(0, len(stream), piece):
        whole, rest = packets.split(rest + stream[at : at + piece])
        received += whole
    assert rest == b""
    assert [packets.read_publish(*packet).payload for packet in received] == bodies


def test_a_message_of_qos_0_has_no_packet_id() -> None:
    assert packets.read_publish(0x30, b"\x00\x01thi") == packets.Incoming(
        topic="t", payload=b"hi", packet_id=None
    )


@given(st.binary(max_size=64))
def test_what_is_no_packet_is_refused_or_waited_for(data: bytes) -> None:
    """Anything may come from a socket: no other error than the one that ends the connection."""
    try:
        received, _ = packets.split(data)
        for first, body in received:
            packets.read_publish(first, body)
            packets.read_packet_id(body)
            packets.read_connack(body)
    except ConnectionLostError:
        pass


@pytest.mark.parametrize("header", [b"\x30\xff\xff\xff\xff\x01", b"\x30\xff\xff\xff\x7f"])
def test_a_packet_that_is_too_long_ends_the_connection_before_it_has_come(header: bytes) -> None:
    with pytest.raises(ConnectionLostError, match="the broker sent"):
        packets.split(header)


@pytest.mark.parametrize(
    ("code", "words"), [(4, "user name or password"), (5, "not authorised"), (9, "code 9")]
)
def test_a_refusal_says_why(code: int, words: str) -> None:
    with pytest.raises(ConnectionLostError, match=words):
        packets.read_connack(bytes((0, code)))
