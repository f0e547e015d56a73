"""Mosquitto as the local broker: where it is found and how it is configured.

The configuration is written for fleets of tens of thousands of devices with persistent sessions. Two of
Mosquitto's defaults would lose messages there without a word: at most 1,000 are queued for a client that
is away or slow, and only 20 are in flight to one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker import topics
from broker.identity import SERVICE_ACCOUNT, expiry_of, make_token
from broker.local.process import Program
from broker.local.tls import TlsListener
from broker.private_files import write_private

# Packages of Debian and Homebrew put it where a user's PATH often doesn't reach.
EXTRA_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
DEFAULT_PORT: Final = 1883
MAX_INFLIGHT_MESSAGES: Final = 1_000
MAX_QUEUED_MESSAGES: Final = 1_000_000
# The contract's payloads end at 64 KiB; a topic and properties come on top.
MAX_MESSAGE_BYTES: Final = 128 * 1024
AUTOSAVE_INTERVAL_S: Final = 5
SESSION_EXPIRY: Final = "14d"

_CONFIGURATION: Final = """\
# Written by Muster at every start; changes are lost.
{tls}listener {port} 127.0.0.1
socket_domain ipv4
{access}
user {user}
max_connections -1
max_inflight_messages {inflight}
max_queued_messages {queued}
max_queued_bytes 0
max_packet_size {message_bytes}
set_tcp_nodelay true
persistence true
persistence_location {data}/
persistence_file mosquitto.db
autosave_interval {autosave_s}
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


_OPEN: Final = f"""\
allow_anonymous true
persistent_client_expiration {SESSION_EXPIRY}"""
# No expiration of sessions: at each SIGHUP, Mosquitto (2.0.11) puts the sessions of devices that are away
# once more on its list of those that will expire, since their passwords of before are good no more. When a
# device is back it forgets one entry and follows the others into freed memory: it grows, and it crashes.
# The user name is the client id: else a device could take the session of another one.
_BY_ACCOUNT: Final = """\
allow_anonymous false
password_file {passwords}
acl_file {rights}
use_username_as_clientid true"""

# Before the other listener: who can reach that one finds this one there. The name in the certificate is user
# name and client id, whatever else the device says.
_TLS: Final = """\
listener {port} 127.0.0.1
socket_domain ipv4
cafile {ca}
certfile {certificate}
keyfile {certificate}
crlfile {revoked}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true

"""

# %u is the user name. What nobody is given nobody has: not $SYS, and no topic outside of the contract.
_RIGHTS: Final = f"""\
# Written by Muster at every start; changes are lost.
user {SERVICE_ACCOUNT}
topic readwrite devices/#

pattern write {topics.presence("%u")}
pattern write {topics.register("%u")}
pattern write {topics.event("%u", "+")}
pattern read {topics.package("%u")}
pattern read {topics.command("%u", "+")}
"""


class MosquittoFiles:
    """The password file and the list of rights.

    The file has one password for each device, so it holds the token of the device's present period, hashed
    once with a salt: what has 256 random bits needs no slow hash, and the broker checks all at each reload.
    """

    def __init__(self, directory: Path, *, token_lifetime_s: int) -> None:
        self.passwords = directory / "passwords"
        self.rights = directory / "rights"
        self._lifetime_s = token_lifetime_s
        self._entries: dict[str, _Entry] = {}

    def prepare(self, service_password: str) -> None:
        """Write the service's account anew; the devices keep theirs."""
        devices = [line for line in _lines(self.passwords) if not line.startswith(f"{SERVICE_ACCOUNT}:")]
        write_private(self.rights, _RIGHTS)
        write_private(self.passwords, "\n".join((_hashed(SERVICE_ACCOUNT, service_password), *devices, "")))

    def write(self, service_password: str, keys: Mapping[str, str], *, now: float) -> None:
        """Write all accounts; raises OSError."""
        entries = {}
        for device_id, key in keys.items():
            entry = self._entries.get(device_id)
            expires_at = expiry_of(device_id, now=now, lifetime_s=self._lifetime_s)
            if entry is None or entry.key != key or entry.expires_at != expires_at:
                token = make_token(key, device_id, expires_at)
                entry = _Entry(key=key, expires_at=expires_at, line=_hashed(device_id, token))
            entries[device_id] = entry
        lines = (entry.line for entry in entries.values())
        write_private(self.passwords, "\n".join((_hashed(SERVICE_ACCOUNT, service_password), *lines, "")))
        self._entries = entries

    def stale(self, now: float) -> bool:
        """Whether the period of some device has ended, or not begun, as where the clock was set back."""
        lifetime_s = self._lifetime_s
        return any(
            not lifetime_s < entry.expires_at - now <= 2 * lifetime_s for entry in self._entries.values()
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A device's line in the password file, and what it was made from."""

    key: str
    expires_at: int
    line: str


def _hashed(username: str, password: str) -> str:
    salt = secrets.token_bytes(12)
    digest = hashlib.sha512(password.encode() + salt).digest()
    return f"{username}:$6${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _tls(listener: TlsListener) -> str:
    files = listener.files
    return _TLS.format(
        port=listener.port, ca=files.ca_file, certificate=files.certificate_file, revoked=files.revoked_file
    )


def find_mosquitto() -> Path | None:
    """Mosquitto's server on PATH, else in the places where packages put it, else None."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(EXTRA_PLACES))
    return None if found is None else Path(found)


def mosquitto_program(
    executable: Path,
    directory: Path,
    files: MosquittoFiles | None = None,
    tls: TlsListener | None = None,
) -> Program:
    """The program that runs ``executable`` with its configuration, database and log in ``directory``.

    Without ``files`` it is open to all on this machine.
    """
    secure = b"" if tls is None else tls.files.authority()
    access = _OPEN if files is None else _BY_ACCOUNT.format(passwords=files.passwords, rights=files.rights)

    def configuration(port: int) -> str:
        return _CONFIGURATION.format(
            port=port,
            access=access,
            tls="" if tls is None else _tls(tls),
            # Started by root it would become the user "mosquitto", who can't write to the state directory.
            user=pwd.getpwuid(os.geteuid()).pw_name,
            inflight=MAX_INFLIGHT_MESSAGES,
            queued=MAX_QUEUED_MESSAGES,
            message_bytes=MAX_MESSAGE_BYTES,
            data=directory,
            autosave_s=AUTOSAVE_INTERVAL_S,
        )

    def command(port: int) -> tuple[str, ...]:
        path = directory / "mosquitto.conf"
        write_private(path, configuration(port))
        return (str(executable), "-c", str(path))

    return Program(
        name="mosquitto",
        role="broker",
        command=command,
        fingerprint=hashlib.sha256(f"{executable}\n{configuration(0)}".encode() + secure).hexdigest(),
        default_port=DEFAULT_PORT,
    )
