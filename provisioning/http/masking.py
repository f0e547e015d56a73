"""What may not leave the service, in whatever it is wrapped."""

from __future__ import annotations

import re
from typing import Final

from provisioning.masking import mask_sas

# What it says may be escaped in JSON within JSON, or encoded in another URL's query, and that again.
_EQUALS: Final = r"(?:=|%(?:25)*3d|\\+u003d)"
_VALUE: Final = r"(?:[^&\s;\"'<>\\]|\\+(?:/|u0025|u002[bf]|u003d))+"
_SECRET: Final = re.compile(
    rf"(?i)((?:(?:(?<![a-z])|(?<=%3f)|(?<=253f)|(?<=u003f))sig|AccountKey|SharedAccessSignature){_EQUALS}){_VALUE}"
)


def masked(text: str) -> str:
    """The text without the signatures and account keys in it, however they are wrapped."""
    return _SECRET.sub(r"\1***", mask_sas(text))
