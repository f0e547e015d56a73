"""Who may ask, and what: decided before anything else is looked at, and before a body is read.

| who | may |
|---|---|
| has a token, in `Authorization: Bearer` or `x-functions-key` | what the token is for |
| has a session's cookie | the same, from pages of this origin |
| is on this machine, by socket and Host, and nobody's proxy, unless all need a token | everything |
| anybody else | log in; all else is the same 401, whatever it is that was asked for |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal
from urllib.parse import parse_qs

from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.api_tokens import Level, Token, Tokens

from .login import LOGIN_PATH, LOGOUT_PATH, cookie_name, logged_in, login_page
from .origin import is_foreign, is_loopback_name
from .peers import Buckets, Peer, peer_of
from .problems import PROBLEM_TYPE, problem
from .serving import ABORT
from .sessions import Session, Sessions

GRANT: Final = "muster.grant"
"""In a request's scope: its `Grant`."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
"""They change nothing."""

REQUESTS_PER_S: Final = 100.0
REQUEST_BURST: Final = 500
"""Of one peer elsewhere. The page asks for forty files at first, a command for page after page of devices."""
FAILURES_PER_S: Final = 1 / 6
FAILURE_BURST: Final = 20
"""Wrong tokens of one peer elsewhere; then it is not even looked at those that it shows."""
MAX_LOGIN_BYTES: Final = 4 * 1_024

_FORWARDED: Final = (b"forwarded", b"via", b"x-forwarded", b"x-real-ip")
"""How the names of headers begin that a proxy adds."""
_FORM_TYPES: Final = (b"text/plain", b"application/x-www-form-urlencoded")
"""What a form of any page can send without being asked whether it may; multipart is for firmware."""

_UNAUTHORISED: Final = JSONResponse(
    {
        "type": "about:blank",
        "title": HTTPStatus.UNAUTHORIZED.phrase,
        "status": HTTPStatus.UNAUTHORIZED,
        "detail": "A token is needed: send it as `Authorization: Bearer …`.",
    },
    status_code=HTTPStatus.UNAUTHORIZED,
    headers={"WWW-Authenticate": "Bearer"},
    media_type=PROBLEM_TYPE,
)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What one request may do, and why."""

    level: Level
    by: Literal["loopback", "token", "session"]
    key: bytes | None = None
    """Of the token as it was."""
    session: Session | None = None


class Access:
    """Who may ask one service."""

    def __init__(
        self, tokens: Tokens, *, token_needed: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sessions = Sessions(tokens, clock)
        self._tokens = tokens
        self._token_needed = token_needed
        self._requests = Buckets(rate_per_s=REQUESTS_PER_S, burst=REQUEST_BURST, clock=clock)
        self._failures = Buckets(rate_per_s=FAILURES_PER_S, burst=FAILURE_BURST, clock=clock)

    @classmethod
    def on_this_machine(cls) -> Access:
        """Who is on this machine may do everything, and nobody else anything."""
        return cls(Tokens(full=Token(), read=Token()), token_needed=False)

    async def decide(self, scope: Scope, receive: Receive) -> Grant | Response:
        """What the request may do, or the answer to it."""
        headers = _headers_of(scope)
        client = scope.get("client")
        peer = peer_of(client[0] if client else None)
        if not peer.loopback and (wait_s := self._requests.take(peer.key)):
            return _too_many(wait_s)
        if scope["path"] == LOGIN_PATH and scope["method"] == "POST":
            return await self._log_in(scope, headers, peer, receive)
        found = self._grant(scope, headers, peer)
        if found is None:
            wants_page = scope["path"] == "/" and b"text/html" in headers.get(b"accept", b"")
            return login_page() if wants_page and scope["method"] == "GET" else _UNAUTHORISED
        if isinstance(found, Response):
            return found
        return _refusal(found, scope, headers) or found

    def holds(self, grant: Grant) -> bool:
        """Whether it is still so: the token may be another one by now, the session over."""
        if grant.by == "session":
            assert grant.session is not None
            return self.sessions.holds(grant.session) and self._tokens.key_of(grant.level) == grant.key
        return grant.by == "loopback" or self._tokens.key_of(grant.level) == grant.key

    def _grant(self, scope: Scope, headers: Mapping[bytes, bytes], peer: Peer) -> Grant | Response | None:
        token = _token_in(headers)
        if token is not None:
            if not peer.loopback and (wait_s := self._failures.wait_s(peer.key)):
                return _too_many(wait_s)
            level = self._check(token, peer)
            if level is not None:
                return Grant(level=level, by="token", key=self._tokens.key_of(level))
        else:
            # Another service on this host can set a cookie of the same name, which may come first.
            found = map(self.sessions.find, _cookies(headers, cookie_name(scope)))
            session = next(filter(None, found), None)
            if session is not None:
                key = self._tokens.key_of(session.level)
                return Grant(level=session.level, by="session", key=key, session=session)
        near = peer.loopback and is_loopback_name(headers.get(b"host"))
        if self._token_needed or not near or any(name.startswith(_FORWARDED) for name in headers):
            return None
        return Grant(level="full", by="loopback")

    def _check(self, token: bytes, peer: Peer) -> Level | None:
        level = self._tokens.level_of(token)
        if level is None and not peer.loopback:
            self._failures.take(peer.key)
        return level

    async def _log_in(
        self, scope: Scope, headers: Mapping[bytes, bytes], peer: Peer, receive: Receive
    ) -> Response:
        # Only the form of the log-in itself: who is logged in by another page does not know as whom.
        form_type = headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded")
        if not form_type or is_foreign("POST", headers, cookies=True):
            return _UNAUTHORISED
        if not peer.loopback and (wait_s := self._failures.wait_s(peer.key)):
            return login_page(f"Too many wrong tokens. Try again in {wait_s} s.", wait_s=wait_s)
        try:
            body = await _body_of(receive)
        except asyncio.CancelledError:  # by the end of the service, of which nobody outside is told
            return _UNAUTHORISED
        level = self._check(_token_of_form(body or b""), peer)
        value = None if level is None else self.sessions.begin(level)
        if value is None:
            return login_page("That is no token of this service.")
        secure = scope.get("scheme") == "https" or headers.get(b"origin", b"").startswith(b"https://")
        return logged_in(cookie_name(scope), value, secure=secure)


class Guarded:
    """Lets pass what may be asked; a stream ends when what it was granted by does."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = await self._access.decide(scope, receive)
        if isinstance(found, Response):
            await found(scope, receive, send)
            return
        grant = found
        cut = scope.get("state", {}).get(ABORT)

        async def sending(message: Message) -> None:
            if message.get("more_body") and cut is not None and not self._access.holds(grant):
                cut()
            await send(message)

        await self._app({**scope, GRANT: grant}, receive, send if grant.by == "loopback" else sending)


