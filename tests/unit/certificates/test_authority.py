"""The certificate authority: what it makes is good by RFC 5280, and what it has revoked is known as that."""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.certificates import MAX_DAYS, SERVICE_NAME, Authority
from provisioning.errors import AuthorityExistsError, AuthorityMissingError, CertificateError, StateError

DAY_S = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERTIFICATE") :])


def revoked(authority: Authority) -> set[int]:
    parsed = x509.load_pem_x509_crl(authority.list_file.read_bytes())
    return {one.serial_number for one in parsed}


def test_the_authority_signs_certificates_and_no_further_authority(authority: Authority) -> None:
    made = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert timedelta(days=3_650) < authority.expires_at - datetime.now(UTC) < timedelta(days=3_660)


def test_a_device_s_certificate_names_it_and_is_for_clients(authority: Authority) -> None:
    (issued,) = authority.issue(["dev-00001"], days=30)
    made = certificate(issued.pem)
    (name,) = made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert name.value == "dev-00001"
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.serial_number.bit_length() > 100, "serial numbers must not be guessed"
    assert issued.expires_at - datetime.now(UTC) < timedelta(days=30)
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_file.read_bytes()))


def test_the_broker_s_certificate_is_for_this_machine(authority: Authority) -> None:
    made = certificate(authority.broker_file().read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_broker_s_certificate_is_renewed_before_it_ends(tmp_path: Path) -> None:
    now = time.time()
    first = Authority.create(tmp_path, clock=lambda: now).broker_file().read_bytes()
    assert Authority.open(tmp_path, clock=lambda: now + 300 * DAY_S).broker_file().read_bytes() == first
    later = Authority.open(tmp_path, clock=lambda: now + 340 * DAY_S).broker_file().read_bytes()
    assert certificate(later).not_valid_after_utc > certificate(first).not_valid_after_utc
    (tmp_path / "ca" / "broker.pem").write_bytes(later[:100])
    made = certificate(Authority.open(tmp_path).broker_file().read_bytes())
    assert made.not_valid_after_utc > certificate(first).not_valid_after_utc - timedelta(days=1)


def test_keys_are_their_owner_s_alone(tmp_path: Path, authority: Authority) -> None:
    authority.broker_file()
    authority.issue_into(tmp_path / "devices", ["a"])
    for path in (tmp_path / "ca", tmp_path / "devices"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ca.key", "broker.pem", "certificates.db", "a.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert "PRIVATE" not in repr(authority.issue(["a"]))


def test_a_second_authority_is_refused_and_the_first_stays(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(AuthorityExistsError, match="already"):
        Authority.create(tmp_path)
    assert Authority.open(tmp_path).fingerprint == authority.fingerprint


def test_what_a_crash_left_of_an_authority_is_no_authority(tmp_path: Path) -> None:
    half = tmp_path / ".ca.new"
    half.mkdir()
    (half / "ca.key").write_text("half")
    with pytest.raises(AuthorityMissingError, match="muster ca init"):
        Authority.open(tmp_path)
    Authority.create(tmp_path)
    assert Authority.open(tmp_path).numbers().issued == 0
    assert not half.exists()


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_a_damaged_authority_is_told_with_its_remedy(tmp_path: Path, authority: Authority, name: str) -> None:
    (tmp_path / "ca" / name).write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(StateError, match="muster ca init"):
        Authority.open(tmp_path)


def test_a_key_of_another_authority_is_found_out(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other")
    (other.directory / "ca.key").replace(authority.directory / "ca.key")
    with pytest.raises(StateError, match="belongs to another"):
        Authority.open(tmp_path)


def test_an_authority_that_has_expired_issues_nothing(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(CertificateError, match="has expired"):
        Authority.open(tmp_path, clock=lambda: time.time() + 3_700 * DAY_S)


@pytest.mark.parametrize(
    "name",
    ["", "../a", "a/b", "+", "#", "a+", "a\0b", "-a", "$service2", "dév", "\u0430", "a" * 65, "a\n", " a"],
)
def test_no_certificate_has_a_name_that_no_device_can_have(authority: Authority, name: str) -> None:
    with pytest.raises(CertificateError, match="no device id"):
        authority.issue(["good", name])
    assert authority.numbers().issued == 0, "all or none"


@pytest.mark.parametrize("days", [0, -1, MAX_DAYS + 1])
def test_days_have_bounds(authority: Authority, days: int) -> None:
    with pytest.raises(CertificateError, match=f"1 to {MAX_DAYS} days"):
        authority.issue(["a"], days=days)


def test_all_certificates_of_a_device_are_revoked_and_no_other_s(authority: Authority) -> None:
    first, second, other, service = authority.issue(["a", "a", "b", SERVICE_NAME])
    assert revoked(authority) == set()
    assert authority.revoke(["a", "c"]) == ["a"]
    assert revoked(authority) == {first.serial, second.serial}
    with pytest.raises(CertificateError, match="a is revoked: `muster enrolment restore a`"):
        authority.issue(["b", "a"])
    authority.allow(["a"])
    (restored,) = authority.issue(["a"])
    assert revoked(authority).isdisjoint({restored.serial, other.serial, service.serial})
    numbers = authority.numbers()
    assert (numbers.issued, numbers.valid, numbers.revoked, numbers.devices) == (4, 2, 2, 2)


def test_a_revocation_survives_a_crash_before_the_list_is_written(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    (issued,) = authority.issue(["a"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CertificateError, match="make room"):
            authority.revoke(["a"])
    assert revoked(authority) == set(), "the old list is there, whole"
    Authority.open(tmp_path).write_list()
    assert revoked(authority) == {issued.serial}


def test_each_list_is_newer_than_the_one_before(tmp_path: Path) -> None:
    # A broker that reads the new one keeps the old one too, and goes by the time in them.
    authority = Authority.create(tmp_path, clock=lambda: 2_000_000_000)
    lists = [x509.load_pem_x509_crl(authority.write_list().read_bytes()) for _ in range(3)]
    times = [one.last_update_utc for one in lists]
    assert times == sorted(set(times))
    assert times[-1] < datetime.fromtimestamp(2_000_000_000, UTC)
    assert all(one.next_update_utc == authority.expires_at for one in lists)


def test_expired_certificates_leave_the_list(tmp_path: Path) -> None:
    now = time.time()
    authority = Authority.create(tmp_path, clock=lambda: now)
    authority.issue(["a"], days=1)
    authority.revoke(["a"])
    Authority.open(tmp_path, clock=lambda: now + 2 * DAY_S).write_list()
    assert revoked(authority) == set()


def test_a_fleet_s_certificates_are_made_once_and_renewed(tmp_path: Path) -> None:
    now = time.time()
    directory = tmp_path / "devices"
    authority = Authority.create(tmp_path, clock=lambda: now)
    assert authority.issue_into(directory, ["a", "b"]) == 2
    assert authority.issue_into(directory, ["a", "b", "c"]) == 1
    later = Authority.open(tmp_path, clock=lambda: now + 70 * DAY_S)
    assert later.issue_into(directory, ["a"]) == 1
    assert certificate((directory / "a.pem").read_bytes()).not_valid_after_utc > datetime.fromtimestamp(
        now + 150 * DAY_S, UTC
    )


def test_a_device_whose_certificate_was_revoked_gets_another_where_it_is_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    directory = tmp_path / "devices"
    authority.issue_into(directory, ["a", "b"])
    authority.revoke(["a"])
    assert authority.issue_into(directory, ["a", "b"]) == 0, "not while it is revoked"
    authority.allow(["a"])
    assert authority.issue_into(directory, ["a", "b"]) == 1
    assert certificate((directory / "a.pem").read_bytes()).serial_number not in revoked(authority)


def test_a_start_makes_good_what_a_crash_has_left_undone(tmp_path: Path, authority: Authority) -> None:
    authority.issue(["a", "b"])
    authority.revoke(["a"])
    assert authority.refuse_exactly({"b", "c"}) == ["b"]
    assert authority.refuse_exactly({"b", "c"}) == ["b"], "it may not have been disconnected either"
    authority.finish(["b"])
    assert authority.refuse_exactly({"b", "c"}) == [], "who is known to be gone costs a start nothing"
    assert authority.issue(["a"]), "restored before the crash, and now told"
    with pytest.raises(CertificateError, match="revoked"):
        authority.issue(["b"])
