"""Releases are added whole, found, kept as they are, and removed when nothing needs them."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest

from provisioning.errors import PackageError, StateError
from provisioning.packages import Release
from provisioning.registry import Registry
from provisioning.releases import firmware as firmware_module
from provisioning.releases import store as store_module
from provisioning.releases.firmware import FirmwareCache, FirmwareFiles, Staged
from provisioning.releases.records import (
    FirmwareTooLargeError,
    ReleaseError,
    ReleaseRefusedError,
    UnknownReleaseError,
)
from provisioning.states import DeviceState
from tests.unit.releases.making import DEFAULT, add, files_in, new, opened, registry_in, releases_in

SHA = hashlib.sha256(b"firmware").hexdigest()


async def test_a_release_is_there_after_a_restart_and_private(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        added, created = await add(releases, models=["m"], configuration='{"a": "{model}"}', notes="nice")
        assert created
        assert [one.name for one in releases.all()] == ["fw-2", "demo-1.0.0"]
    async with releases_in(tmp_path) as releases:
        assert releases.show("fw-2") == added
        assert (added.sha256, added.size_bytes, added.notes) == (SHA, 8, "nice")
        release = await releases.load(added)
        assert (release.version, release.models, release.firmware.content) == ("2.0", ("m",), b"firmware")
    assert files_in(tmp_path) == {f"{SHA}.bin"}
    assert stat.S_IMODE((tmp_path / "releases").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "releases" / f"{SHA}.bin").stat().st_mode) == 0o600


async def test_the_same_again_is_the_same_and_another_content_is_refused(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        first, _ = await add(releases, models=["a", "b"])
        again, created = await add(releases, models=["b", "a"])
        assert (again, created) == (first, False)
        for changes, named in (
            ({"models": ["a", "b"], "version": "2.1"}, "version"),
            ({"models": ["a"]}, "models"),
            ({"models": ["a", "b"], "notes": "x", "configuration": "{}"}, "configuration, notes"),
            ({"models": ["a", "b"], "firmware": b"other"}, "firmware"),
        ):
            with pytest.raises(ReleaseRefusedError) as caught:
                await add(releases, **changes)
            assert f"with other content ({named})" in str(caught.value)
            assert "muster release remove fw-2" in str(caught.value)
        assert releases.show("fw-2") == first
        with pytest.raises(ReleaseRefusedError, match="comes with the service"):
            await add(releases, "demo-1.0.0")
        assert files_in(tmp_path) == {f"{SHA}.bin"}


async def test_two_who_add_the_same_name_at_once_get_one_release(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        results: list[Any] = await asyncio.gather(
            *(add(releases, firmware=data) for data in (b"firmware", b"firmware", b"other")),
            return_exceptions=True,
        )
        assert sorted(str(type(one).__name__) for one in results) == ["ReleaseRefusedError", "tuple", "tuple"]
        assert sorted(one[1] for one in results if isinstance(one, tuple)) == [False, True]
        assert len(releases.all()) == 2


async def test_a_generated_firmware_follows_from_the_name(tmp_path: Path) -> None:
    size = 3 * 1024 * 1024 + 5
    async with releases_in(tmp_path) as releases:
        record, created = await releases.add(new("gen", generated_size_bytes=str(size)), None)
        assert (created, record.size_bytes) == (True, size)
        release = await releases.load(record)
    assert release.firmware.content == Release.demo("gen", size).firmware.content


async def test_a_release_needs_one_firmware(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        with pytest.raises(ReleaseError, match="firmware: it is missing; give a file"):
            await releases.add(new(), None)
        with pytest.raises(ReleaseError, match="firmware: it is empty"):
            await add(releases, firmware=b"")
        with pytest.raises(ReleaseError, match="give one of the two"):
            await add(releases, generated_size_bytes="5")
        assert files_in(tmp_path) == set()


async def test_a_firmware_is_bounded_while_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_module, "MAX_FIRMWARE_BYTES", 10)
    async with releases_in(tmp_path) as releases:
        with releases.stage() as staged:
            staged.write(b"x" * 10)
            with pytest.raises(FirmwareTooLargeError):
                staged.write(b"x")
        assert files_in(tmp_path) == set()


async def test_the_number_of_releases_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_RELEASES", 1)
    async with releases_in(tmp_path) as releases:
        await add(releases, "one")
        with pytest.raises(ReleaseRefusedError, match=r"limit: remove some first"):
            await add(releases, "two", firmware=b"2")
        assert files_in(tmp_path) == {f"{SHA}.bin"}


async def test_a_release_is_removed_with_its_firmware_unless_another_has_it_too(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        await add(releases, "one")
        await add(releases, "two")
        await releases.remove("one")
        assert files_in(tmp_path) == {f"{SHA}.bin"}
        with pytest.raises(UnknownReleaseError, match="muster release list"):
            await releases.remove("one")
        await releases.remove("two")
        assert files_in(tmp_path) == set()
        with pytest.raises(ReleaseRefusedError, match="can't be removed"):
            await releases.remove("demo-1.0.0")
        assert (await add(releases, "one", version="3"))[1]


async def test_what_a_run_brings_is_not_removed_before_it_has_ended(tmp_path: Path) -> None:
    async with registry_in(tmp_path) as registry, opened(registry, tmp_path) as releases:
        await add(releases)
        _register(registry, "d1")
        with releases.held("fw-2") as name:
            assert name == "fw-2"
            with pytest.raises(ReleaseRefusedError, match="is being started"):
                await releases.remove("fw-2")
            await registry.claim("run-1", None, options={}, limit=9, release=name)
        with pytest.raises(ReleaseRefusedError, match=r"run-1 brings the release fw-2.*wait for the end"):
            await releases.remove("fw-2")
        assert releases.resolve("fw-2") == "fw-2"
        await registry.end_run("run-1", status="completed", left_over=DeviceState.CANCELLED, reason="x")
        await releases.remove("fw-2")
        with pytest.raises(UnknownReleaseError), releases.held("fw-2"):
            pass


async def test_the_default_goes_by_its_name_too(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        assert releases.resolve(None) is None
        assert releases.resolve("demo-1.0.0") is None
        assert releases.show("demo-1.0.0").sha256 == DEFAULT.firmware.sha256
        with pytest.raises(UnknownReleaseError):
            releases.resolve("fw-9")


async def test_it_says_how_many_devices_of_a_run_a_release_does_not_fit(tmp_path: Path) -> None:
    async with registry_in(tmp_path) as registry, opened(registry, tmp_path) as releases:
        await add(releases, models=["m1"], configuration='{"a": "{tags.site}"}')
        await add(releases, "for-all")
        for name, model, tags in (
            ("fits", "m1", {"site": ""}),
            ("wrong-model", "m2", {"site": "x"}),
            ("no-tag", "m1", {"Site": "x"}),
            ("neither", "m2", {}),
        ):
            registry.register(name, model=model, firmware_version="1", tags=tags)
        await registry.claim("run-1", None, options={}, limit=9)
        assert await releases.not_fitting("fw-2", "run-1") == 3
        assert await releases.not_fitting("for-all", "run-1") == 0
        assert await releases.not_fitting(None, "run-1") == 0


async def test_what_a_crash_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    async with releases_in(tmp_path) as releases:
        await add(releases)
    left = (".staged-0123456789abcdef", f"{'a' * 64}.bin")
    for name in (*left, "README"):
        (tmp_path / "releases" / name).write_text("x")
    async with releases_in(tmp_path):
        assert files_in(tmp_path) == {f"{SHA}.bin", "README"}


async def test_a_lost_or_damaged_firmware_is_named_and_mended_by_adding_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "releases" / f"{SHA}.bin"
    async with releases_in(tmp_path) as releases:
        record, _ = await add(releases)
        path.write_bytes(b"firmwarf")
        with pytest.raises(PackageError, match=r"is damaged.*add its release anew"):
            await releases.load(record)
        path.unlink()
        with pytest.raises(PackageError, match=r"can't be read.*put it back"):
            await releases.load(record)
    async with releases_in(tmp_path) as releases:
        assert "the firmware of release fw-2 is gone" in caplog.text
        assert (await add(releases))[1] is False
        assert (await releases.load(record)).firmware.content == b"firmware"


async def test_a_directory_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "releases").touch()
    with pytest.raises(StateError, match=r"releases can't be used .*choose another state directory"):
        async with releases_in(tmp_path):
            pass


async def test_a_commit_that_fails_leaves_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry_in(tmp_path) as registry, opened(registry, tmp_path) as releases:

        async def failing(work: Any) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(registry, "transact", failing)
            with pytest.raises(OSError, match="disk full"):
                await add(releases)
            assert releases.find("fw-2") is None
        assert (await add(releases))[1]


async def test_whoever_is_cancelled_in_mid_commit_leaves_rows_and_memory_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    async with registry_in(tmp_path) as registry, opened(registry, tmp_path) as releases:
        transact = registry.transact

        async def slow(work: Any) -> Any:
            reached.set()
            await go_on.wait()
            return await transact(work)

        monkeypatch.setattr(registry, "transact", slow)
        adding = asyncio.create_task(add(releases))
        await reached.wait()
        adding.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert releases.find("fw-2") is not None
    async with releases_in(tmp_path) as again:
        assert again.find("fw-2") is not None
        assert files_in(tmp_path) == {f"{SHA}.bin"}


class TestCache:
    def files(self, directory: Path, *contents: bytes) -> tuple[FirmwareFiles, list[str]]:
        files = FirmwareFiles(directory)
        files.open(())
        names = []
        for content in contents:
            with files.stage() as staged:
                staged.write(content)
                files.keep(staged)
                names.append(staged.sha256)
        return files, names

    async def test_a_firmware_is_loaded_once_however_many_want_it(self, tmp_path: Path) -> None:
        files, (one,) = self.files(tmp_path, b"1" * 100)
        cache = FirmwareCache(files)
        found = await asyncio.gather(*(cache.get(one) for _ in range(50)))
        assert cache.loads == 1
        assert all(firmware is found[0] for firmware in found)

    async def test_those_used_last_are_kept_up_to_so_many_bytes(self, tmp_path: Path) -> None:
        files, (one, two, three) = self.files(tmp_path, b"1" * 100, b"2" * 100, b"3" * 100)
        cache = FirmwareCache(files, max_bytes=200)
        for name in (one, two, one, three, one):
            await cache.get(name)
        assert (cache.loads, cache.size_bytes) == (3, 200)
        await cache.get(two)
        assert cache.loads == 4

    async def test_the_last_one_is_kept_however_large_it_is(self, tmp_path: Path) -> None:
        files, (one, two) = self.files(tmp_path, b"1" * 100, b"2" * 100)
        cache = FirmwareCache(files, max_bytes=50)
        for name in (one, one, two):
            await cache.get(name)
        assert (cache.loads, cache.size_bytes) == (2, 100)

    async def test_who_gives_up_takes_it_from_nobody(self, tmp_path: Path) -> None:
        files, (one,) = self.files(tmp_path, b"1" * 100)
        cache = FirmwareCache(files)
        impatient, patient = (asyncio.create_task(cache.get(one)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).sha256 == one
        await cache.close()

    def test_a_staged_file_that_is_not_kept_is_gone(self, tmp_path: Path) -> None:
        path = tmp_path / "staged"
        with Staged(path) as staged:
            staged.write(b"x")
            assert path.exists()
        assert not path.exists()


def _register(registry: Registry, device_id: str) -> None:
    registry.register(device_id, model="m1", firmware_version="1", tags={})
