"""How the user calls `muster`: a hint must be a command that works when it is typed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

NAME = "muster"


def program(argv0: str | None = None) -> str:
    """Return ``muster`` where that is found on PATH, or else what this process was started as."""
    given = Path(sys.argv[0] if argv0 is None else argv0)
    if given.name != NAME:
        return NAME  # python -m provisioning.cli, or a test
    found = shutil.which(NAME)
    if found is not None and Path(found).absolute() == given.absolute():
        return NAME
    return shlex.quote(str(given))
