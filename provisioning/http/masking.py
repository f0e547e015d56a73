"""What may not leave the service, in whatever it is wrapped."""

from __future__ import annotations

import re
from typing import Final

from provisioning.masking import mask_sas

# A signature's name may be escaped in JSON within JSON, or encoded in another URL's query.
_SIGNATURE: Final = re.compile(
    r"(?i)((?:(?<![a-z])|(?<=%3f)|(?<=u003f))sig(?:=|%3d|\\+u003d))[^&\s;\"'<>\\]+",
)


def masked(text: str) -> str:
    """The text without the signatures and account keys in it, however they are wrapped."""
    return _SIGNATURE.sub(r"\1***", mask_sas(text))
