"""TLS to a broker: whom to trust, what to show, and what a failure means.

Certificates are checked against the system's authorities, or one's own; the broker's name or address must be
in its certificate. The version is 1.2 at least.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.address import BrokerTlsError

NO_WORD: Final = "the broker closed the connection without a word: it may not take the client certificate"
"""What is told where TLS was set up and nothing more came."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """What a connection by TLS goes by; each in PEM, and None where it is not needed.

    ``certificate_file`` holds a key and its certificate, for a broker that wants to see one.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For clients; raises `BrokerTlsError`."""
        if self.ca_file is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(cafile=self.ca_file)
            except OSError as error:
                raise BrokerTlsError(
                    f"{self.ca_file} can't be used as the broker's certificate authority"
                    f" ({_cause(error)}): give its certificate in PEM (MUSTER_BROKER_CA_FILE)"
                ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate_file is not None:
            load_certificate(context, self.certificate_file)
        return context


def load_certificate(context: ssl.SSLContext, path: Path) -> None:
    """Let ``context`` show the certificate in ``path``; raises `BrokerTlsError`."""
    try:
        # Without a password for it OpenSSL would ask on the terminal.
        context.load_cert_chain(path, password="")
    except OSError as error:
        raise BrokerTlsError(
            f"{path} can't be used as a client certificate ({_cause(error)}): give a file in PEM with the"
            " key, not encrypted, and its certificate, as `muster ca issue` writes them"
        ) from error


def explain(error: BaseException | str) -> str:
    """What a failure of a connection means, for people; its own words where it is none of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _UNTRUSTED.get(error.verify_code) or f"the broker's certificate is bad: {error.verify_message}"
    text = str(error)
    if _ENDED in text:
        return NO_WORD
    if found := _REASON.search(text):
        return _REASONS.get(found[1], text)
    return text


def _cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").replace("_", " ").lower()
    return error.strerror or str(error)


_WRONG_AUTHORITY: Final = (
    "the broker's certificate is of an authority that is not trusted here: give the right one's"
    " (MUSTER_BROKER_CA_FILE)"
)
# By X509_V_ERR_…
_UNTRUSTED: Final = {
    2: _WRONG_AUTHORITY,
    7: _WRONG_AUTHORITY,
    9: "the broker's certificate is not valid yet: compare the clocks",
    10: "the broker's certificate has expired",
    18: _WRONG_AUTHORITY,
    19: _WRONG_AUTHORITY,
    20: _WRONG_AUTHORITY,
    21: _WRONG_AUTHORITY,
    62: "the broker's certificate is for another name: use the one that is in it, in the broker's URL",
    64: "the broker's certificate is for another address: use the one that is in it, in the broker's URL",
}
# Where its word was overtaken by the end.
_ENDED: Final = "EOF occurred in violation of protocol"
_REASON: Final = re.compile(r"\[SSL: (\w+)\]")
_WANTED: Final = "the broker wants a client certificate, and was shown none"
_NOT_TAKEN: Final = "the broker does not take the client certificate"
# What the other side says, by OpenSSL's names.
_REASONS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _WANTED,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the broker breaks TLS off: it may want a client certificate",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the client certificate was revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _NOT_TAKEN,
    "SSLV3_ALERT_BAD_CERTIFICATE": _NOT_TAKEN,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _NOT_TAKEN,
    "TLSV1_ALERT_UNKNOWN_CA": f"{_NOT_TAKEN}: it is of an authority that is not trusted there",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the broker speaks no version of TLS from 1.2 on",
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS: use mqtt://, or the port for TLS",
}
