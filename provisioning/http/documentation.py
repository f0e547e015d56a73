"""The API's description: OpenAPI at `/openapi.json`, to be read at `/docs`, with nothing from elsewhere."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from .problems import PROBLEM_TYPE, Problem

SWAGGER_UI_VERSION: Final = "5.35.0"

_FILES: Final = Path(__file__).parent / "swagger_ui"
_SERVED: Final = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_PROBLEM: Final = {"schema": {"$ref": "#/components/schemas/Problem"}}
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Muster's HTTP API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Whatever is in the description: the page loads from, and talks to, this service alone.
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)

DESCRIPTION: Final = (
    "Devices, runs, fleets and rollouts; and Durable Functions' management API for the orchestrations behind "
    "them. Every error is a problem after RFC 9457. docs/HTTP-API.md says what holds for all calls, and what "
    "differs from Durable Functions."
)

Json = dict[str, Any]


def add_documentation(app: FastAPI) -> None:
    """Serve the description, and the viewer of it."""
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]  # FastAPI's own way

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> Response:
        if name not in _SERVED:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        headers = {"Cache-Control": "no-cache"}
        return FileResponse(_FILES / name, media_type=_SERVED[name], headers=headers)

    @app.get("/api/docs", include_in_schema=False)
    async def docs_once() -> Response:
        return RedirectResponse("/docs")

    @app.get("/api/openapi.json", include_in_schema=False)
    async def description_once() -> Response:
        return RedirectResponse("/openapi.json")


def _description(app: FastAPI) -> Json:
    """FastAPI's, with errors as they are: problems, for every call."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, calls in found["paths"].items():
        for method in _METHODS:
            if method in calls:
                calls[method].setdefault("tags", [_tag(path)])
                calls[method]["summary"] = _summary(calls[method])
                _describe_errors(calls[method]["responses"])
    app.openapi_schema = found
    return found


def _tag(path: str) -> str:
    """What a call is about, where it does not say: fleets, runs, …"""
    return next((part for part in path.split("/") if part not in ("", "api")), "")


def _summary(call: Json) -> str:
    """The first sentence about it, in the place of the function's name."""
    text = str(call.get("description") or call["summary"])
    return text.partition("\n")[0].rstrip(".")


def _describe_errors(responses: Json) -> None:
    responses.pop("422", None)
    for status, response in responses.items():
        if status[0] in "45":
            content = response.setdefault("content", {})
            if content.get("application/json") == _PROBLEM:
                del content["application/json"]
            content[PROBLEM_TYPE] = _PROBLEM
    for status, description in (("4XX", "The request can't be met."), ("5XX", "The service could not.")):
        responses[status] = {"description": description, "content": {PROBLEM_TYPE: _PROBLEM}}
