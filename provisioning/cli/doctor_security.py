"""The checks of ``muster doctor`` about secrets: who can read them, and what would give them away."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from broker.address import holds_password
from broker.local.node import UNTRUSTED_CACHE_REMEDY, untrusted_cache
from broker.private_files import NotOursError
from provisioning.api_tokens import VARIABLES
from provisioning.cli.check import Check
from provisioning.cli.client import read_service_record
from provisioning.settings import AZURE_CREDENTIAL, LOCAL_BROKERS, SECRET_VARIABLES, is_loopback
from provisioning.state_directory import loose_state

_KEYS: Final = ("MUSTER_GROUP_KEY_FILE", "MUSTER_API_KEY_FILE", "MUSTER_BROKER_CERT_FILE")
"""They name files with keys, and have no variable for the key itself."""
_SECRETS: Final = (*SECRET_VARIABLES, *VARIABLES.values())


def security_checks(variables: Mapping[str, str], broker: str, state_dir: Path) -> Iterator[Check]:
    """What is worth a word; `variables` are the environment, `broker` what it says of that."""
    if os.geteuid() == 0:
        yield Check(
            name="user",
            status="note",
            detail="this is root, whose rights Muster has no need of",
            remedy="run it as a user of its own",
        )
    found = [*_secret_file_checks(variables), *_environment_checks(variables), *_broker_checks(broker)]
    yield from found or [Check(name="secrets", status="ok", detail="none is seen by others")]
    yield from _api_checks(state_dir)


def _secret_file_checks(variables: Mapping[str, str]) -> Iterator[Check]:
    for name in (*(f"{variable}_FILE" for variable in _SECRETS), *_KEYS):
        if not (path := variables.get(name)):
            continue
        try:
            status = Path(path).stat()
        except OSError as error:
            yield Check(
                name="secrets",
                status="problem",
                detail=f"{path}, which {name} names, can't be read ({error.strerror})",
                remedy=f"name a file that can, or unset {name}",
            )
            continue
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            detail = f"{path}, which {name} names, can be changed by others"
            yield Check(name="secrets", status="problem", detail=detail, remedy=f"chmod 600 {path}")
        elif status.st_mode & 0o077:
            detail = f"{path}, which {name} names, can be read by others"
            yield Check(name="secrets", status="note", detail=detail, remedy=f"chmod 600 {path}")


def _environment_checks(variables: Mapping[str, str]) -> Iterator[Check]:
    for name in _SECRETS:
        value = variables.get(name)
        if not value or value == AZURE_CREDENTIAL or (name == "MUSTER_BROKER" and not holds_password(value)):
            continue
        yield Check(
            name="secrets",
            status="note",
            detail=f"{name} has a secret in the environment, where every program of this session finds it",
            remedy=f"put it into a file of mode 600, and name that by {name}_FILE",
        )


def _broker_checks(broker: str) -> Iterator[Check]:
    if broker in LOCAL_BROKERS or not broker.startswith("mqtt://") or not holds_password(broker):
        return
    host = urlsplit(broker).hostname or ""
    if not is_loopback(host):
        yield Check(
            name="secrets",
            status="note",
            detail=f"the broker's password goes to {host} in the clear, and all that devices are sent",
            remedy="use mqtts:// in MUSTER_BROKER",
        )


def _api_checks(state_dir: Path) -> Iterator[Check]:
    service = read_service_record(state_dir)
    if service is None or not service.alive:
        return
    parts = urlsplit(service.url)
    host = service.host or parts.hostname or ""
    if parts.scheme != "https" and not is_loopback(host):
        yield Check(
            name="API",
            status="note",
            detail=f"it listens on {host}, without TLS: others can read what is sent, tokens too",
            remedy="put a proxy with TLS before it, or let it listen on 127.0.0.1",
        )


def cache_trust_check(cache: Path) -> Check | None:
    """The problem that the cache may be changed by others, if it may; programs are run from it."""
    why = untrusted_cache(cache)
    if why is None:
        return None
    return Check(name="cache", status="problem", detail=why, remedy=UNTRUSTED_CACHE_REMEDY)


def state_privacy_check(state_dir: Path) -> Check | None:
    """What others may read in a state directory, or have put into it."""
    try:
        loose = loose_state(state_dir)
    except NotOursError as error:
        return Check(
            name="state",
            status="problem",
            detail=f"{error.filename} belongs to another user, who could change the state",
            remedy="run Muster as that user, take it over (chown), or choose another state directory",
        )
    except OSError:
        return None  # another check says so
    if loose is None:
        return None
    return Check(
        name="state",
        status="note",
        detail=f"{loose} can be read by others",
        remedy=f"it holds keys and SAS URLs: chmod -R go= {state_dir}, or start Muster, which does so",
    )
