"""Enrolments: kept over restarts, told to the broker after the disk, checked before either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.identity import device_key
from provisioning.enrolment import store as store_module
from provisioning.enrolment.records import EnrolmentRefusedError, NotEnrolledError
from provisioning.enrolment.store import Enrolments
from provisioning.errors import CertificateError
from provisioning.registry import Registry

GROUP_KEY = b"g" * 32

# What a topic, a path or a reader would take for something else.
INJECTIONS = (
    "",
    "../dev-1",
    "dev/1",
    "dev+1",
    "+",
    "#",
    "dev#",
    "dev\0",
    "dev\n",
    "dev 1",
    "$service",
    ".dev",
    "-dev",
    "d\u0435v-1",  # Cyrillic
    "\uff44ev-1",  # fullwidth
    "dev\u22151",  # division slash
    "dev\u200b1",  # zero width
    "dev\u202e1",  # right to left
    "deV\u0301",  # combining
    "x" * 65,
)


class Gatekeeper:
    """A broker's accounts."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.told = 0

    async def set(self, keys: Mapping[str, str], *, revoked: Collection[str]) -> None:
        assert not set(keys).intersection(revoked)
        self.keys = dict(keys)
        self.told += 1

    async def admit(self, keys: Mapping[str, str]) -> None:
        self.keys.update(keys)
        self.told += 1

    async def dismiss(self, device_ids: Iterable[str]) -> None:
        for device_id in device_ids:
            self.keys.pop(device_id, None)
        self.told += 1


@asynccontextmanager
async def enrolments_in(directory: Path, access: Gatekeeper | None = None) -> AsyncIterator[Enrolments]:
    async with Registry(directory / "registry.db") as registry:
        enrolments = Enrolments(registry=registry, group_key=GROUP_KEY, access=access, clock=lambda: 1_000.0)
        await enrolments.open()
        if enrolments._telling is not None:
            await enrolments._telling
        yield enrolments
        await enrolments.close()


async def ids(enrolments: Enrolments, *, revoked: bool | None = None) -> list[str]:
    return [one.device_id for one in await enrolments.page(after=None, revoked=revoked, limit=100)]


async def test_who_is_enrolled_is_let_in_with_its_key_after_a_restart_too(tmp_path: Path) -> None:
    access = Gatekeeper()
    async with enrolments_in(tmp_path, access) as enrolments:
        assert await enrolments.enrol(["a", "b"], by="fleet-1") == 2
        assert await enrolments.enrol(["b", "c"]) == 1
        assert [(await enrolments.show(name)).by for name in "abc"] == ["fleet-1", "fleet-1", "operator"]
    assert access.keys == {name: device_key(GROUP_KEY, name) for name in "abc"}
    again = Gatekeeper()
    async with enrolments_in(tmp_path, again):
        assert again.keys == access.keys


async def test_a_start_that_can_t_tell_the_broker_tries_on_before_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Gatekeeper):
        failures = 2

        async def set(self, keys: Mapping[str, str], *, revoked: Collection[str]) -> None:
            if self.failures:
                self.failures -= 1
                raise CertificateError("no room for the list of what is revoked")
            await super().set(keys, revoked=revoked)

    monkeypatch.setattr(store_module, "_RETRY_S", 0.01)
    async with enrolments_in(tmp_path) as enrolments:
        await enrolments.enrol(["a"])
    async with Registry(tmp_path / "registry.db") as registry:
        enrolments = Enrolments(registry=registry, group_key=GROUP_KEY, access=(access := Full()))
        await enrolments.open()
        await enrolments.enrol(["b"])
        assert set(access.keys) == {"a", "b"}
        await enrolments.close()
    assert "no room" in caplog.text


async def test_who_is_revoked_is_out_until_it_is_restored(tmp_path: Path) -> None:
    access = Gatekeeper()
    async with enrolments_in(tmp_path, access) as enrolments:
        await enrolments.enrol(["a", "b"])
        assert await enrolments.revoke(["a"]) == ["a"]
        assert await enrolments.revoke(["a"]) == []
        assert (list(access.keys), enrolments.is_revoked("a")) == (["b"], True)
        # A fleet that is started again must not let it in.
        assert await enrolments.enrol(["a", "b"]) == 0
        assert list(access.keys) == ["b"]
        assert (await ids(enrolments, revoked=True), await ids(enrolments, revoked=False)) == (["a"], ["b"])
    again = Gatekeeper()
    async with enrolments_in(tmp_path, again) as enrolments:
        assert (list(again.keys), enrolments.is_revoked("a")) == (["b"], True)
        assert (await enrolments.show("a")).to_json()["state"] == "revoked"
        assert await enrolments.restore(["a", "b"]) == ["a"]
        assert (sorted(again.keys), enrolments.is_revoked("a")) == (["a", "b"], False)


async def test_a_device_of_an_open_broker_is_revoked_though_nobody_has_enrolled_it(tmp_path: Path) -> None:
    async with enrolments_in(tmp_path) as enrolments:
        assert await enrolments.revoke(["stranger"]) == ["stranger"]
        assert enrolments.is_revoked("stranger")
        assert await enrolments.remove(["stranger"]) == ["stranger"]
        assert not enrolments.is_revoked("stranger")


async def test_who_is_removed_is_known_no_more(tmp_path: Path) -> None:
    access = Gatekeeper()
    async with enrolments_in(tmp_path, access) as enrolments:
        await enrolments.enrol(["a", "b"])
        with pytest.raises(NotEnrolledError, match="Not enrolled: c"):
            await enrolments.remove(["a", "c"])
        assert await ids(enrolments) == ["a", "b"]
        await enrolments.remove(["a"])
        assert (await ids(enrolments), list(access.keys)) == (["b"], ["b"])
        with pytest.raises(NotEnrolledError):
            await enrolments.show("a")
        with pytest.raises(NotEnrolledError):
            await enrolments.restore(["a"])


@pytest.mark.parametrize("bad", INJECTIONS, ids=ascii)
async def test_an_id_that_could_be_something_else_changes_nothing(tmp_path: Path, bad: str) -> None:
    access = Gatekeeper()
    async with enrolments_in(tmp_path, access) as enrolments:
        told = access.told
        for change in (enrolments.enrol, enrolments.revoke, enrolments.restore, enrolments.remove):
            with pytest.raises(EnrolmentRefusedError, match="can't be a device"):
                await change(["fine", bad])
        assert (await ids(enrolments), access.told) == ([], told)


async def test_there_is_a_most_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_AT_ONCE", 2)
    monkeypatch.setattr(store_module, "MAX_ENROLMENTS", 3)
    async with enrolments_in(tmp_path) as enrolments:
        with pytest.raises(EnrolmentRefusedError, match="1 to 2 devices at once, not 3"):
            await enrolments.enrol(["a", "b", "c"])
        with pytest.raises(EnrolmentRefusedError, match="not 0"):
            await enrolments.enrol([])
        await enrolments.enrol(["a", "b"])
        with pytest.raises(EnrolmentRefusedError, match="3 is the most"):
            await enrolments.enrol(["c", "d"])
        assert await ids(enrolments) == ["a", "b"]


async def test_pages_go_on_after_an_id(tmp_path: Path) -> None:
    async with enrolments_in(tmp_path) as enrolments:
        await enrolments.enrol([f"d{n}" for n in range(5)])
        first = await enrolments.page(after=None, revoked=None, limit=3)
        rest = await enrolments.page(after=first[-1].device_id, revoked=None, limit=3)
        assert [one.device_id for one in first + rest] == [f"d{n}" for n in range(5)]
