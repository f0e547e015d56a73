"""From which page of which site a browser asks, and by which name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from provisioning.api_settings import LOOPBACK_NAMES

_LOOPBACK_AUTHORITY: Final = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.IGNORECASE
)
_SAFE: Final = ("GET", "HEAD")


def is_loopback_name(host: bytes | None) -> bool:
    """Whether a request's Host is a name that can only be this machine's.

    Any other name may be one that another's server has made to resolve to this machine. Whoever sends none is
    no browser.
    """
    return host is None or _LOOPBACK_AUTHORITY.fullmatch(host.decode("latin-1")) is not None


def is_authority(host: str) -> bool:
    """Whether it is a name or an address, with a port or without: what a URL can be made of."""
    return _AUTHORITY.fullmatch(host) is not None


def is_foreign(method: str, headers: Mapping[bytes, bytes], *, cookies: bool) -> bool:
    """Whether a page of another origin asks, another port of this machine included.

    ``cookies``: it has shown one, so it is a browser; then what changes something must say where it is from.
    """
    site = headers.get(b"sec-fetch-site")
    if site == b"same-origin":  # pages can't set it; it is right behind a proxy that hides the name, too
        return False
    origin = headers.get(b"origin")
    if origin is not None:
        return not _is_own(origin.decode("latin-1"), headers.get(b"host", b"localhost").decode("latin-1"))
    if site in (None, b"none"):
        return cookies and method not in _SAFE
    # A link may lead here from anywhere; what is loaded into another's page may not be from here.
    return method not in _SAFE or headers.get(b"sec-fetch-mode") != b"navigate"


def _is_own(origin: str, host: str) -> bool:
    """Whether it is a page of this service: what is at another port of this machine is another's."""
    try:
        page = urlsplit(origin)
        asked = urlsplit(f"{page.scheme}://{host}")
        same_port = page.scheme in ("http", "https") and _port_of(page) == _port_of(asked)
    except ValueError:
        return False
    if _LOOPBACK_AUTHORITY.fullmatch(host):
        return same_port and page.hostname in LOOPBACK_NAMES
    return same_port and page.hostname is not None and page.hostname == asked.hostname


def _port_of(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
