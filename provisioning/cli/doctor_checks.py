"""The checks of ``muster doctor``: each looks at one thing that Muster needs and changes nothing.

A *problem* keeps a demo from working; a *note* is worth knowing: something will be fetched, or done another
way. Imported only when the command runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from broker.local.errors import LocalStackError
from broker.local.mosquitto import DEFAULT_PORT as BROKER_PORT
from broker.local.mosquitto import find_mosquitto
from broker.local.node import MIN_NODE, Node, cache_dir, find_node, find_pip, stack_modules, wheel_requirement
from broker.local.ports import is_free
from broker.local.records import stack_records
from provisioning.api_settings import is_loopback
from provisioning.api_tokens import TOKEN_FILES
from provisioning.azurite import DEFAULT_PORT as BLOB_PORT
from provisioning.cli.check import Check
from provisioning.cli.doctor_security import cache_trust_check, security_checks, state_privacy_check
from provisioning.cli.processes import recorded_processes
from provisioning.settings import DEFAULT_API_PORT, LOCAL_BROKERS, EngineSettings, Environment
from provisioning.state_directory import MARKER, STATE_FORMAT

MIN_PYTHON: Final = (3, 11)
# The wheel with Node takes 210 MB, the npm packages 64 MB; both are unpacked beside what they replace.
CACHE_SPACE_BYTES: Final = 500 * 1024 * 1024
DESCRIPTORS_PER_DEVICE: Final = 3
DESCRIPTOR_RESERVE: Final = 128
DEMO_DEVICES: Final = 200
# Below this many devices in one process the limit is worth a word.
ROOMY_DEVICES: Final = 5_000
CONNECT_TIMEOUT_S: Final = 3.0
VERSION_TIMEOUT_S: Final = 10.0
SQLITE_MAGIC: Final = b"SQLite format 3\x00"


def all_checks(environment: Environment, state_dir: Path) -> list[Check]:
    """Look at everything, in the order of the table."""
    return [
        python_check(),
        *stack_checks(environment),
        broker_check(environment.broker),
        *engine_checks(environment.engine),
        *port_checks(state_dir),
        *access_checks(environment, state_dir),
        descriptor_check(),
        *state_checks(state_dir),
        *security_checks(os.environ, environment.broker, state_dir),
    ]


def python_check() -> Check:
    """The running Python."""
    version = platform.python_version()
    if sys.version_info >= MIN_PYTHON:
        return Check(name="Python", status="ok", detail=f"{version} ({sys.executable})")
    wanted = ".".join(map(str, MIN_PYTHON))
    return Check(
        name="Python",
        status="problem",
        detail=f"{version} ({sys.executable})",
        remedy=f"install Python {wanted} or newer and make the virtual environment with it",
    )


def stack_checks(environment: Environment) -> Iterator[Check]:
    """Node, the npm packages and the cache that they are in; only what is used is needed."""
    aedes = environment.broker == "aedes" or (environment.broker == "auto" and find_mosquitto() is None)
    if environment.blob_connection_string is not None and not aedes:
        yield Check(name="Node", status="ok", detail="not needed: broker and blob storage are elsewhere")
        return
    cache = cache_dir()
    node, pip = asyncio.run(_node_and_pip(cache))
    fetched = stack_modules(cache).is_dir()
    # Where the packages are there, npm has nothing left to do.
    enough = node is not None and (node.npm is not None or fetched)
    yield _node_check(node, pip=pip, enough=enough)
    what = "Azurite and Aedes"
    if fetched:
        yield Check(name="local stack", status="ok", detail=f"{what}, in {stack_modules(cache).parent}")
    elif enough or pip:
        detail = f"{what} are fetched on first use (npm packages, about 64 MB; once)"
        yield Check(name="local stack", status="note", detail=detail)
    else:
        yield Check(
            name="local stack", status="problem", detail=f"{what} can't be fetched without Node's npm"
        )
    yield cache_check(cache, complete=fetched and enough)


async def _node_and_pip(cache: Path) -> tuple[Node | None, bool]:
    node = await find_node(cache)
    if node is not None and node.npm is not None:
        return node, True  # pip won't be asked for anything
    return node, await find_pip() is not None


def _node_check(node: Node | None, *, pip: bool, enough: bool) -> Check:
    wanted = ".".join(map(str, MIN_NODE))
    if node is not None and enough:
        return Check(name="Node", status="ok", detail=f"{'.'.join(map(str, node.version))} ({node.program})")
    lack = f"no Node {wanted} or newer on PATH" if node is None else "Node is there, its npm is not"
    if pip:
        return Check(
            name="Node",
            status="note",
            detail=f"{lack}: {wheel_requirement()} is fetched with pip on first use (about 60 MB; once)",
        )
    return Check(
        name="Node",
        status="problem",
        detail=f"{lack}, and no pip to fetch it with",
        remedy="install one of them (Debian: apt-get install nodejs npm, or python3-pip)",
    )


def cache_check(cache: Path, *, complete: bool) -> Check:
    """The cache directory; ``complete``: nothing is left to be put there."""
    if (untrusted := cache_trust_check(cache)) is not None:
        return untrusted
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if complete:
        return Check(name="cache", status="ok", detail=str(cache))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name="cache",
            status="problem",
            detail=f"{cache} can't be written",
            remedy="set MUSTER_CACHE to a directory that can",
        )
    free = shutil.disk_usage(existing).free
    if free < CACHE_SPACE_BYTES:
        return Check(
            name="cache",
            status="problem",
            detail=f"{cache}: {free // 1024**2} MB free, {CACHE_SPACE_BYTES // 1024**2} MB needed",
            remedy="make room, or set MUSTER_CACHE to a directory elsewhere",
        )
    return Check(name="cache", status="ok", detail=f"{cache} ({free // 1024**3} GB free)")


def broker_check(broker: str) -> Check:
    """The MQTT broker that the environment asks for."""
    if broker not in LOCAL_BROKERS:
        return _remote_broker_check(broker)
    mosquitto = find_mosquitto()
    if mosquitto is not None and broker != "aedes":
        detail = f"Mosquitto{_mosquitto_version(mosquitto)} ({mosquitto})"
        return Check(name="broker", status="ok", detail=detail)
    if broker == "mosquitto":
        return Check(
            name="broker",
            status="problem",
            detail="MUSTER_BROKER asks for Mosquitto, and it is not installed",
            remedy="install it (Debian: apt-get install mosquitto), or unset MUSTER_BROKER",
        )
    if broker == "aedes":
        return Check(name="broker", status="ok", detail="Aedes in Node, as MUSTER_BROKER asks")
    return Check(
        name="broker",
        status="note",
        detail="Mosquitto is not installed: Aedes in Node takes its place",
        remedy="for large fleets install Mosquitto (Debian: apt-get install mosquitto)",
    )


def _remote_broker_check(url: str) -> Check:
    parts = urlsplit(url)
    # Never the URL itself: it may hold a password.
    host, port = parts.hostname or "127.0.0.1", parts.port or (8883 if parts.scheme == "mqtts" else 1883)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return Check(
            name="broker",
            status="problem",
            detail=f"{host}:{port} of MUSTER_BROKER doesn't answer ({error})",
            remedy="start that broker, or unset MUSTER_BROKER and let Muster start its own",
        )
    return Check(name="broker", status="ok", detail=f"{host}:{port}, as MUSTER_BROKER says")


def engine_checks(engine: EngineSettings) -> Iterator[Check]:
    """The engine, where it is not the embedded one, which needs nothing."""
    if engine.kind == "embedded":
        return
    if engine.task_hub is not None and find_spec("durabletask.azuremanaged") is None:
        yield Check(
            name="engine",
            status="problem",
            detail="MUSTER_ENGINE_TASKHUB is set, and the packages for Azure's scheduler are not installed",
            remedy="pip install durabletask.azuremanaged, or unset MUSTER_ENGINE_TASKHUB",
        )
        return
    shown = f"{engine.name[:1].upper()}{engine.name[1:]}"
    try:
        socket.create_connection((engine.host, engine.port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        yield Check(
            name="engine",
            status="problem",
            detail=f"{shown}, doesn't answer ({error})",
            remedy="start it, correct MUSTER_ENGINE_ENDPOINT, or unset MUSTER_ENGINE for the embedded engine",
        )
        return
    tls = "by TLS" if engine.tls else "not by TLS"
    yield Check(name="engine", status="ok", detail=f"{shown}, {tls}, as MUSTER_ENGINE says")


def access_checks(environment: Environment, state_dir: Path) -> Iterator[Check]:
    """Who may ask the API, where that is not this machine alone, and who can read the tokens."""
    api = environment.api
    if not is_loopback(api.host):
        tls = api.certificate is not None
        yield Check(
            name="API",
            status="ok" if tls else "note",
            detail=f"listens on {api.host}, for who has a token; {'by TLS' if tls else 'not by TLS'}",
            remedy=None
            if tls
            else "tokens can be read on their way: set MUSTER_API_CERT_FILE and MUSTER_API_KEY_FILE, "
            "or have a proxy on this machine do TLS",
        )
    elif api.token_needed:
        yield Check(name="API", status="ok", detail="for who has a token, on this machine too")
    if environment.url is not None:
        parts = urlsplit(environment.url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or "") and api.shown(None) is not None:
            yield Check(
                name="MUSTER_URL",
                status="note",
                detail=f"the token goes to {parts.hostname} in the clear",
                remedy="use https, or a tunnel (ssh -L)",
            )
    for path in (state_dir / name for name in TOKEN_FILES.values()):
        if path.exists() and path.stat().st_mode & 0o077:
            yield Check(
                name=path.name,
                status="note",
                detail=f"{path} can be read by others, who may ask the service then",
                remedy=f"`muster token rotate` makes a new one; or: chmod 600 {path}",
            )


def _mosquitto_version(executable: Path) -> str:
    try:
        shown = subprocess.run(
            [str(executable), "-h"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    first = (shown.splitlines() or [""])[0]
    return f" {first.rpartition('version ')[2]}" if "version " in first else ""


def port_checks(state_dir: Path) -> Iterator[Check]:
    """The ports that are taken when nobody says otherwise; another program there is no problem."""
    ours = {record.port for _, record in stack_records(state_dir) if record.process() is not None}
    for name, port in (("MQTT", BROKER_PORT), ("blob storage", BLOB_PORT), ("HTTP API", DEFAULT_API_PORT)):
        if is_free(port):
            yield Check(name=f"port {port}", status="ok", detail=f"free for {name}")
        elif port in ours:
            yield Check(name=f"port {port}", status="ok", detail=f"{name} of this state directory")
        else:
            detail = f"in use by another program: {name} takes another port"
            yield Check(name=f"port {port}", status="note", detail=detail)


def descriptor_check() -> Check:
    """How many devices the limit of open files allows in one process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Check(name="open files", status="ok", detail="unlimited")
    devices = max(0, hard - DESCRIPTOR_RESERVE) // DESCRIPTORS_PER_DEVICE
    detail = f"at most {hard:,}, enough for about {devices:,} devices in one process"
    if devices >= ROOMY_DEVICES:
        return Check(name="open files", status="ok", detail=detail)
    return Check(
        name="open files",
        status="note" if devices >= DEMO_DEVICES else "problem",
        detail=detail,
        remedy="raise the hard limit (`ulimit -Hn 65536` as root, or LimitNOFILE= in systemd)",
    )


