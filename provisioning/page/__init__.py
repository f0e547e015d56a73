"""The page that the service serves at `/`: static files, read once, with nothing from elsewhere.

There is no build: what is in `static/` is what a browser gets. `static/vendor/README.md` says what is from
others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FILES: Final = Path(__file__).parent / "static"
_INDEX: Final = "index.html"
_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Files of other kinds are not served."""

# Whatever a device calls itself: nothing runs or is drawn that is not one of these files, and the page talks
# to this service alone.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for each time, and answered with a 304: another version of the service is another page at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_routes() -> APIRouter:
    """The routes of the page: `/`, and the files that it is made of below `/page/`."""
    router = APIRouter(include_in_schema=False)
    files = _read(_FILES)

    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(request, files[_INDEX])

    @router.get("/page/{path:path}")
    async def file(request: Request, path: str) -> Response:
        if path not in files or path == _INDEX:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _answer(request, files[path])

    return router


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _read(folder: Path) -> Mapping[str, _File]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = _File(
                content=content,
                media_type=_TYPES[path.suffix],
                etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            )
    return found
