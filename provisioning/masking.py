"""Secrets in texts: the signatures of SAS URLs, and account keys. Imported by whoever shows texts."""

from __future__ import annotations

import re

_SECRETS = re.compile(r"(?i)([?&;]sig=|\bAccountKey=|\bSharedAccessSignature=)[^&\s;\"'<>\\]+")


def mask_sas(text: str) -> str:
    """`text` with the signature of every SAS URL, and every account key, replaced by `***`."""
    return _SECRETS.sub(r"\1***", text)
