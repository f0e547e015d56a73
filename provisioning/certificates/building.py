"""Certificates and revocation lists as RFC 5280 wants them; no files, no clock.

All keys are on the curve P-256, which every TLS library has. Times are UTC, to the second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Kind = Literal["client", "server"]

# Clocks differ: what is issued now must be good on a machine that is a little behind.
CLOCK_SKEW: Final = timedelta(minutes=5)
_USAGE: Final = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
_NO_USAGE: Final = {
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "encipher_only": False,
    "decipher_only": False,
}


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and the key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def to_pem(self) -> bytes:
        """Key and certificate in one file, which all TLS libraries read."""
        return self.key_pem() + self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(*, name: str, now: datetime, lifetime: timedelta) -> KeyPair:
    """A new authority that signs itself; it can sign certificates and lists, and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    subject = _name(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        _builder(subject, subject, public, now=now, lifetime=lifetime, serial=x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_NO_USAGE),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, SHA256())
    )
    return KeyPair(certificate=certificate, key=key)


def issue(
    by: KeyPair,
    *,
    kind: Kind,
    name: str,
    serial: int,
    now: datetime,
    lifetime: timedelta,
    hosts: Iterable[str] = (),
) -> KeyPair:
    """A new key with a certificate for ``name``; ``hosts`` are the names and addresses of a server.

    It ends with its issuer at the latest.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    issuer = by.certificate
    lifetime = min(lifetime, issuer.not_valid_after_utc - now)
    builder = (
        _builder(_name(name), issuer.subject, public, now=now, lifetime=lifetime, serial=serial)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USAGE),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([_USAGE[kind]]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority_of(issuer), critical=False)
    )
    if names := [_host(host) for host in hosts]:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return KeyPair(certificate=builder.sign(by.key, SHA256()), key=key)


def revocation_list(
    by: KeyPair, *, revoked: Iterable[tuple[int, datetime]], number: int, this_update: datetime
) -> bytes:
    """The list, in PEM, of serial numbers and when each was revoked; good until its issuer ends.

    So no broker ever shuts everybody out because nobody was there to write the list anew.
    """
    issuer = by.certificate
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(this_update)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_of(issuer), critical=False)
    )
    for serial, at in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        )
    return builder.sign(by.key, SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    lifetime: timedelta,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority_of(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
