"""The embedded engine, each figure beside its peers' in the same run.

The seed's workflow with activities that do nothing, a chain, timers, events, latencies, start-up with many
unfinished instances and the memory of many waiting ones; each run in a process of its own. Beside it, where
they can be had, the Durable Task SDK's in-memory backend, DBOS on SQLite and Restate; their environments are
made by themselves, once, under .cache/peers.

    python -m benchmarks.engine                            # all of it: about ten minutes
    python -m benchmarks.engine --quick                    # sanity: small sizes, no peers, under a minute
    python -m benchmarks.engine --only seed --no-peers --devices 1000 10000 --rounds 5 --json
    python -m benchmarks.engine --large                    # a million waiting instances too
    python -m benchmarks.engine --profile                  # where the time goes
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks import profiling
from benchmarks.child import ChildError
from benchmarks.contestants import PEERS
from benchmarks.figures import Results, median
from benchmarks.suite import MEMORY, STARTUP, Plan, measure
from benchmarks.tables import as_markdown
from benchmarks.workloads import SEED, WORKLOADS

__all__ = ["LARGE_MEMORY", "main", "median", "run"]

PARTS = (*(workload.name for workload in WORKLOADS), STARTUP, MEMORY)
_QUICK_SIZES = (500, 2_000)
_QUICK_INSTANCES = 2_000
LARGE_MEMORY = 1_000_000
_PROFILED_DEVICES = 10_000


def run(plan: Plan) -> Results:
    """Everything in the plan, with the progress on stderr."""
    return measure(plan, lambda line: print(line, file=sys.stderr, flush=True))


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.profile is not None:
        print(asyncio.run(profiling.profile(arguments.profile, arguments.directory)))
        return 0
    try:
        results = run(_plan(arguments))
    except ChildError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(dataclasses.asdict(results), indent=2) if arguments.json else as_markdown(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="leave out all other parts")
    parser.add_argument("--devices", type=int, nargs="+", help="sizes of the seed's workflow")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--peer-rounds", type=int, default=1, help="how many of them have the peers too")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, help="by default with them, but for --quick"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no peers")
    parser.add_argument("--large", action="store_true", help=f"memory at {LARGE_MEMORY:,} too")
    parser.add_argument(
        "--profile", type=int, nargs="?", const=_PROFILED_DEVICES, metavar="DEVICES",
        help="instead: where the time of the seed's workflow goes",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, default=Path.cwd(), help="for state files; on the disk that is measured"
    )
    parser.add_argument("--json", action="store_true")
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    only, quick = arguments.only, arguments.quick
    peers = not quick if arguments.peers is None else arguments.peers
    instances = _QUICK_INSTANCES if quick else 100_000
    memory = (instances, LARGE_MEMORY) if arguments.large else (instances,)
    return Plan(
        workloads=tuple(workload for workload in WORKLOADS if workload.name in only),
        rounds=1 if quick else arguments.rounds,
        seed_sizes=tuple(sorted(arguments.devices or (_QUICK_SIZES if quick else SEED.sizes))),
        peers=PEERS if peers else (),
        peer_rounds=arguments.peer_rounds,
        startup_size=instances if STARTUP in only else None,
        memory_sizes=memory if MEMORY in only else (),
        quick=quick,
        directory=arguments.directory,
    )


if __name__ == "__main__":
    sys.exit(main())
