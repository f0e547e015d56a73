"""Pages of devices, by filters and in orders of their callers', and one device with its way."""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from broker.topics import instance_id_of
from provisioning.device_views import steps_of
from provisioning.engines import EngineClient
from provisioning.errors import RequestError, UnknownDeviceError, UnknownRunError
from provisioning.packages import blob_name_of
from provisioning.registry import DeviceRecord, Registry, statements
from provisioning.state_directory import iso
from provisioning.states import DeviceState

SQL: Final = statements(__package__, "statements.sql")
MAX_PAGE_BYTES: Final = 100_000
"""A page ends before it gets larger; one device it has at least."""
MAX_TAGS: Final = 10
MAX_OUTCOMES: Final = 20
"""Of one device."""

Sort = Literal[
    "device_id", "-device_id", "updated_at", "-updated_at", "state", "-state", "attempt", "-attempt"
]
SORTS: Final[tuple[Sort, ...]] = get_args(Sort)
_COLUMNS: Final = (
    "device_id, model, firmware_version, state, online, run_id, attempt, progress, updated_at, error"
)

Json = dict[str, Any]


class BadFilterError(RequestError):
    """What devices are asked for makes no sense."""

    status = 422
    title = "Invalid request"


@dataclass(frozen=True, kw_only=True)
class DeviceFilter:
    """Which devices are meant: those that fit all that is given. Raises BadFilterError."""

    states: Sequence[DeviceState] = ()
    """None given: any."""
    run_id: str | None = None
    """Which the latest run of the device is to be."""
    model: str | None = None
    tags: Sequence[str] = ()
    """Each as NAME=VALUE."""
    online: bool | None = None
    prefix: str | None = None
    """Of the id."""

    def conditions(self) -> tuple[list[str], Json]:
        """As SQL, and its parameters."""
        found: list[tuple[str, Json]] = []
        if self.states:
            states = json.dumps([str(state) for state in self.states])
            found.append(("state IN (SELECT value FROM json_each(:states))", {"states": states}))
        if self.run_id is not None:
            found.append(("run_id = :run_id", {"run_id": self.run_id}))
        if self.model is not None:
            found.append(("model = :model", {"model": self.model}))
        if self.online is not None:
            found.append(("online = :online", {"online": int(self.online)}))
        if self.prefix:
            # A range of the key, which LIKE would be no more.
            found.append(
                (
                    "device_id >= :prefix AND device_id < :prefix_end",
                    {"prefix": self.prefix, "prefix_end": self.prefix + "\U0010ffff"},
                )
            )
        for number, tag in enumerate(self.tags):
            name, value = _tag(tag)
            found.append(
                (
                    f"tags ->> :tag_{number} = :value_{number}",
                    {f"tag_{number}": f'$."{name}"', f"value_{number}": value},
                )
            )
        parameters: Json = {}
        for _, given in found:
            parameters |= given
        return [condition for condition, _ in found], parameters


def _tag(tag: str) -> tuple[str, str]:
    name, separator, value = tag.partition("=")
    if not (name and separator):
        raise BadFilterError(f"tag: {tag!r} is no NAME=VALUE.")
    if any(character in '"\\' or not character.isprintable() for character in name):
        raise BadFilterError(f"tag: no name may have quotes or backslashes: {name!r}.")
    return name, value


