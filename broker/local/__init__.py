"""The local broker: Mosquitto where it is installed, else Aedes in Node.

`start_broker` finds, fetches, starts or adopts it; what the local stack shares (processes, records, Node and
its packages) is in the modules beside this one. Errors: `broker.local.errors`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from broker.local.access import AccessControl, AccountFiles
from broker.local.aedes import AedesFile, aedes_program
from broker.local.errors import (
    InstallError,
    LocalStackError,
    MissingProgramError,
    PortInUseError,
    StackInUseError,
    StartError,
)
from broker.local.mosquitto import MosquittoFiles, find_mosquitto, mosquitto_program
from broker.local.node import provide_node_stack
from broker.local.ports import LOOPBACK
from broker.local.process import LocalProcess, Program, Progress, ignore_progress, stop_recorded
from broker.local.records import ProcessRecord, stack_directory
from broker.local.tls import TlsFilesOfBroker, TlsListener, choose_port

BrokerKind = Literal["mosquitto", "aedes"]

__all__ = [
    "AccessControl",
    "BrokerKind",
    "InstallError",
    "LocalBroker",
    "LocalProcess",
    "LocalStackError",
    "MissingProgramError",
    "PortInUseError",
    "ProcessRecord",
    "Program",
    "Progress",
    "StackInUseError",
    "StartError",
    "TlsFilesOfBroker",
    "ignore_progress",
    "start_broker",
    "stop_recorded",
]


@dataclass(frozen=True, kw_only=True)
class LocalBroker:
    """A broker of the local stack that runs; ``async with`` or `stop` ends it."""

    url: str
    host: str
    port: int
    kind: BrokerKind
    process: LocalProcess
    access: AccessControl | None = None
    """None: it is open to all on this machine."""
    tls_url: str | None = None
    """Where devices come in by certificate; None: nowhere."""

    async def stop(self) -> None:
        """Stop it; clients' sessions and queued messages are kept for the next start."""
        if self.access is not None:
            await self.access.close()
        await self.process.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def start_broker(
    *,
    state_dir: Path,
    kind: Literal["auto", "mosquitto", "aedes"] = "auto",
    port: int | None = None,
    access: AccessControl | None = None,
    tls: TlsFilesOfBroker | None = None,
    tls_port: int | None = None,
    progress: Progress = ignore_progress,
) -> LocalBroker:
    """Start a broker with its data in ``state_dir``, or adopt the one that a killed service left running.

    ``access`` says who may use it, from now on and until the broker's `stop`; None: all on this machine.
    ``tls``, which needs ``access``: let in devices by certificate too, on ``tls_port``, which is as ``port``
    is but for 8883.

    ``kind``: "auto" is Mosquitto where it is installed, else Aedes. ``port``: None is the port of the last
    time, else 1883, else any free one; 0 the same without 1883; a number is that port or `PortInUseError`.
    Raises `LocalStackError`'s subclasses: `MissingProgramError` (Mosquitto asked for and not there),
    `InstallError`, `PortInUseError`, `StackInUseError`, `StartError`.
    """
    executable = find_mosquitto()
    if kind == "mosquitto" and executable is None:
        raise MissingProgramError(
            "Mosquitto is not installed: install it (Debian: apt-get install mosquitto), "
            "or let Muster run its own broker (MUSTER_BROKER=aedes)"
        )
    chosen: BrokerKind = "aedes" if kind == "aedes" or executable is None else "mosquitto"
    directory = stack_directory(state_dir, chosen)
    other = directory.parent / ("mosquitto" if chosen == "aedes" else "aedes")
    listener = None if tls is None else TlsListener(port=choose_port(directory, tls_port), files=tls)
    files: AccountFiles | None
    if chosen == "mosquitto":
        assert executable is not None
        accounts = (
            None if access is None else MosquittoFiles(directory, token_lifetime_s=access.token_lifetime_s)
        )
        files, program = accounts, mosquitto_program(executable, directory, accounts, listener)
    else:
        stack = await provide_node_stack(progress=progress)
        keys = None if access is None else AedesFile(directory)
        files, program = keys, aedes_program(stack, directory, keys, listener)
    if access is not None and files is not None:
        program = replace(program, prepare=partial(access.prepare, files))
    process = LocalProcess(program, directory=directory, port=port, replaces=other, progress=progress)
    await process.start()
    if access is not None:
        access.start(process.reload)
    return LocalBroker(
        url=f"mqtt://{LOOPBACK}:{process.port}",
        host=LOOPBACK,
        port=process.port,
        kind=chosen,
        process=process,
        access=access,
        tls_url=None if listener is None else f"mqtts://{LOOPBACK}:{listener.port}",
    )
