"""Secrets from the environment: the value itself, or a file that holds it, as containers are given them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker.private_files import open_to_read

from .errors import SettingsError

MAX_SECRET_BYTES: Final = 64 * 1024
"""More is no secret: the variable names another file."""


def secret_of(values: Mapping[str, str], name: str) -> str | None:
    """What the variable ``name`` holds, or else the file that ``name_FILE`` names; None where neither is set.

    An empty variable counts as not set. Of a file one line end is taken off. SettingsError, which never has
    the secret in it, where both are set, or the file can't be read, is empty or too large.
    """
    direct, file = values.get(name), values.get(f"{name}_FILE")
    if not file:
        return direct or None
    if direct:
        raise SettingsError(f"{name} and {name}_FILE are both set: unset one of them.")
    return read_secret(Path(file), f"{name}_FILE")


def read_secret(path: Path, name: str) -> str:
    """The secret in the file that the variable ``name`` names; errors as of `secret_of`."""
    try:
        with open_to_read(path) as opened:
            content = opened.read(MAX_SECRET_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise SettingsError(
            f"{name} names {path}, which can't be read ({error.strerror}): name a file that can."
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(
            f"{name} names {path}, which is no text: name the file with the secret."
        ) from None
    if len(content) > MAX_SECRET_BYTES:
        raise SettingsError(
            f"{name} names {path}, which has more than {MAX_SECRET_BYTES:,} bytes: "
            f"name the file with the secret."
        )
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise SettingsError(f"{name} names {path}, which is empty: put the secret into it, or unset {name}.")
    return secret
