"""Who somebody is to the broker: the keys of devices, and the tokens that they log in with.

As in Azure's Device Provisioning Service, the key of a device follows from its group's,
``base64(HMAC-SHA256(group key, device id))``, so that no device knows another's. Its MQTT user name and
client id are the device id, and its password is a token made with that key::

    SharedAccessSignature sr=muster%2Fregistrations%2F{device id}&sig={signature}&se={expiry}

the signature being ``base64(HMAC-SHA256(key, sr + "\\n" + se))``, URL-encoded, and the expiry in seconds
since the epoch.

A broker that checks tokens itself takes any that is signed and has not expired. Mosquitto compares with a
file that has one password for each device, so there all must mean the same one: that of the device's period.
`expiry_of` says when it ends. Periods have the same length for all and begin at another moment for each
device: so never do all of a fleet log in anew together.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from broker.errors import BrokerError
from broker.private_files import open_to_read
from broker.topics import is_device_id

SCOPE: Final = "muster"
# No device has this name: an id begins with a letter or a digit.
SERVICE_ACCOUNT: Final = "$service"
DEFAULT_TOKEN_LIFETIME_S: Final = 86_400
"""Of a period; a token is good for one to two of them."""
MAX_TOKEN_CHARS: Final = 512
MIN_GROUP_KEY_BYTES: Final = 16
MAX_GROUP_KEY_FILE_BYTES: Final = 64 * 1024

_SCHEME: Final = "SharedAccessSignature "


class GroupKeyError(BrokerError):
    """A file that holds no group key; the message names it and what it must hold."""


class TokenError(ValueError):
    """A token that lets nobody in; ``reason`` is malformed, foreign, expired or bad-signature.

    The message never quotes the token.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"the token is refused ({reason}): {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Token:
    """What is in a token, checked or not."""

    device_id: str
    expires_at: int
    signature: bytes


def device_key(group_key: bytes, device_id: str) -> str:
    """The key of one device, in base64."""
    return base64.b64encode(hmac.digest(group_key, device_id.encode(), hashlib.sha256)).decode()


def read_group_key(path: Path) -> bytes:
    """A group key from a file with its base64; raises `GroupKeyError`."""
    try:
        with open_to_read(path) as file:
            text = file.read(MAX_GROUP_KEY_FILE_BYTES).decode("ascii").strip()
        key = base64.b64decode(text, validate=True)
    except OSError as error:
        raise GroupKeyError(
            f"the group key can't be read from {path}: {error.strerror}; give a file that holds it in base64"
        ) from error
    except (ValueError, binascii.Error):
        key = b""
    if not key:
        raise GroupKeyError(f"{path} holds no group key: it must be base64, as in Azure's portal")
    if len(key) < MIN_GROUP_KEY_BYTES:
        raise GroupKeyError(
            f"{path} holds a group key of {len(key)} bytes: give one of {MIN_GROUP_KEY_BYTES} at least, "
            "as from `openssl rand -base64 32`"
        )
    return key


def make_token(key: str, device_id: str, expires_at: int) -> str:
    """The token of a device with ``key`` (base64), good until ``expires_at``."""
    resource = _resource(device_id)
    signature = base64.b64encode(_sign(base64.b64decode(key), resource, expires_at)).decode()
    return f"{_SCHEME}sr={resource}&sig={quote(signature, safe='')}&se={expires_at}"


def read_token(text: str) -> Token:
    """Take a token apart, without a look at its signature; raises `TokenError` (malformed)."""
    if len(text) > MAX_TOKEN_CHARS or not text.startswith(_SCHEME):
        raise TokenError(
            "malformed", f"it is 'SharedAccessSignature sr=…&sig=…&se=…', of {MAX_TOKEN_CHARS} characters"
        )
    fields: dict[str, str] = {}
    for part in text[len(_SCHEME) :].split("&"):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise TokenError("malformed", "its fields are sr=…, sig=… and se=…, each once")
        fields[name] = unquote(value)
    resource, expiry = fields.get("sr", ""), fields.get("se", "")
    device_id = resource.removeprefix(f"{SCOPE}/registrations/")
    if device_id == resource or not is_device_id(device_id):
        raise TokenError("malformed", f"its sr is {SCOPE}/registrations/ and the device id")
    if not (expiry.isascii() and expiry.isdigit()) or len(expiry) > 12:
        raise TokenError("malformed", "its se is in seconds since the epoch")
    try:
        signature = base64.b64decode(fields.get("sig", ""), validate=True)
    except (ValueError, binascii.Error):
        raise TokenError("malformed", "its sig is no base64") from None
    return Token(device_id=device_id, expires_at=int(expiry), signature=signature)


def check_token(text: str, *, device_id: str, key: str, now: float) -> Token:
    """What a broker does: `TokenError` unless it is this device's, signed by its key, and has not expired."""
    token = read_token(text)
    if token.device_id != device_id:
        raise TokenError("foreign", f"it is not {device_id}'s")
    expected = _sign(base64.b64decode(key), _resource(device_id), token.expires_at)
    if not hmac.compare_digest(expected, token.signature):
        raise TokenError("bad-signature", f"the key of {device_id} has not signed it")
    if token.expires_at <= now:
        raise TokenError("expired", f"it was good until {token.expires_at}")
    return token


def expiry_of(device_id: str, *, now: float, lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S) -> int:
    """When the token of a device's present period expires: in one to two lifetimes."""
    begin = int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:8]) % lifetime_s
    return (math.floor((now - begin) / lifetime_s) + 2) * lifetime_s + begin


def _resource(device_id: str) -> str:
    return f"{SCOPE}%2Fregistrations%2F{device_id}"


def _sign(key: bytes, resource: str, expires_at: int) -> bytes:
    return hmac.digest(key, f"{resource}\n{expires_at}".encode(), hashlib.sha256)
