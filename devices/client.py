"""A device's MQTT client: aiomqtt's, with what a fleet needs and aiomqtt has no words for.

This is the one place that reaches behind aiomqtt's public face; each reach says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, Final

from aiomqtt import Client, MqttError
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

_LOG = logging.getLogger(__name__)

_KEEPALIVE_CHECK_INTERVAL_S: Final = 5.0


class DeviceClient(Client):
    """One connection: `open` it once, read `messages`, end it by `finish`, or cut it by `sever`.

    A new one is made for every connection: aiomqtt's own reuse does not wait for the second CONNACK.
    """

    #: Whether the broker knew the session at the CONNACK; aiomqtt does not keep the flag.
    session_present = False

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.session_present = flags.session_present
        super()._on_connect(client, userdata, flags, reason_code, properties)

    async def open(self) -> None:
        """Connect; raises `MqttError`. An attempt that fails or is cancelled leaves no socket behind."""
        try:
            await self.__aenter__()
        except BaseException:
            # aiomqtt leaves the socket of an unanswered CONNECT open: a late CONNACK would then take the
            # session away from the connection that came after.
            self.sever()
            raise

    async def finish(self) -> None:
        """Say DISCONNECT if the connection is still there; never raises `MqttError`."""
        with contextlib.suppress(MqttError):
            await self.__aexit__(None, None, None)
        # Reading the reason of a connection's end that nobody waited for keeps asyncio from reporting it.
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()

    def sever(self) -> None:
        """Cut the connection without DISCONNECT, as a lost network does: the broker publishes the will.

        aiomqtt's exit is graceful, which discards the will. The reader sees the stream's end and
        ends the connection.
        """
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                _LOG.debug("already cut: %s", error)

    def part(self) -> None:
        """Say DISCONNECT and let the reader see the end; `finish` would not return before it has."""
        self._client.disconnect()

    async def _misc_loop(self) -> None:
        # aiomqtt looks after the keepalive every second; for ten thousand idle devices that would be
        # ten thousand wake-ups a second, and keepalives are a minute long.
        # It is a poll by nature: only the clock says when the next ping is due.
        while self._client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS:  # noqa: ASYNC110
            await asyncio.sleep(_KEEPALIVE_CHECK_INTERVAL_S)
