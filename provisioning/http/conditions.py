"""Conditions of requests: ETags (RFC 9110, section 13)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

MAX_CONDITION_CHARS: Final = 1_000
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def as_etag(value: str) -> str:
    """A tag as it is in a header."""
    return f'"{value}"'


def is_unchanged(if_none_match: str | None, value: str) -> bool:
    """Whether a reader has that already."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or value in {tag for _, tag in _TAG.findall(if_none_match)}


def wanted(if_match: str | None) -> Collection[str] | None:
    """The values one of which something has to have, or nothing is done to it; None: whatever it has.

    Weak ones fit nothing, as what is no tag does.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    return {tag for weak, tag in _TAG.findall(if_match) if not weak}