def state_checks(state_dir: Path) -> Iterator[Check]:
    """The state directory, and what still runs on it."""
    yield _state_check(state_dir)
    try:
        living = list(recorded_processes(state_dir))
    except (OSError, ValueError, LocalStackError):
        return  # the check above has said what is wrong with it
    if not living:
        return
    names = ", ".join(f"{name} (process {process.pid})" for name, process in living)
    if living[0][0] == "service":
        yield Check(name="running", status="note", detail=names, remedy="`muster down` stops it all")
    else:
        yield Check(
            name="running",
            status="note",
            detail=f"left by a service that is gone: {names}",
            remedy="`muster up` goes on with them, `muster down` stops them",
        )


def _state_check(state_dir: Path) -> Check:
    def problem(detail: str, remedy: str) -> Check:
        return Check(name="state", status="problem", detail=f"{state_dir} {detail}", remedy=remedy)

    another = "choose another state directory (MUSTER_STATE, --state-dir)"
    existing = next(path for path in (state_dir, *state_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        return problem(f"can't be used: {existing} is no directory", another)
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        return problem("can't be written by this user", another)
    if existing != state_dir:
        return Check(name="state", status="ok", detail=f"{state_dir} (made on first use)")
    try:
        found = json.loads((state_dir / MARKER).read_bytes())["format"]
    except FileNotFoundError:
        return Check(name="state", status="ok", detail=f"{state_dir} (not used yet)")
    except (OSError, ValueError, KeyError, TypeError):
        return problem(f"has a {MARKER} that is not Muster's", f"{another}, or remove that file")
    if not isinstance(found, int) or found > STATE_FORMAT:
        return problem(f"was made by a newer version (format {found})", f"use that version, or {another}")
    for name in ("engine.db", "registry.db"):
        if not _is_database(state_dir / name):
            return problem(f"has an {name} that is not a database", f"restore that file, or {another}")
    return state_privacy_check(state_dir) or Check(name="state", status="ok", detail=str(state_dir))


def _is_database(path: Path) -> bool:
    """Whether ``path`` is a SQLite file, is empty (SQLite makes one of it) or is not there."""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) in (SQLITE_MAGIC, b"")
    except FileNotFoundError:
        return True
    except OSError:
        return False
