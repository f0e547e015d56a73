"""The certificate authority of a state directory: ``<state>/ca/``.

| file | what |
|---|---|
| `ca.pem` | the authority's certificate: what everybody trusts |
| `ca.key` | its key; who has it can be any device |
| `ca.crl` | the certificates that are revoked |
| `broker.pem` | the local broker's key and certificate, made anew before it expires |
| `certificates.db` | what was issued (`records`) |

The directory is made whole or not at all; files are replaced in one step.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import filelock
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from broker.private_files import write_private
from broker.topics import DEVICE_ID_PATTERN
from provisioning.errors import (
    AuthorityExistsError,
    AuthorityMissingError,
    CertificateError,
    StateError,
    name_some,
)

from .building import KeyPair, authority, issue, revocation_list
from .records import IssuedRecord, Numbers, Records

DIRECTORY: Final = "ca"
SERVICE_NAME: Final = "$service"
"""Whose certificate may read and write all: no device id begins with a dollar sign."""
_BROKER_NAME: Final = "Muster broker"

LIFETIME: Final = timedelta(days=3_652)
DEFAULT_DAYS: Final = 90
MAX_DAYS: Final = 825
_BROKER_DAYS: Final = 365
_STAND_IN: Final = timedelta(minutes=5)
_RENEW_BEFORE: Final = timedelta(days=30)
_LIST_BEFORE_S: Final = 3_600
_LOCAL_HOSTS: Final = ("127.0.0.1", "localhost", "::1")
_DEVICE_ID: Final = re.compile(DEVICE_ID_PATTERN)

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its key, as handed out."""

    subject: str
    serial: int
    expires_at: datetime
    pem: bytes = field(repr=False)
    """Key and certificate."""


