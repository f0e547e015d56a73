"""The group key, from which follows what each device logs in with: made once, or the user's own."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from broker.identity import read_group_key

FILE: Final = "group.key"
_KEY_BYTES: Final = 32


def provide_group_key(state_dir: Path, given: Path | None) -> Path:
    """Return the file ``given``, or that of the state directory, which is made where it is missing.

    Raises `broker.identity.GroupKeyError`, which names the file, where it holds no key.
    """
    path = (given if given is not None else state_dir / FILE).absolute()
    if given is None and not path.exists():
        # Whole or not at all, and never in the place of another: devices hold on to the key.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    read_group_key(path)
    return path
