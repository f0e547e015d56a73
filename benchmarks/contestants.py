"""Who is measured: Muster and its peers, how each keeps its state, and how one run of each is made."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks import child
from benchmarks.peers import environment
from benchmarks.workloads import Values, Workload


@dataclass(frozen=True, kw_only=True)
class Program:
    """What runs a contestant: a Python, and variables for its environment."""

    python: Path = Path(sys.executable)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An engine. ``state`` says honestly what is on disk when an orchestration goes on."""

    name: str
    title: str
    state: str
    module: str
    provide: Callable[[environment.Progress], Program] = lambda _: Program()
    """Makes its environment where there is none yet; raises PeerMissingError."""

    def measure(self, program: Program, workload: Workload, size: int, directory: Path) -> Values:
        """One run in a process of its own. Raises ChildError."""
        return child.measure(
            self.module, workload.name, size, directory, python=program.python, variables=program.variables
        )


def _pinned(file: str, package: str) -> str:
    """The version of a package in one of the peers' requirements."""
    found = re.search(rf"^{package}==(\S+)", (environment.SOURCE / file).read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _restate_version() -> str:
    package = json.loads((environment.SOURCE / "package.json").read_text("utf-8"))
    return str(package["dependencies"]["@restatedev/restate-server"])


def _provide_dbos(progress: environment.Progress) -> Program:
    return Program(python=environment.provide("dbos.txt", progress=progress) / "bin" / "python")


def _provide_restate(progress: environment.Progress) -> Program:
    root = environment.provide("restate.txt", npm=True, progress=progress)
    server = next(iter(root.glob("node_modules/@restatedev/restate-server-*/bin/restate-server")), None)
    if server is None:
        raise environment.PeerMissingError("its npm package has no server for this platform")
    return Program(python=root / "bin" / "python", variables={"MUSTER_RESTATE_SERVER": str(server)})


MUSTER = Contestant(
    name="muster",
    title="Muster",
    state="one SQLite file, WAL, `synchronous=FULL`; each commit synced, which may hold many turns",
    module="benchmarks.embedded",
)
PEERS = (
    Contestant(
        name="in-memory",
        title=f"durabletask {metadata.version('durabletask')}, in-memory",
        state="kept in memory only, over gRPC to a worker in the same process",
        module="benchmarks.peers.in_memory",
    ),
    Contestant(
        name="dbos",
        title=f"DBOS {_pinned('dbos.txt', 'dbos')}, SQLite",
        state="one SQLite file, rollback journal, `synchronous=FULL`: its own settings; each commit synced",
        module="benchmarks.peers.dbos_sqlite",
        provide=_provide_dbos,
    ),
    Contestant(
        name="restate",
        title=f"Restate {_restate_version()}",
        state="RocksDB, its log synced; its own settings but for 4 partitions; a sync may hold many steps",
        module="benchmarks.peers.restate_server",
        provide=_provide_restate,
    ),
)