class Authority:
    """An authority that is there: `open` it, or `create` one. ``clock`` is seconds since the epoch."""

    def __init__(self, directory: Path, pair: KeyPair, *, clock: Clock = time.time) -> None:
        self._directory = directory
        self._pair = pair
        self._clock = clock
        self._records = Records(directory / "certificates.db")

    # -- making and opening ---------------------------------------------------------------------------

    @classmethod
    def create(cls, state_dir: Path, *, clock: Clock = time.time) -> Authority:
        """Make an authority for a state directory that has none; AuthorityExistsError where it has."""
        directory = state_dir.absolute() / DIRECTORY
        if directory.exists():
            raise AuthorityExistsError(directory)
        now = _utc(clock())
        # A name of its own, so that two authorities are never taken for each other.
        pair = authority(name=f"Muster CA {secrets.token_hex(4)}", now=now, lifetime=LIFETIME)
        fresh = directory.with_name(f".{DIRECTORY}.new")
        try:
            with filelock.FileLock(directory.with_name(f".{DIRECTORY}.lock"), mode=0o600):
                if directory.exists():  # made by somebody else meanwhile
                    raise AuthorityExistsError(directory)
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir(mode=0o700)
                write_private(fresh / "ca.key", pair.key_pem(), durable=True)
                write_private(fresh / "ca.pem", pair.certificate.public_bytes(Encoding.PEM), durable=True)
                made = cls(fresh, pair, clock=clock)
                made._records.create()
                made.write_list()
                fresh.rename(directory)
                _sync(directory.parent)
        except (OSError, sqlite3.Error) as error:
            raise CertificateError(
                f"the certificate authority can't be made in {directory} ({error}): make room there,"
                " or choose another state directory"
            ) from error
        return cls(directory, pair, clock=clock)

    @classmethod
    def open(cls, state_dir: Path, *, clock: Clock = time.time) -> Authority:
        """The authority of a state directory.

        Raises AuthorityMissingError where there is none, StateError where it can't be read.
        """
        directory = state_dir.absolute() / DIRECTORY
        if not directory.exists():
            raise AuthorityMissingError(directory)
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
            key = load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("its key is of another kind")
            if key.public_key() != certificate.public_key():
                raise ValueError("its key belongs to another certificate")
        except (OSError, ValueError) as error:
            raise StateError(
                f"The certificate authority in {directory} can't be read ({error}). Restore it from a copy,"
                " or remove the directory and run `muster ca init`; devices then need new certificates."
            ) from error
        if certificate.not_valid_after_utc <= _utc(clock()):
            raise CertificateError(
                f"the certificate authority in {directory} has expired: remove the directory and run"
                " `muster ca init`; devices then need new certificates"
            )
        return cls(directory, KeyPair(certificate=certificate, key=key), clock=clock)

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def certificate_file(self) -> Path:
        """The file that devices, service and broker trust."""
        return self._directory / "ca.pem"

    @property
    def list_file(self) -> Path:
        """The file of what is revoked; `write_list` writes it."""
        return self._directory / "ca.crl"

    @property
    def name(self) -> str:
        return self._pair.certificate.subject.rfc4514_string()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in hexadecimal as OpenSSL shows it."""
        return self._pair.certificate.fingerprint(SHA256()).hex(":").upper()

    @property
    def expires_at(self) -> datetime:
        return self._pair.certificate.not_valid_after_utc

    def numbers(self) -> Numbers:
        """How many certificates of devices there were."""
        with self._explained():
            return self._records.numbers(now=int(self._clock()), besides=(SERVICE_NAME, _BROKER_NAME))

    # -- issuing --------------------------------------------------------------------------------------

    def issue(self, subjects: Sequence[str], *, days: int = DEFAULT_DAYS) -> list[Issued]:
        """Certificates for devices, or for `SERVICE_NAME`; on record, all or none, when this returns.

        Raises CertificateError for a name that no device can have, for a device that is revoked, and for days
        out of bounds.
        """
        for subject in subjects:
            if subject != SERVICE_NAME and not _DEVICE_ID.fullmatch(subject):
                raise CertificateError(
                    f"{subject!r} is no device id: 1 to 64 letters, digits, dots, underscores, hyphens,"
                    " the first a letter or digit"
                )
        if not 1 <= days <= MAX_DAYS:
            raise CertificateError(f"a certificate is good for 1 to {MAX_DAYS} days, not {days}")
        made = [self._issue(subject, lifetime=timedelta(days=days)) for subject in subjects]
        with self._explained():
            refused = self._records.add(map(self._record, made))
        if refused:
            raise CertificateError(
                f"{name_some(refused)} {'is' if len(refused) == 1 else 'are'} revoked:"
                f" `muster enrolment restore {refused[0]}` comes first"
            )
        return made

    def issue_into(self, directory: Path, device_ids: Sequence[str]) -> int:
        """See to it that ``directory`` has ``<device id>.pem`` for each; returns how many were issued.

        What is there stays while it is good for a month, and was not revoked. Devices that are revoked are
        left out.
        """
        with self._explained():
            until = self._records.valid_until(now=int(self._clock()))
            refused = self._records.refused()
        soon = self._clock() + _RENEW_BEFORE.total_seconds()
        needed = [
            device_id
            for device_id in device_ids
            if device_id not in refused
            and (until.get(device_id, 0) < soon or not (directory / f"{device_id}.pem").exists())
        ]
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for issued in self.issue(needed):
                write_private(directory / f"{issued.subject}.pem", issued.pem)
        except OSError as error:
            raise CertificateError(
                f"certificates can't be written to {directory} ({error.strerror}): make room there"
            ) from error
        return len(needed)

    def broker_file(self) -> Path:
        """The file with the local broker's key and certificate; made where there is none, or it ends soon."""
        path = self._directory / "broker.pem"
        with filelock.FileLock(self._directory / "broker.lock", mode=0o600):
            if not self._is_good(path):
                pair = issue(
                    self._pair,
                    kind="server",
                    name=_BROKER_NAME,
                    serial=x509.random_serial_number(),
                    now=_utc(self._clock()),
                    lifetime=timedelta(days=_BROKER_DAYS),
                    hosts=_LOCAL_HOSTS,
                )
                with self._explained():
                    self._records.add([self._record(_issued(_BROKER_NAME, pair))])
                    write_private(path, pair.to_pem(), durable=True)
        return path

    # -- revoking -------------------------------------------------------------------------------------

    def revoke(self, device_ids: Iterable[str]) -> list[str]:
        """Revoke all certificates of devices, for ever, and issue them no more; returns those that had one.

        The list is written anew; who has read the old one (a broker) is to read it again. After a crash in
        between the next `write_list` has them. `finish` those that are disconnected.
        """
        with self._explained():
            revoked = self._records.revoke(device_ids, at=int(self._clock()))
        self.write_list()
        return revoked

    def allow(self, device_ids: Iterable[str]) -> None:
        """Issue certificates to these devices again; those that were revoked stay so."""
        with self._explained():
            self._records.allow(device_ids)

    def refused(self) -> set[str]:
        """The devices that are revoked."""
        with self._explained():
            return self._records.refused()

    def refuse_exactly(self, device_ids: Collection[str]) -> list[str]:
        """Make ``device_ids`` those that are revoked, and no others.

        Returns those that may have a connection, as a crash or an end has left their revocation unfinished.
        """
        with self._explained():
            self._records.allow(self._records.refused().difference(device_ids))
        self.revoke(device_ids)
        with self._explained():
            return self._records.unfinished()

    def finish(self, device_ids: Iterable[str]) -> None:
        """These devices have no connection any more from before they were revoked."""
        with self._explained():
            self._records.finish(device_ids)

    def stand_in(self, device_id: str) -> bytes:
        """Key and certificate by which the service takes a device's place at a broker, for a moment.

        It is good for some minutes, on no record, and not revoked with the device's.
        """
        return self._issue(device_id, lifetime=_STAND_IN).pem

    def write_list(self) -> Path:
        """Write the list of what is revoked, in one step; returns its file."""
        now = int(self._clock())
        with self._explained(), filelock.FileLock(self._directory / "list.lock", mode=0o600):
            number, at = self._records.next_list(at=now - _LIST_BEFORE_S)
            revoked = [(serial, _utc(when)) for serial, when in self._records.revoked(now=now)]
            write_private(
                self.list_file,
                revocation_list(self._pair, revoked=revoked, number=number, this_update=_utc(at)),
                durable=True,
            )
        return self.list_file

    # -- the parts ------------------------------------------------------------------------------------

    def _issue(self, subject: str, *, lifetime: timedelta) -> Issued:
        pair = issue(
            self._pair,
            kind="client",
            name=subject,
            serial=x509.random_serial_number(),
            now=_utc(self._clock()),
            lifetime=lifetime,
        )
        return _issued(subject, pair)

    def _record(self, issued: Issued) -> IssuedRecord:
        return IssuedRecord(
            serial=issued.serial,
            subject=issued.subject,
            issued_at=int(self._clock()),
            expires_at=int(issued.expires_at.timestamp()),
        )

    def _is_good(self, path: Path) -> bool:
        """Whether a file has a certificate of ours that is good for a while."""
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._pair.certificate)
        except Exception:  # missing, of another authority, half a file of an earlier disk: made anew
            return False
        return certificate.not_valid_after_utc > _utc(self._clock()) + _RENEW_BEFORE

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise CertificateError(
                f"the certificate authority in {self._directory} can't write its records ({error}): make room"
                " there, or restore the directory from a copy"
            ) from error


def _issued(subject: str, pair: KeyPair) -> Issued:
    certificate = pair.certificate
    return Issued(
        subject=subject,
        serial=certificate.serial_number,
        expires_at=certificate.not_valid_after_utc,
        pem=pair.to_pem(),
    )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
