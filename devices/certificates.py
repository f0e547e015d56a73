"""The certificates that devices show to a broker that wants to see them: a file for each in one directory."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from broker.address import BrokerTlsError
from broker.tls import TlsFiles, load_certificate
from devices.errors import ConnectionLostError, FleetStartError


class DeviceTls:
    """TLS for the devices of one process, which trust the same authority.

    ``certificates`` is a directory with ``<device id>.pem``, key and certificate; None: devices show none.
    """

    def __init__(self, *, ca_file: Path | None = None, certificates: Path | None = None) -> None:
        """Raises `FleetStartError` where the authority's file can't be used."""
        try:
            self._context = TlsFiles(ca_file=ca_file).context()
        except BrokerTlsError as error:
            raise FleetStartError(str(error)) from error
        self._certificates = certificates

    def check(self, device_ids: Iterable[str]) -> None:
        """`FleetStartError` where none of the devices has a certificate.

        Single ones that have none, as those that were revoked, are just not let in.
        """
        directory = self._certificates
        device_ids = list(device_ids)
        if directory is None or not device_ids:
            return
        if not any((directory / f"{device_id}.pem").is_file() for device_id in device_ids):
            raise FleetStartError(
                f"there are no certificates of these devices in {directory}: make them, as with"
                f" `muster ca issue {device_ids[0]} --out {directory}`"
            )

    def context_for(self, device_id: str) -> ssl.SSLContext:
        """The context for the next connection of a device; raises `ConnectionLostError`.

        It is the same one for all, with this device's certificate from now on: connections that there are
        keep theirs.
        """
        if self._certificates is not None:
            try:
                load_certificate(self._context, self._certificates / f"{device_id}.pem")
            except BrokerTlsError as error:
                raise ConnectionLostError(str(error)) from error
        return self._context
