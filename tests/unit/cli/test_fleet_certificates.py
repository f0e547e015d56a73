"""Where the certificates of fleets' devices are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from provisioning.certificates import Authority
from provisioning.cli.fleet_certificates import FleetCertificates
from provisioning.errors import AuthorityMissingError

DAY_S = 86_400.0


def test_there_are_none_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(AuthorityMissingError, match="muster ca init"):
        FleetCertificates.of(tmp_path)


def test_each_device_has_one_while_its_fleet_is_there(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    authority.revoke(["c"])
    certificates = FleetCertificates.of(tmp_path)
    certificates.provide(["a", "b", "c"])
    assert {path.name for path in certificates.directory.iterdir()} == {"a.pem", "b.pem"}
    first = (certificates.directory / "a.pem").read_bytes()
    certificates.provide(["a", "b"])
    assert (certificates.directory / "a.pem").read_bytes() == first
    certificates.remove(["a", "b", "c"])
    assert not list(certificates.directory.iterdir())


def test_they_are_made_anew_before_they_expire(tmp_path: Path) -> None:
    past = time.time() - 70 * DAY_S
    old = FleetCertificates(
        authority=Authority.create(tmp_path, clock=lambda: past),
        directory=tmp_path / "fleets" / "certificates",
    )
    old.provide(["a"])
    first = (old.directory / "a.pem").read_bytes()
    FleetCertificates.of(tmp_path).provide(["a"])
    assert (old.directory / "a.pem").read_bytes() != first


def test_the_broker_s_files_are_there_when_it_starts(tmp_path: Path) -> None:
    Authority.create(tmp_path)
    files = FleetCertificates.of(tmp_path).for_broker()
    assert all(path.is_file() for path in (files.ca_file, files.certificate_file, files.revoked_file))