def _refusal(grant: Grant, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
    method = scope["method"]
    if grant.by != "token":
        if is_foreign(method, headers, cookies=grant.by == "session"):
            whose = headers.get(b"origin", b"elsewhere").decode("latin-1")
            return problem(
                HTTPStatus.FORBIDDEN,
                "Forbidden origin",
                f"This API takes no calls from pages of {whose}.",
                scope=scope,
            )
        by_browser = b"origin" in headers or b"sec-fetch-site" in headers
        if by_browser and headers.get(b"content-type", b"").lower().startswith(_FORM_TYPES):
            return problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE.phrase,
                "A browser sends JSON here, with `Content-Type: application/json`, and no forms.",
                scope=scope,
            )
    if grant.level == "read" and method not in SAFE_METHODS and scope["path"] != LOGOUT_PATH:
        return problem(
            HTTPStatus.FORBIDDEN,
            "Read only",
            "The token that was sent may only read. What changes something needs the full one: "
            "`muster token show` prints it where the service runs.",
            scope=scope,
        )
    return None


def _headers_of(scope: Scope) -> dict[bytes, bytes]:
    """By name; several of one name are joined, by which two tokens are none."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        lowered = name.lower()
        joint = b"; " if lowered == b"cookie" else b", "
        found[lowered] = found[lowered] + joint + value if lowered in found else value
    return found


def _token_in(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The token that a request shows, be it one or not; None: it shows none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    # Of another scheme it is a proxy's, which wants to know who passes.
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-functions-key")


def _cookies(headers: Mapping[bytes, bytes], name: str) -> Iterator[str]:
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        key, equals, value = part.strip().partition("=")
        if equals and key == name:
            yield value


def _token_of_form(body: bytes) -> bytes:
    try:
        fields = parse_qs(body.decode("latin-1"), max_num_fields=8)
    except ValueError:
        return b""
    return fields.get("token", [""])[0].strip().encode("utf-8", "replace")


async def _body_of(receive: Receive) -> bytes | None:
    """The body, as it came; None where it is longer than a log-in."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if message["type"] != "http.request" or len(body) > MAX_LOGIN_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _too_many(wait_s: int) -> Response:
    return JSONResponse(
        {
            "type": "about:blank",
            "title": HTTPStatus.TOO_MANY_REQUESTS.phrase,
            "status": HTTPStatus.TOO_MANY_REQUESTS,
            "detail": f"Too many requests from this address. Try again in {wait_s} s.",
        },
        status_code=HTTPStatus.TOO_MANY_REQUESTS,
        headers={"Retry-After": str(wait_s)},
        media_type=PROBLEM_TYPE,
    )
