"""The HTTP API of releases: thin handlers over `store.Releases`.

| call | answer |
|---|---|
| POST /api/releases | add one, as multipart/form-data: 201, or 200 where the same is there |
| GET /api/releases, GET /api/releases/{name} | all, the latest first; one |
| DELETE /api/releases/{name} | remove one that no unfinished run or rollout brings |

The parts of a POST: `name`, `version`, `model` (for each), `configuration` (JSON), `notes`, and either the
file `firmware` or `generated_size_bytes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .records import MAX_FIRMWARE_BYTES, NewRelease, ReleaseError
from .store import Releases
from .uploads import FILE_FIELD, Form, read_form

Json = dict[str, Any]

PATH: Final = "/api/releases"
MAX_UPLOAD_BYTES: Final = MAX_FIRMWARE_BYTES + 1024 * 1024
"""Of the whole POST: the firmware, and what is said of it."""
_FIELDS: Final = ("name", "version", "model", "configuration", "notes", "generated_size_bytes")

_POST: Final[Json] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "version"],
                    "properties": {
                        "name": {"type": "string"},
                        "version": {"type": "string"},
                        "model": {"type": "array", "items": {"type": "string"}},
                        "configuration": {"type": "string", "description": "a JSON object; see docs"},
                        "notes": {"type": "string"},
                        "generated_size_bytes": {"type": "integer"},
                        FILE_FIELD: {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


def release_routes(releases: Callable[[], Releases]) -> APIRouter:
    """The routes, for the releases of a service that runs by the time of a call."""
    router = APIRouter(prefix=PATH)

    @router.post(
        "",
        status_code=HTTPStatus.CREATED,
        openapi_extra=_POST,
        responses={200: {"description": "The same is there."}},
    )
    async def add(request: Request) -> JSONResponse:
        """Add a release; the same once more changes nothing."""
        form = Form()
        try:
            await read_form(request.headers.get("content-type", ""), request.stream(), releases().stage, form)
            record, created = await releases().add(_new(form.fields), form.staged)
        finally:
            if form.staged is not None:
                await asyncio.to_thread(form.staged.discard)
        return JSONResponse(record.to_json(), status_code=HTTPStatus.CREATED if created else HTTPStatus.OK)

    @router.get("")
    async def listing() -> Json:
        """All releases, the latest first."""
        return {"releases": [record.to_json() for record in releases().all()]}

    @router.get("/{name}")
    async def show(name: str) -> Json:
        """One release."""
        return releases().show(name).to_json()

    @router.delete("/{name}")
    async def remove(name: str) -> Json:
        """Remove a release that no unfinished run or rollout brings."""
        return (await releases().remove(name)).to_json()

    return router


def _new(fields: Mapping[str, Sequence[str]]) -> NewRelease:
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise ReleaseError(
            unknown[0][:80], "there is no such part", f"send some of {', '.join(_FIELDS)} and {FILE_FIELD}"
        )

    def one(name: str) -> str | None:
        given = fields.get(name, ())
        if len(given) > 1:
            raise ReleaseError(name, "it is given twice", "send one")
        return given[0] if given else None

    return NewRelease.read(
        name=one("name"),
        version=one("version"),
        models=fields.get("model", ()),
        configuration=one("configuration"),
        notes=one("notes"),
        generated_size_bytes=one("generated_size_bytes"),
    )
