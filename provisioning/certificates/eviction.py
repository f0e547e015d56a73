"""How a device that holds a connection by certificate is disconnected: the service takes its place.

A broker lets nobody have two connections, so one with the device's client id ends the device's; without a
session to keep, it ends that too. It needs a certificate with the device's name, which the authority makes.
Mosquitto has no other way: at a reload it disconnects those whose password is gone, and looks at certificates
when a connection begins only. The device must be on the revocation list that the broker has read before.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Iterable
from typing import Final

from .authority import Authority

_LOG: Final = logging.getLogger(__name__)

_AT_ONCE: Final = 16
_TRIES: Final = 3
_TIMEOUT_S: Final = 5.0
_CONNACK: Final = b"\x20\x02\x00\x00"
_DISCONNECT: Final = b"\xe0\x00"


async def evict(authority: Authority, device_ids: Iterable[str], *, host: str, port: int) -> list[str]:
    """End the connections and sessions of devices; returns those where that failed, which is logged.

    Nobody there is no failure: then nobody is connected.
    """
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(device_id: str) -> str | None:
        async with turn:
            for attempt in range(1, _TRIES + 1):
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await _take_place(authority, device_id, host, port)
                    return None
                except ConnectionRefusedError:
                    return None
                except (OSError, EOFError) as error:
                    if attempt == _TRIES:
                        _LOG.error("%s could not be disconnected from the broker: %s", device_id, error)
        return device_id

    failed = await asyncio.gather(*(one(device_id) for device_id in device_ids))
    return [device_id for device_id in failed if device_id is not None]


async def _take_place(authority: Authority, device_id: str, host: str, port: int) -> None:
    context = await asyncio.to_thread(_context, authority, device_id)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        name = device_id.encode()
        # MQTT 3.1.1, clean session, keepalive 10 s (3.1).
        body = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2) + name
        writer.write(b"\x10" + bytes((len(body),)) + body)
        answer = await reader.readexactly(len(_CONNACK))
        if answer != _CONNACK:
            raise ConnectionError(f"it answered {answer.hex()}")
        writer.write(_DISCONNECT)
        await writer.drain()
    finally:
        writer.close()


def _context(authority: Authority, device_id: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL reads keys from files only: one that nobody else may read, and that is gone at once.
    with tempfile.NamedTemporaryFile(dir=authority.directory) as file:
        file.write(authority.stand_in(device_id))
        file.flush()
        context.load_cert_chain(file.name)
    return context
