"""A broker's accounts: written whole, together, again after a failure, and anew when a period ends."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.identity import device_key
from broker.local import access as access_module
from broker.local.access import AccessControl
from broker.local.mosquitto import MosquittoFiles

KEYS = {f"dev-{n}": device_key(b"k" * 32, f"dev-{n}") for n in range(50)}


class Files:
    """What a broker reads, and how often it was written."""

    def __init__(self) -> None:
        self.written: list[dict[str, str]] = []
        self.reloads = 0
        self.failures = 0

    def prepare(self, service_password: str) -> None:
        pass

    def write(self, service_password: str, keys: Mapping[str, str], *, now: float) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        self.written.append(dict(keys))

    def stale(self, now: float) -> bool:
        return False

    def reload(self) -> None:
        self.reloads += 1


async def test_changes_that_come_together_are_written_together() -> None:
    files, access = Files(), AccessControl()
    access.prepare(files)
    async with access:
        access.start(files.reload)
        await asyncio.gather(*(access.admit({name: key}) for name, key in KEYS.items()))
        assert files.written[-1] == KEYS
        assert len(files.written) <= 3
        assert files.reloads == len(files.written)
        await access.admit({"dev-0": KEYS["dev-0"]})
        await access.dismiss(["nobody"])
        assert len(files.written) <= 3


async def test_a_change_is_done_when_it_is_written_whatever_comes_in_between(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_module, "_RETRY_S", 0.0)
    files, access = Files(), AccessControl()
    access.prepare(files)
    files.failures = 2
    async with access:
        access.start(files.reload)
        await access.set({"a": "x"})
        assert files.written == [{"a": "x"}]
        assert "No space left on device" in caplog.text


async def test_the_broker_is_not_told_while_the_service_is_away() -> None:
    files, access = Files(), AccessControl()
    access.prepare(files)
    there = False
    access.service_connected = lambda: there
    async with access:
        access.start(files.reload)
        change = asyncio.create_task(access.set({"a": "x"}))
        while not files.written:  # noqa: ASYNC110 - the files tell nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (files.reloads, change.done()) == (0, False)
        there = True
        await change
        assert files.reloads == 1


def test_the_services_password_is_kept_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "broker.password"

    def password() -> str:
        access = AccessControl(password_file=path)
        access.prepare(Files())
        return access.password

    first = password()
    assert (password(), stat.S_IMODE(path.stat().st_mode)) == (first, 0o600)
    path.write_text("cut o")
    assert password() not in (first, "cut o")
    assert password() == password()


async def test_who_waits_at_the_end_waits_no_longer() -> None:
    files, access = Files(), AccessControl()
    access.prepare(files)
    access.start(files.reload)
    waiting = asyncio.create_task(access.set({"a": "x"}))
    await asyncio.sleep(0)
    await access.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_mosquittos_files_are_private_and_hold_no_password(tmp_path: Path) -> None:
    files = MosquittoFiles(tmp_path, token_lifetime_s=100)
    files.prepare("hush")
    files.write("hush", KEYS, now=1_000.0)
    for path in (files.passwords, files.rights):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = files.passwords.read_text()
    assert len(text.splitlines()) == 1 + len(KEYS)
    assert "hush" not in text
    assert "SharedAccessSignature" not in text


def test_a_line_is_written_anew_when_its_period_ends_and_not_before(tmp_path: Path) -> None:
    files = MosquittoFiles(tmp_path, token_lifetime_s=100)
    files.write("hush", KEYS, now=1_000.0)

    def lines() -> dict[str, str]:
        pairs = (line.split(":") for line in files.passwords.read_text().splitlines())
        return {name: rest for name, rest in pairs if name in KEYS}

    before, changed = lines(), set()
    for now in range(1_000, 1_101):
        stale = files.stale(now)
        files.write("hush", KEYS, now=now)
        after = lines()
        assert stale == (after != before)
        changed |= {name for name in KEYS if after[name] != before[name]}
        before = after
    assert changed == set(KEYS)


def test_the_devices_are_still_there_when_the_broker_starts_again(tmp_path: Path) -> None:
    files = MosquittoFiles(tmp_path, token_lifetime_s=100)
    files.write("hush", KEYS, now=1_000.0)
    before = files.passwords.read_text().splitlines()
    again = MosquittoFiles(tmp_path, token_lifetime_s=100)
    again.prepare("another")
    after = again.passwords.read_text().splitlines()
    assert after[1:] == before[1:]
    assert after[0] != before[0]


def test_passwords_are_written_anew_when_the_clock_was_set_back(tmp_path: Path) -> None:
    files = MosquittoFiles(tmp_path, token_lifetime_s=60)
    files.write("service", KEYS, now=1_000_000.0)
    assert not files.stale(1_000_000.0)
    assert files.stale(1_000_000.0 - 86_400)
