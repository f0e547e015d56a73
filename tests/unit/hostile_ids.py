"""Ids that reach for what is not theirs: another topic, path or line, or another's name."""

from __future__ import annotations

from typing import Final

HOSTILE_IDS: Final = {
    "path": "../secrets",
    "parent": "..",
    "absolute path": "/etc/passwd",
    "backslash": "..\\secrets",
    "further level": "dev-1/register",
    "one-level wildcard": "+",
    "all-levels wildcard": "#",
    "wildcard within": "dev+1",
    "hash within": "dev#1",
    "broker's own": "$SYS",
    "NUL": "dev\0",
    "new line": "dev-1\n",
    "carriage return": "dev-1\r\nX: y",
    "escape sequence": "dev\x1b[2J",
    "Cyrillic letter": "d\u0435v-1",
    "full-width dot and slash": "dev\uff0e\uff0f1",
    "full-width digit": "dev-\uff11",
    "Arabic digit": "dev-\u0661",
    "right-to-left override": "dev\u202e1-",
    "zero-width space": "dev\u200b-1",
    "byte order mark": "\ufeffdev-1",
    "combining accent": "de\u0301v-1",
    "dotless i": "dev\u0131ce",
    "space": "dev 1",
    "percent-encoded slash": "dev%2f1",
    "query": "dev?x=1",
    "begins with a dot": ".dev",
    "begins with a hyphen": "--help",
    "too long": "d" * 65,
    "empty": "",
}

# What is wrong in a label too, which may be in any letters and have spaces in it.
HOSTILE_LABELS: Final = {
    name: HOSTILE_IDS[name]
    for name in (
        "NUL",
        "new line",
        "carriage return",
        "escape sequence",
        "Cyrillic letter",
        "full-width dot and slash",
        "full-width digit",
        "right-to-left override",
        "zero-width space",
        "byte order mark",
    )
} | {"mark on a letter": "thermo-x\u0338", "space at the end": "thermo-1 ", "half of a character": "a\ud800"}
