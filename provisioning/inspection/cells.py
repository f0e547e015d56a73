"""A byte per device: what a picture of ten thousand needs, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Final

from provisioning.registry import Registry
from provisioning.states import FINAL, WORKING, DeviceState

from .devices import SQL

_ENDS: Final = (
    DeviceState.PROVISIONED,
    DeviceState.FAILED,
    DeviceState.TIMED_OUT,
    DeviceState.REJECTED,
    DeviceState.CANCELLED,
)
assert set(_ENDS) == FINAL
DEVICE_LEGEND: Final = tuple(str(state) for state in (DeviceState.NEW, *WORKING, *_ENDS))
ROLLOUT_LEGEND: Final = ("pending", *DEVICE_LEGEND[1:])
"""What the codes mean, in their order."""
# The statements say letters, since there is no aggregate of bytes.
_CODES: Final = bytes(max(letter - ord("a"), 0) & 0xFF for letter in range(256))


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The states of devices in order of id."""

    legend: tuple[str, ...]
    codes: bytes
    ids: str | None
    """A JSON list; None: not asked for."""

    @property
    def etag(self) -> str:
        """Another one whenever they are others: no device is ever taken away, so new ids are more codes."""
        kind = "cells" if self.ids is None else "ids"
        return f"{hashlib.blake2b(self.codes, digest_size=12).hexdigest()}-{len(self.codes)}-{kind}"

    def to_json(self) -> str:
        """As it is answered."""
        ids = "" if self.ids is None else f'"ids":{self.ids},'
        codes = base64.b64encode(self.codes).decode()
        return f'{{"states":{json.dumps(self.legend)},{ids}"codes":"{codes}","etag":{json.dumps(self.etag)}}}'


async def cells_of_devices(registry: Registry, *, with_ids: bool) -> Cells:
    """All devices."""
    return await _cells(registry, DEVICE_LEGEND, ("cells", "ids"), (), with_ids=with_ids)


async def cells_of_rollout(registry: Registry, rollout_id: str, *, with_ids: bool) -> Cells:
    """The devices of a rollout, as they are in it."""
    return await _cells(
        registry, ROLLOUT_LEGEND, ("cells_of_rollout", "ids_of_rollout"), (rollout_id,), with_ids=with_ids
    )


async def _cells(
    registry: Registry,
    legend: tuple[str, ...],
    names: tuple[str, str],
    arguments: tuple[str, ...],
    *,
    with_ids: bool,
) -> Cells:
    def work(database: sqlite3.Connection) -> tuple[str | None, str | None]:
        database.execute("BEGIN")  # both see the same devices
        try:
            codes = database.execute(SQL[names[0]], arguments).fetchone()[0]
            ids = database.execute(SQL[names[1]], arguments).fetchone()[0] if with_ids else None
        finally:
            database.execute("COMMIT")
        return codes, ids

    codes, ids = await registry.ask(work)
    return Cells(legend=legend, codes=(codes or "").encode("ascii").translate(_CODES), ids=ids)
