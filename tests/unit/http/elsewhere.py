"""An address of this machine that is not loopback."""

from __future__ import annotations

import socket

import psutil
import pytest

from provisioning.api_settings import is_loopback


def own_address() -> str:
    """An IPv4 address that others could reach; skips the test where this machine has none."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family is socket.AF_INET and not is_loopback(address.address):
                return str(address.address)
    pytest.skip("this machine has no other address than loopback: there is nothing to install for it")
