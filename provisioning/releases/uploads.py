"""multipart/form-data from the wire to the disk: texts in memory, within bounds, and one file into place.

Starlette's own parser writes a file to a temporary directory first, whatever its size, and has no bound for
it. What is wrong is said when all has been read, since a client that is cut off while it sends hears no
answer; how much there is to be read is bounded by the request's Content-Length, which `api` has looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from provisioning.errors import RequestError

from .firmware import Staged
from .records import ReleaseError

MAX_FIELD_BYTES: Final = 64 * 1024
MAX_PARTS: Final = 200
MAX_HEADER_BYTES: Final = 2 * 1024
_WRITE_BYTES: Final = 1024 * 1024

FILE_FIELD: Final = "firmware"


@dataclass(kw_only=True)
class Form:
    """What was sent: texts by their names, in order, and the file where there was one."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    staged: Staged | None = None


class _Reader:
    """The parser's callbacks: they keep what has come, and never raise."""

    def __init__(self) -> None:
        self.fields: dict[str, list[bytearray]] = {}
        self.file = bytearray()
        self.has_file = False
        self.ended = False
        self.error: Exception | None = None
        self._parts = 0
        self._name = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._into: bytearray | None = None

    def callbacks(self) -> Mapping[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._keep(self._name, data[start:end]),
            "on_header_value": lambda data, start, end: self._keep(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _keep(self, into: bytearray, data: bytes) -> None:
        if len(into) + len(data) > MAX_HEADER_BYTES:
            self.fail("body", "a part of it has too long a header", "send shorter names")
        else:
            into += data

    def fail(self, name: str, problem: str, remedy: str) -> None:
        """The first mistake is the one that is told."""
        self.error = self.error or ReleaseError(name, problem, remedy)

    def _begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        self._into = None
        if self._parts > MAX_PARTS:
            self.fail("body", "it has too many parts", f"send at most {MAX_PARTS}")

    def _end_header(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            self.fail("body", "a part of it has no name", "name each part in its Content-Disposition")
        elif name == FILE_FIELD:
            if self.has_file:
                self.fail(name, "it is given twice", "send one")
            else:
                self.has_file = True
                self._into = self.file
        elif b"filename" in options:
            self.fail(name[:80], "it is a file, and should be a text", f"only {FILE_FIELD} is a file")
        elif self._parts <= MAX_PARTS:
            self._into = bytearray()
            self.fields.setdefault(name, []).append(self._into)

    def _data(self, data: bytes, start: int, end: int) -> None:
        into = self._into
        if into is None or self.error is not None:
            return
        if into is not self.file and len(into) + end - start > MAX_FIELD_BYTES:
            self.fail("body", "a text in it is too long", f"send at most {MAX_FIELD_BYTES:,} bytes of each")
            return
        into += memoryview(data)[start:end]

    def _end(self) -> None:
        self.ended = True


async def read_form(
    content_type: str, body: AsyncIterator[bytes], stage: Callable[[], Staged], form: Form
) -> None:
    """Read all of ``body`` into ``form``; its file is staged as soon as something of it has come.

    Raises ReleaseError, FirmwareTooLargeError and UnavailableError. Whoever gave the form owns its file, in
    any case.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ReleaseError(
            "body", "it is no multipart/form-data", "send one, as `curl -F name=… -F firmware=@FILE` does"
        )
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]  # a TypedDict of its own
    except FormParserError as error:
        raise ReleaseError("body", f"its boundary can't be used ({error})", "choose a shorter one") from error
    async for chunk in body:
        if reader.error is None:
            try:
                parser.write(chunk)
            except FormParserError as error:
                reader.fail("body", f"it is no multipart/form-data ({error})", "send one that is whole")
        if reader.has_file and form.staged is None and reader.error is None:
            try:
                form.staged = await asyncio.to_thread(stage)
            except RequestError as error:
                reader.error = error
        if len(reader.file) >= _WRITE_BYTES:
            await _write(reader, form)
    await _write(reader, form)
    if not reader.ended:
        reader.fail("body", "it ends before its time", "send one that is whole")
    if reader.error is not None:
        raise reader.error
    for name, values in reader.fields.items():
        try:
            form.fields[name] = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise ReleaseError(name[:80], "it is no UTF-8 text", "send it as UTF-8") from error


async def _write(reader: _Reader, form: Form) -> None:
    data, reader.file[:] = bytes(reader.file), b""
    if form.staged is not None and reader.error is None:
        try:
            await asyncio.to_thread(form.staged.write, data)
        except RequestError as error:  # too large, or no room
            reader.error = error
