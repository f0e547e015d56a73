"""What a device logs in with: a name and a key of its own.

The key follows from a group key as Azure's Device Provisioning Service derives it for a group of devices:
``base64(HMAC-SHA256(group key, device id))``, the group key being base64 too. So a broker that knows the
group key can check any device, and no device knows another's. Without a group key devices use what the
broker's URL holds, which is the same for all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from broker.address import BrokerAddress
from devices.errors import FleetStartError


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Gives each device its user name and password."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    group_key: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, address: BrokerAddress, group_key_file: Path | None) -> Credentials:
        """From the broker's address and the file of a group key; `FleetStartError` names what is wrong."""
        key = None if group_key_file is None else read_group_key(group_key_file)
        return cls(username=address.username, password=address.password, group_key=key)

    def for_device(self, device_id: str) -> tuple[str | None, str | None]:
        """User name and password of a device."""
        if self.group_key is None:
            return self.username, self.password
        return device_id, device_key(self.group_key, device_id)


def device_key(group_key: bytes, device_id: str) -> str:
    """The key of one device, in base64."""
    return base64.b64encode(hmac.digest(group_key, device_id.encode(), hashlib.sha256)).decode()


def read_group_key(path: Path) -> bytes:
    """A group key from a file with its base64; raises `FleetStartError`."""
    try:
        text = path.read_text(encoding="ascii").strip()
        key = base64.b64decode(text, validate=True)
    except OSError as error:
        raise FleetStartError(
            f"the group key can't be read from {path}: {error.strerror}; give a file that holds it in base64"
        ) from error
    except (ValueError, binascii.Error):
        key = b""
    if not key:
        raise FleetStartError(f"{path} holds no group key: it must be base64, as in Azure's portal")
    return key