@dataclass(frozen=True, kw_only=True)
class _Order:
    """An order of devices, and where a page goes on in it: the cursor says after whom."""

    sort: Sort

    @property
    def column(self) -> str:
        return self.sort.lstrip("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def clause(self) -> str:
        way = " DESC" if self.descending else ""
        return f"{self.column}{way}" if self.column == "device_id" else f"{self.column}{way}, device_id"

    def after(self, cursor: str) -> tuple[str, Json]:
        beyond = "<" if self.descending else ">"
        if self.column == "device_id":
            return f"device_id {beyond} :after_id", {"after_id": cursor}
        key, device_id = self._read(cursor)
        return (
            f"({self.column} {beyond} :after_key OR ({self.column} = :after_key AND device_id > :after_id))",
            {"after_key": key, "after_id": device_id},
        )

    def cursor(self, key: Any, device_id: str) -> str:
        if self.column == "device_id":
            return device_id
        return base64.urlsafe_b64encode(json.dumps([self.sort, key, device_id]).encode()).decode()

    def _read(self, cursor: str) -> tuple[Any, str]:
        try:
            sort, key, device_id = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
            if sort != self.sort or not isinstance(key, str | int | float) or not isinstance(device_id, str):
                raise ValueError
        except (ValueError, TypeError, RecursionError, binascii.Error):
            raise BadFilterError(
                f"after: {cursor[:50]!r} is no place in this order; give the `next` of a page of "
                f"sort={self.sort}."
            ) from None
        return key, device_id


class Devices:
    """The devices of one registry. ``url_of_blob`` says where a blob is."""

    def __init__(
        self,
        *,
        registry: Registry,
        client: EngineClient,
        url_of_blob: Callable[[str], str],
        is_revoked: Callable[[str], bool],
    ) -> None:
        self._registry = registry
        self._client = client
        self._url_of_blob = url_of_blob
        self._is_revoked = is_revoked

    async def page(
        self, which: DeviceFilter, *, sort: Sort = "device_id", limit: int, after: str | None = None
    ) -> Json:
        """Up to ``limit`` devices, ``next`` (where there are more, after whom) and ``total`` (all that fit).

        Raises UnknownRunError and BadFilterError.
        """
        if which.run_id is not None and await self._registry.run(which.run_id) is None:
            raise UnknownRunError(which.run_id)
        order = _Order(sort=sort)
        conditions, parameters = which.conditions()
        all_of_them = _where(conditions)
        counted = dict(parameters)
        if after is not None:
            condition, given = order.after(after)
            conditions.append(condition)
            parameters |= given
        # Made of the fixed parts above; whatever callers give is a parameter.
        rows_sql = (
            f"SELECT {_COLUMNS}, {order.column} FROM devices{_where(conditions)}"  # noqa: S608
            f" ORDER BY {order.clause} LIMIT :limit"
        )
        count_sql = f"SELECT count(*) FROM devices{all_of_them}"  # noqa: S608

        def work(database: sqlite3.Connection) -> tuple[list[Any], int]:
            rows = database.execute(rows_sql, {**parameters, "limit": limit + 1}).fetchall()
            return rows, database.execute(count_sql, counted).fetchone()[0]

        rows, total = await self._registry.ask(work)
        page: list[Json] = []
        size = 0
        for row in rows[:limit]:
            device = _shown(row)
            size += len(json.dumps(device)) + 1
            if page and size > MAX_PAGE_BYTES:
                break
            page.append(device)
        more = len(rows) > len(page)
        last = rows[len(page) - 1] if page else None
        return {
            "devices": page,
            "next": order.cursor(last[-1], last[0]) if more and last is not None else None,
            "total": total,
        }

    async def one(self, device_id: str) -> Json:
        """One device with the steps of its latest run, and its latest outcomes; raises UnknownDeviceError."""
        device = await self._registry.device(device_id)
        if device is None:
            raise UnknownDeviceError([device_id])
        instance_id = None if device.run_id is None else instance_id_of(device.run_id, device_id)
        steps = await steps_of(self._client, instance_id)
        package = steps["package"]
        history = await self._registry.ask(
            lambda database: database.execute(SQL["history"], (device_id, MAX_OUTCOMES)).fetchall()
        )
        return {
            **_whole(device),
            "revoked": self._is_revoked(device_id),
            "tags": device.tags,
            "registered_at": iso(device.registered_at),
            "instance_id": instance_id,
            **steps,
            "package": None if package is None else self._package(device_id, package),
            "history": [
                {
                    "run_id": run_id,
                    "state": state,
                    "attempts": attempts,
                    "error": error,
                    "ended_at": iso(ended_at),
                    "device_s": device_s,
                }
                for run_id, state, attempts, error, ended_at, device_s in history
            ],
        }

    def _package(self, device_id: str, package: Mapping[str, Any]) -> Json:
        blob = self._url_of_blob(blob_name_of(package["release"], device_id))
        return {
            "id": package["package_id"],
            "release": package["release"],
            "size_bytes": package["size_bytes"],
            "sha256": package["sha256"],
            "url": f"{blob}?sig=***",
        }


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _shown(row: Sequence[Any]) -> Json:
    return {
        "device_id": row[0],
        "model": row[1],
        "firmware_version": row[2],
        "state": row[3],
        "online": bool(row[4]),
        "run_id": row[5],
        "attempt": row[6],
        "progress": row[7],
        "updated_at": iso(row[8]),
        "error": row[9],
    }


def _whole(device: DeviceRecord) -> Json:
    return _shown(
        (
            device.device_id,
            device.model,
            device.firmware_version,
            device.state.value,
            device.online,
            device.run_id,
            device.attempt,
            device.progress,
            device.updated_at,
            device.error,
        )
    )
