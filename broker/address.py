"""Where a broker is, and what a connection to it can come to.

BrokerError
└── BrokerConnectionError       no connection, or none that is of use
    ├── BrokerAddressError      the URL can't be used
    ├── BrokerTlsError          a file that TLS needs can't be used
    ├── PublishTimeoutError     no PUBACK in time: the broker is away or too slow
    └── ConnectionClosedError   the connection was closed by its owner
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from broker.errors import BrokerError


class BrokerConnectionError(BrokerError):
    """Base of what a broker connection raises."""


class BrokerAddressError(BrokerConnectionError, ValueError):
    """The broker's URL can't be used; the message names it and the form that can."""


class BrokerTlsError(BrokerConnectionError):
    """A file that TLS needs can't be used; the message names it and the remedy."""


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
