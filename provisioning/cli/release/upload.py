"""A release on its way to the service: multipart/form-data, its firmware read as it is sent."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class FirmwareFile:
    """A file that is open, with the size that it had."""

    file: BinaryIO
    size_bytes: int


class Upload:
    """The body of a POST; its length is known before it is read."""

    def __init__(
        self,
        fields: Sequence[tuple[str, str]],
        firmware: FirmwareFile | None,
        on_progress: Callable[[int], object] = lambda sent_bytes: None,
    ) -> None:
        """``on_progress`` is told how much of the firmware has been sent."""
        boundary = f"muster-{secrets.token_hex(16)}"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._firmware = firmware
        self._on_progress = on_progress
        head = [_part(boundary, f'name="{name}"', value.encode()) for name, value in fields]
        if firmware is not None:
            head.append(
                _part(boundary, 'name="firmware"; filename="firmware.bin"', b"").removesuffix(b"\r\n")
            )
        self._head = b"".join(head)
        self._tail = (b"\r\n" if firmware is not None else b"") + f"--{boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        """Of the whole body."""
        size_bytes = 0 if self._firmware is None else self._firmware.size_bytes
        return len(self._head) + size_bytes + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        if self._firmware is not None:
            left = self._firmware.size_bytes
            while left:
                chunk = self._firmware.file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise EOFError
                yield chunk
                left -= len(chunk)
                self._on_progress(self._firmware.size_bytes - left)
        yield self._tail


def _part(boundary: str, disposition: str, value: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + value + b"\r\n"
