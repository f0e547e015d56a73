"""The certificates of fleets' devices: ``<state>/fleets/certificates/<device id>.pem``, mode 0600.

No two fleets have a device of the same id, so one directory serves all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.local import TlsFilesOfBroker
from provisioning.certificates import Authority


@dataclass(frozen=True, kw_only=True)
class FleetCertificates:
    """Who issues them, and where they are."""

    authority: Authority
    directory: Path
    devices: set[str] = field(default_factory=set)
    """Those of fleets: also those that have no certificate, since they are revoked."""

    @classmethod
    def of(cls, state_dir: Path) -> FleetCertificates:
        """For the state directory; CertificateError where it has no authority, or none of use."""
        directory = state_dir.absolute() / "fleets" / "certificates"
        return cls(authority=Authority.open(state_dir), directory=directory)

    def for_broker(self) -> TlsFilesOfBroker:
        """The files of the local broker's listener, written anew where that is due."""
        return TlsFilesOfBroker(
            ca_file=self.authority.certificate_file,
            certificate_file=self.authority.broker_file(),
            revoked_file=self.authority.write_list(),
        )

    def provide(self, device_ids: Sequence[str]) -> None:
        """See to it that each device has one that is good for a while; those that are revoked get none."""
        self.devices.update(device_ids)
        self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.authority.issue_into(self.directory, device_ids)

    def remove(self, device_ids: Iterable[str]) -> None:
        """Remove the keys of devices that are no more."""
        for device_id in device_ids:
            self.devices.discard(device_id)
            (self.directory / f"{device_id}.pem").unlink(missing_ok=True)
