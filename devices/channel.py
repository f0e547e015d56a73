"""TLS between a device's connection and its socket.

Why not the event loop's own: that keeps a buffer of 256 KiB for each connection, which is gigabytes for ten
thousand devices. Here a connection costs what OpenSSL needs. The context may be shared: a certificate that is
loaded into it is that of the connections that are made from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final, cast

from broker.tls import NO_WORD, explain
from devices.errors import ConnectionLostError

_CHUNK_BYTES: Final = 64 * 1024
_NO_TLS: Final = "the broker closed the connection while TLS was set up"


class SecureChannel(asyncio.Protocol, asyncio.Transport):
    """A transport for ``inner`` and a protocol for the socket's; ``inner`` is told when TLS is there."""

    def __init__(self, inner: asyncio.Protocol, context: ssl.SSLContext, host: str) -> None:
        super().__init__()
        self._inner = inner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._transport: asyncio.Transport | None = None
        self._established = False
        self._heard = False
        self._aborted = False
        self._error: Exception | None = None

    # -- what the socket's transport calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._aborted:
            self._transport.abort()
        else:
            self._advance()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = self._error or exc
        if not self._heard and (reason is None or isinstance(reason, ConnectionError)):
            # Its alert, if it has sent one, was overtaken by the end.
            reason = ConnectionLostError(NO_WORD if self._established else _NO_TLS)
        self._inner.connection_lost(reason)

    # -- what the inner protocol calls ----------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._tls.write(data)
            self._flush()

    def close(self) -> None:
        if self._transport is not None:
            # It waits for the other side's answer, which nobody here needs.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    # -- the parts ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on with what has come in, as far as it reaches."""
        try:
            if not self._established:
                self._tls.do_handshake()
                self._established = True
                self._inner.connection_made(self)
            while not self._aborted:
                data = self._tls.read(_CHUNK_BYTES)
                if not data:
                    self.close()
                    break
                self._heard = True
                self._inner.data_received(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._error = ConnectionLostError(explain(error))
            # What is wrong is told to the other side, too.
            self._flush()
            if self._transport is not None:
                self._transport.abort()
            return
        self._flush()

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing.pending:
            self._transport.write(self._outgoing.read())
