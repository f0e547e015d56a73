"""The peers' environments: made once, by pinned versions, under ``.cache/peers`` of this checkout.

Each peer has its own, so that one that can't be had is left out by itself. An environment with a stamp
is whole, and what it was made from is in the stamp; any other is made anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from broker.local import InstallError
from broker.local.node import cache_dir, find_node, find_pip

SOURCE = Path(__file__).parent
CACHE = SOURCE.parents[1] / ".cache" / "peers"
_NPM_FILES = ("package.json", "package-lock.json")
_STAMP = "made-from"
_INSTALL_S = 900
_TAIL_LINES = 6

Progress = Callable[[str], None]


class PeerMissingError(Exception):
    """A peer can't be had here; the message says why."""


def provide(requirements: str, *, npm: bool = False, progress: Progress = lambda _: None) -> Path:
    """The environment of ``requirements`` (a file here), made first where needed. Raises PeerMissingError.

    Its Python is ``bin/python``; with ``npm`` it has the ``node_modules`` of package-lock.json too.
    """
    files = (requirements, *(_NPM_FILES if npm else ()))
    key = hashlib.sha256(platform.python_version().encode())
    for name in files:
        key.update((SOURCE / name).read_bytes())
    root = CACHE / Path(requirements).stem
    stamp = root / _STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == key.hexdigest():
        return root
    progress(f"installing what {requirements} says into {root}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    _install_python(root, requirements)
    if npm:
        _install_node_modules(root)
    stamp.write_text(key.hexdigest(), "utf-8")
    return root


def _install_python(root: Path, requirements: str) -> None:
    pip = asyncio.run(find_pip())
    if pip is None:
        raise PeerMissingError("there is no pip to install it with")
    _run([sys.executable, "-m", "venv", "--without-pip", str(root)])
    _run(
        [
            *pip, "--python", str(root / "bin" / "python"), "--disable-pip-version-check",
            "install", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:",
            "-r", str(SOURCE / requirements),
        ]
    )  # fmt: skip


def _install_node_modules(root: Path) -> None:
    node = asyncio.run(find_node(cache_dir()))
    if node is None or node.npm is None:
        raise PeerMissingError("there is no Node with npm on PATH to install it with")
    for name in _NPM_FILES:
        shutil.copyfile(SOURCE / name, root / name)
    # Without its scripts: one of them reports the installation to its makers.
    _run([*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], root)


def _run(command: list[str], directory: Path | None = None) -> None:
    try:
        subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        tail = "\n".join(str(error.stdout).splitlines()[-_TAIL_LINES:])
        raise PeerMissingError(f"{command[0]} ended with exit status {error.returncode}:\n{tail}") from error
    except (OSError, subprocess.TimeoutExpired, InstallError) as error:
        raise PeerMissingError(str(error)) from error
