"""The log-in of browsers: a page that needs nothing else, and says nothing of what is behind it.

| call | answer |
|---|---|
| GET / | the log-in, to a browser without a session |
| POST /login | begin a session: the form field `token`; 303 to `/` with its cookie |
| POST /logout | end the session |
| GET /api/session | what whoever asks may do |
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field
from starlette.types import Scope

from .sessions import SESSION_S

if TYPE_CHECKING:
    from .access import Access, Grant

LOGIN_PATH: Final = "/login"
LOGOUT_PATH: Final = "/logout"

_FILES: Final = Path(__file__).parent / "login_page"
_STYLE: Final = (_FILES / "style.css").read_text("utf-8")
_PAGE: Final = Template((_FILES / "index.html").read_text("utf-8"))
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
        f"frame-ancestors 'none'"
    ),
    # With no-referrer a browser would not say that the form is this page's.
    "Referrer-Policy": "same-origin",
    "WWW-Authenticate": "Bearer",
}


class SessionView(BaseModel):
    """What whoever asks may do."""

    access: Literal["full", "read"]
    by: Literal["loopback", "token", "session"] = Field(description="Why: where it is, or what it has shown.")
    ends_in_s: int | None = Field(description="Of a session: for how long it goes on.")


def cookie_name(scope: Scope) -> str:
    """A name for each port: cookies are a host's, and several services may be on one."""
    server = scope.get("server")
    return f"muster-session-{server[1] if server and server[1] else 0}"


def login_page(message: str | None = None, *, wait_s: int = 0) -> Response:
    """The log-in, with what was wrong; ``wait_s``: so long it is of no use."""
    said = "" if message is None else f'<p class="bad" role="alert">{escape(message)}</p>\n'
    status = HTTPStatus.TOO_MANY_REQUESTS if wait_s else HTTPStatus.UNAUTHORIZED
    headers = {**_HEADERS, **({"Retry-After": str(wait_s)} if wait_s else {})}
    return HTMLResponse(_PAGE.substitute(style=_STYLE, message=said), status_code=status, headers=headers)


def logged_in(name: str, value: str, *, secure: bool) -> Response:
    """The answer to a log-in: the page, with the session's cookie."""
    response = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
    response.set_cookie(
        name, value, max_age=SESSION_S, path="/", httponly=True, samesite="strict", secure=secure
    )
    return response


def session_routes(access: Access, grant_key: str) -> APIRouter:
    """The routes for who may ask already."""
    router = APIRouter(tags=["session"])

    @router.get("/api/session")
    async def session(request: Request) -> SessionView:
        """What whoever asks may do."""
        grant: Grant = request.scope[grant_key]
        left_s = None if grant.session is None else access.sessions.left_s(grant.session)
        return SessionView(access=grant.level, by=grant.by, ends_in_s=left_s)

    @router.post(LOGOUT_PATH, status_code=HTTPStatus.NO_CONTENT, response_class=Response)
    async def log_out(request: Request) -> Response:
        """End the session, if whoever asks has one."""
        grant: Grant = request.scope[grant_key]
        if grant.session is not None:
            access.sessions.end(grant.session)
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        response.delete_cookie(cookie_name(request.scope), path="/", httponly=True, samesite="strict")
        return response

    return router
