"""The group key, from which follows what each device logs in with: made once, or the user's own."""

from __future__ import annotations

import base64
import contextlib
import secrets
from pathlib import Path
from typing import Final

from broker.identity import read_group_key
from broker.private_files import write_private

FILE: Final = "group.key"
_KEY_BYTES: Final = 32


def provide_group_key(state_dir: Path, given: Path | None) -> Path:
    """Return the file ``given``, or that of the state directory, which is made where it is missing.

    Raises `broker.identity.GroupKeyError`, which names the file, where it holds no key.
    """
    path = (given if given is not None else state_dir / FILE).absolute()
    if given is None and not path.exists():
        # Whole or not at all, and never in the place of another: devices hold on to the key.
        key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
        with contextlib.suppress(FileExistsError):
            write_private(path, f"{key}\n", durable=True, replace=False)
    read_group_key(path)
    return path
