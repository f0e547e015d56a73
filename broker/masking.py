"""Secrets in texts: what whoever writes a text for others takes out of it.

Known are: the signature of a SAS URL, or of a device's token, which has the same form (`sr=…&sig=…&se=…`);
account keys and the like in connection strings; the password in a URL; what follows `Bearer`, `Authorization`
or `x-functions-key`; what is said by `password=` or `token=`; private keys in PEM. Each is found as it is, as
a value in JSON or in a `repr`, in JSON within JSON, encoded in the query of another URL, and that again.
`***` stands for each secret, and JSON stays JSON.

Each pattern takes time by the length of the text, whatever that holds. Texts that can't hold a secret, which
are nearly all, are told apart by a few searches for words.
"""

from __future__ import annotations

import re
from typing import Final

_EQUALS: Final = r"(?:=|%(?:25)*3d|\\+u003d)"
# A name begins where no letter stands before it, or one that ends an escape: of ? ; & or a line break.
_BEGINS: Final = (
    r"(?:(?<![a-z])|(?<=%3f)|(?<=253f)|(?<=u003f)|(?<=%3b)|(?<=253b)|(?<=u003b)|(?<=\\n)|(?<=\\r)|(?<=\\t))"
)
_NAMES: Final = r"(?:sig|AccountKey|SharedAccessKey|SharedAccessSignature|password|token)"
_KEYS: Final = r"(?:sig|AccountKey|account_key|SharedAccessKey|SharedAccessSignature)"
_VALUE: Final = r"(?:[^&\s;\"'<>\\]|\\+(?:/|u0025|u002[bf]|u003d))+"

_NAMED: Final = re.compile(rf"(?i)({_BEGINS}{_NAMES}{_EQUALS}){_VALUE}")
_IN_JSON: Final = re.compile(rf"(?i)((?<=[\"']){_KEYS}\\*[\"']\s?:\s?\\*[\"']){_VALUE}")
_IN_URL: Final = re.compile(r"(:(?:\\*/){2}[^\s/?#:\"'<>\\]*:)[^\s/?#\"'<>\\]+(?=@)")
_COLON: Final = r"%(?:25)*3a"
_IN_ENCODED_URL: Final = re.compile(
    rf"(?i)({_COLON}(?:/|%(?:25)*2f){{2}}(?:[^\s/?#:\"'<>\\&%]|%(?!(?:25)*(?:3a|2f)))*(?::|{_COLON}))"
    r"(?:[^\s/\"'<>\\&%@]|%(?!(?:25)*(?:2f|40)))+(?=@|%(?:25)*40)"
)
_BEARER: Final = re.compile(r"(?i)(bearer(?:\s|\+|%20))[a-z0-9._~+/-]{16,}=*")
_AUTHORIZATION: Final = re.compile(
    r"(?i)((?:authorization|x-functions-key)\\*[\"']?\s?[:=]\s?\\*[\"']?(?:[a-z]{1,20}\s)?)[^\s,;\"'\\&]+"
)
_PRIVATE_KEY: Final = re.compile(r"(-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY-----)(?:[^-\"']|-(?!----))+")


def masked(text: str) -> str:
    """The text without the secrets in it."""
    low = text.lower()
    if "sig" in low or "key" in low or "password" in low or "token" in low:
        text = _NAMED.sub(r"\1***", text)
        text = _IN_JSON.sub(r"\1***", text)
    if "@" in low or "%40" in low or "2540" in low:
        text = _IN_URL.sub(r"\1***", text)
        text = _IN_ENCODED_URL.sub(r"\1***", text)
    if "bearer" in low:
        text = _BEARER.sub(r"\1***", text)
    if "authorization" in low or "x-functions-key" in low:
        text = _AUTHORIZATION.sub(r"\1***", text)
    if "private key-----" in low:
        text = _PRIVATE_KEY.sub(r"\1***", text)
    return text
