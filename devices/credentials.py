"""What a device logs in with: its id, and a token made with a key of its own (`broker.identity`).

The keys follow from a group key, which the fleet is given. Without one, devices use what the broker's URL
holds, which is the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from broker.address import BrokerAddress
from broker.identity import (
    DEFAULT_TOKEN_LIFETIME_S,
    GroupKeyError,
    device_key,
    expiry_of,
    make_token,
    read_group_key,
)
from devices.errors import FleetStartError


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Gives each device its user name and password."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    group_key: bytes | None = field(default=None, repr=False)
    token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S
    clock: Callable[[], float] = time.time

    @classmethod
    def of(
        cls,
        address: BrokerAddress,
        group_key_file: Path | None,
        *,
        token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
    ) -> Credentials:
        """From the broker's address and the file of a group key; `FleetStartError` names what is wrong."""
        try:
            key = None if group_key_file is None else read_group_key(group_key_file)
        except GroupKeyError as error:
            raise FleetStartError(str(error)) from error
        return cls(
            username=address.username,
            password=address.password,
            group_key=key,
            token_lifetime_s=token_lifetime_s,
        )

    def for_device(self, device_id: str, *, refusals: int = 0) -> tuple[str | None, str | None]:
        """User name and password of a device.

        ``refusals``: how often in a row it was refused. After an odd number it uses the token of the period
        before, as the broker's clock may be behind, or its list be about to be written.
        """
        if self.group_key is None:
            return self.username, self.password
        now = self.clock() - (refusals % 2) * self.token_lifetime_s
        expires_at = expiry_of(device_id, now=now, lifetime_s=self.token_lifetime_s)
        return device_id, make_token(device_key(self.group_key, device_id), device_id, expires_at)
