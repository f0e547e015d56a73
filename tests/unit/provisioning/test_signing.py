"""The keys that packages are signed with: made, replaced, retired, whole after each step of it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.private_files import write_private
from devices.errors import DownloadError
from devices.verify import Verifier
from provisioning import signing
from provisioning.errors import StateError
from provisioning.signing import MAX_TRUSTED_KEYS, KeyRefusedError, KeyRing, SigningKey, UnknownKeyError


def states(ring: KeyRing) -> list[str]:
    return [key["state"] for key in ring.to_json()]


def trusts(directory: Path, key: SigningKey) -> bool:
    """Whether devices that follow the file take what the key has signed."""
    try:
        Verifier.from_file(directory / "trusted.keys").verify_manifest(b"m", key.sign(b"m"), key.key_id)
    except DownloadError:
        return False
    return True


def pem(private: Ed25519PrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_the_first_start_makes_a_key_for_its_owner_only(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path)
    for name in ("signing.key", "trusted.keys"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert KeyRing.open(tmp_path).current.key_id == ring.current.key_id
    assert trusts(tmp_path, ring.current)
    assert "private" not in repr(ring.current) + str(ring.to_json())
    assert states(ring) == ["signs"]


def test_a_full_disk_keeps_no_service_from_starting_that_has_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes, *, durable: bool) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(signing, "write_private", full)
        with pytest.raises(StateError, match=r"signing\.key .*make room"):
            KeyRing.open(tmp_path)
    ring = KeyRing.open(tmp_path)
    monkeypatch.setattr(signing, "write_private", full)
    assert KeyRing.open(tmp_path).current.key_id == ring.current.key_id
    (tmp_path / "trusted.keys").unlink()
    with pytest.raises(StateError, match=r"trusted\.keys .*make room"):
        KeyRing.open(tmp_path)


def test_a_key_of_an_earlier_version_is_used_on(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    (tmp_path / "signing.key").write_bytes(pem(private))
    ring = KeyRing.open(tmp_path)
    assert ring.current.key_id == SigningKey.of(private).key_id
    assert ring.to_json()[0]["created_at"] is None
    assert (tmp_path / "signing.key").read_bytes() == pem(private)


async def test_a_new_key_signs_and_the_old_one_is_trusted_until_it_is_retired(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path)
    old = ring.current
    new = await ring.rotate()
    assert new["state"] == "signs"
    assert ring.current.key_id == new["key_id"] != old.key_id
    assert states(ring) == ["trusted", "signs"]
    assert trusts(tmp_path, old)
    assert trusts(tmp_path, ring.current)
    # Nothing can be signed by the old one any more.
    assert (tmp_path / "signing.key").read_bytes().count(b"PRIVATE KEY-----\n") == 2
    assert states(KeyRing.open(tmp_path)) == ["trusted", "signs"]

    retired = await ring.retire(old.key_id)
    assert await ring.retire(old.key_id) == retired
    assert retired["state"] == "retired"
    assert not trusts(tmp_path, old)
    assert trusts(tmp_path, ring.current)
    again = KeyRing.open(tmp_path)
    assert again.to_json() == ring.to_json()
    assert again.current.key_id == new["key_id"]
    assert not trusts(tmp_path, old)


async def test_a_key_that_is_prepared_is_trusted_before_it_signs(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path)
    old = ring.current
    prepared = await ring.prepare()
    assert await ring.prepare() == prepared
    assert states(ring) == ["signs", "next"]
    assert ring.current is old or ring.current.key_id == old.key_id
    assert prepared["public_key"] in (tmp_path / "trusted.keys").read_text().split()
    ring = KeyRing.open(tmp_path)
    assert (states(ring), ring.current.key_id) == (["signs", "next"], old.key_id)

    assert (await ring.rotate())["key_id"] == ring.current.key_id == prepared["key_id"]
    assert states(ring) == states(KeyRing.open(tmp_path)) == ["trusted", "signs"]

    # One that leaked before it signed.
    leaked = await ring.prepare()
    assert (await ring.retire(leaked["key_id"]))["state"] == "retired"
    assert states(KeyRing.open(tmp_path)) == ["trusted", "signs", "retired"]
    assert (tmp_path / "signing.key").read_bytes().count(b"BEGIN PRIVATE KEY") == 1
    await ring.rotate()
    assert states(ring) == states(KeyRing.open(tmp_path)) == ["trusted", "trusted", "retired", "signs"]


async def test_the_key_that_signs_and_one_that_is_none_are_not_retired(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path)
    with pytest.raises(KeyRefusedError, match="make another one first"):
        await ring.retire(ring.current.key_id)
    with pytest.raises(UnknownKeyError, match="muster key list"):
        await ring.retire("no-such-key")
    assert states(ring) == ["signs"]


async def test_there_is_an_end_to_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MAX_RETIRED_KEYS", 1)
    ring = KeyRing.open(tmp_path)
    first = ring.current.key_id
    for _ in range(MAX_TRUSTED_KEYS - 1):
        await ring.rotate()
    with pytest.raises(KeyRefusedError, match="retire some first"):
        await ring.rotate()
    await ring.retire(first)
    await ring.retire(ring.to_json()[1]["key_id"])
    assert first not in {key["key_id"] for key in KeyRing.open(tmp_path).to_json()}


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("retires", [False, True], ids=["rotate", "retire"])
async def test_a_full_disk_or_a_crash_at_any_step_leaves_keys_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, retires: bool
) -> None:
    ring = KeyRing.open(tmp_path)
    old = ring.current
    if retires:
        await ring.rotate()
    write, calls = write_private, 0

    def fails(path: Path, content: bytes, *, durable: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")
        write(path, content, durable=durable)

    monkeypatch.setattr(signing, "write_private", fails)
    with pytest.raises(KeyRefusedError, match="make room") as caught:
        await (ring.retire(old.key_id) if retires else ring.rotate())
    assert caught.value.status == 503
    # What signs is trusted, before the next start as after it.
    assert trusts(tmp_path, ring.current)
    monkeypatch.setattr(signing, "write_private", write)
    again = KeyRing.open(tmp_path)
    assert trusts(tmp_path, again.current)
    assert again.current.key_id == ring.current.key_id
    # And the same can be asked once more.
    await (ring.retire(old.key_id) if retires else ring.rotate())
    assert trusts(tmp_path, ring.current)
    assert trusts(tmp_path, old) is not retires


RSA = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
ONE, OTHER = (Ed25519PrivateKey.generate() for _ in range(2))


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: b"nonsense",
        lambda: pem(ONE)[:-20],
        lambda: RSA,
        lambda: b"Retired: 2026-01-01\n" + pem(ONE),
        lambda: pem(ONE) + b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        lambda: pem(ONE) + pem(OTHER)[:40],
    ],
    ids=["empty", "nonsense", "cut off", "RSA", "retired", "a public key last", "a part of another"],
)
def test_a_file_that_is_no_key_is_named_and_left_alone(tmp_path: Path, content: Callable[[], bytes]) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content())
    with pytest.raises(StateError, match=r"signing\.key"):
        KeyRing.open(tmp_path)
    assert path.read_bytes() == content()
