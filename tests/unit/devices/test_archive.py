"""An archive is followed as it comes, whatever comes: only one that every reader sees alike is taken."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.archive import MAX_ENTRIES, MAX_MANIFEST_BYTES, Archive, ArchiveReader, File
from devices.behaviours import Refusal
from provisioning.releases.archive import Entry, directory
from provisioning.signing import SigningKey
from tests.integration.devices.fake_service import package_of

KEY = SigningKey.of(Ed25519PrivateKey.from_private_bytes(bytes(32)))
PACKAGE = package_of("dev-1", b"PK\3\4 manifest.json" * 100, KEY).content
FILES = (("firmware.bin", b"firmware"), ("manifest.json", b"{}"), ("manifest.sig", b"s" * 64))


def read(content: bytes, size: int = 1 << 20) -> Archive:
    reader = ArchiveReader()
    for start in range(0, len(content), size):
        reader.feed(content[start : start + size])
        kept = len(reader._buffer) + sum(map(len, reader.kept.values()))
        assert kept <= MAX_MANIFEST_BYTES + 4096
    return Archive.of(reader)


def refused(content: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        read(content)
    return caught.value.reason


def archive(files: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """By the standard library, as others make them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in files:
            made.writestr(name, content)
    return buffer.getvalue()


def parts(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """The entries and the directory of an archive as the service makes them."""
    entries = [Entry.of(name, content) for name, content in files]
    contents = b"".join(entry.header() + content for entry, (_, content) in zip(entries, files, strict=True))
    return contents, directory(entries)


@pytest.mark.parametrize("size", [1, 2, 7, 29, 30, 31, 64, 1000, 100_000])
def test_all_is_found_however_it_comes(size: int) -> None:
    found = read(PACKAGE, size)
    with zipfile.ZipFile(io.BytesIO(PACKAGE)) as made:
        assert (found.manifest, found.signature) == (made.read("manifest.json"), made.read("manifest.sig"))
        assert found.files == {
            name: File(size_bytes=len(made.read(name)), sha256=hashlib.sha256(made.read(name)).hexdigest())
            for name in ("firmware.bin", "config.json")
        }


def test_those_of_others_are_read_and_empty_files_too() -> None:
    assert read(archive(FILES)).manifest == b"{}"
    empty = read(archive([("a", b""), ("manifest.json", b""), ("b", b"")]), 1)
    assert empty.manifest == b""
    assert {name: file.size_bytes for name, file in empty.files.items()} == {"a": 0, "b": 0}


BODY, DIRECTORY = parts(FILES)
TWICE, TWICE_LISTED = parts([*FILES, ("manifest.json", b'{"models": []}')])
HIDDEN, _ = parts([*FILES, ("hidden", b"x")])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "bad-archive"),
        (b"no archive, but long enough to be one", "bad-archive"),
        (archive([]), "bad-archive"),
        (BODY, "bad-archive"),
        ((BODY + DIRECTORY)[:-1], "bad-archive"),
        (PACKAGE[:200], "bad-archive"),
        (BODY + DIRECTORY + b"\0", "bad-archive"),
        (b"\0" + BODY + DIRECTORY, "bad-archive"),
        (BODY + DIRECTORY + archive(FILES), "bad-archive"),
        (TWICE + TWICE_LISTED, "bad-archive"),
        (HIDDEN + DIRECTORY, "bad-archive"),
        (BODY + DIRECTORY.replace(b"firmware.bin", b"firmwarf.bin"), "bad-archive"),
        (archive(FILES, zipfile.ZIP_DEFLATED), "bad-archive"),
        (archive([("n" * 65, b"")]), "bad-archive"),
        (archive([(str(n), b"") for n in range(MAX_ENTRIES + 1)]), "bad-archive"),
        # It says that four gigabytes follow.
        (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, 1, 0) + b"f",
            "bad-archive",
        ),
        (archive([("manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))]), "bad-manifest"),
        (archive([("manifest.sig", b" " * 65)]), "bad-manifest"),
    ],
    ids=[
        *("nothing", "no archive", "empty", "no directory", "cut off", "cut off early", "more after it"),
        *("more before it", "two archives", "a manifest twice", "not in the directory", "otherwise listed"),
        *("compressed", "a long name", "many entries", "a huge size", "a huge manifest", "a long signature"),
    ],
)
def test_what_readers_may_see_differently_is_refused(content: bytes, reason: str) -> None:
    assert refused(content) == reason


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_make_it_stumble(content: bytes, size: int) -> None:
    for given_bytes in (content, b"PK\3\4" + content, BODY + content):
        with pytest.raises(Refusal):
            read(given_bytes, size)


@settings(deadline=None)
@given(st.data())
def test_no_flipped_byte_goes_unnoticed(data: st.DataObject) -> None:
    """Either it is refused, or other files are found; but for what says nothing of them: times, versions."""
    at = data.draw(st.integers(0, len(PACKAGE) - 1))
    damaged = bytearray(PACKAGE)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(damaged), data.draw(st.integers(1, 5000)))
    except Refusal:
        return
    if found == read(PACKAGE):
        with (
            zipfile.ZipFile(io.BytesIO(bytes(damaged))) as made,
            zipfile.ZipFile(io.BytesIO(PACKAGE)) as whole,
        ):
            assert made.namelist() == whole.namelist()
