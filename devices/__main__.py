"""A fleet process: ``python -m devices``. It ends in order on SIGTERM and SIGINT.

Exit status: 0 after an orderly end, 1 when devices crashed (a bug), 2 when it could not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from broker.connection import BrokerAddress, BrokerAddressError
from broker.logs import start_log
from broker.masking import masked
from devices.arguments import FleetArguments, parse
from devices.certificates import DeviceTls
from devices.control import ControlServer
from devices.credentials import Credentials
from devices.dice import Trace
from devices.errors import DevicesError, FleetStartError
from devices.fleet import Fleet, FleetOptions
from devices.limits import descriptors_of, ensure_file_descriptors
from devices.roster import Roster
from devices.verify import Verifier

_LOG = logging.getLogger("devices")

_STATISTICS_INTERVAL_S: Final = 1.0
# By default Python looks for cyclic garbage so often that it walks through all devices again and again while
# they connect: a fifth of the processor time.
_GC_THRESHOLD: Final = 50_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a fleet until a signal; returns the exit status."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        start_log(arguments.log_level)
        if arguments.held and not os.read(sys.stdin.fileno(), 1):
            return 0
        return asyncio.run(_run(arguments))
    except (DevicesError, BrokerAddressError) as error:
        print(masked(f"devices: {error}"), file=sys.stderr)
        return 2


async def _run(arguments: FleetArguments) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.owned:
        loop.add_reader(sys.stdin.fileno(), _on_input, stop)
    given = arguments.read()
    options = FleetOptions(ramp_share=1 / arguments.shard[1])
    roster = Roster(given.spec, given.changes, shard=arguments.shard)
    ensure_file_descriptors(descriptors_of(len(roster.entries)))
    address = BrokerAddress.parse(arguments.broker_url)
    tls = _tls(arguments, address, roster)
    with _tracing(arguments.trace_file) as trace:
        fleet = Fleet(
            roster,
            address=address,
            verifier=Verifier.from_base64(arguments.trust)
            if arguments.trust_file is None
            else Verifier.from_file(arguments.trust_file),
            credentials=Credentials.of(
                address, arguments.group_key_file, token_lifetime_s=arguments.token_lifetime_s
            ),
            tls=tls,
            options=options,
            trace=trace,
        )
        async with fleet, contextlib.AsyncExitStack() as stack:
            if arguments.control_file is not None:
                await stack.enter_async_context(
                    ControlServer(fleet, arguments.control_file, number=given.number)
                )
            await _watch(fleet, stop, arguments.stats_file)
        last = fleet.statistics()
    _keep(last, arguments.stats_file)
    return 1 if last["crashed"] else 0


def _tls(arguments: FleetArguments, address: BrokerAddress, roster: Roster) -> DeviceTls | None:
    """What the devices trust and show; raises `FleetStartError`."""
    if not address.tls:
        if arguments.certificates is not None or arguments.ca_file is not None:
            raise FleetStartError(f"certificates are of no use with {address.url}: give an mqtts:// URL")
        return None
    tls = DeviceTls(ca_file=arguments.ca_file, certificates=arguments.certificates)
    tls.check(roster.entries)
    return tls


def _on_input(stop: asyncio.Event) -> None:
    """Standard input has something to say, or has ended: then the owner is gone."""
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


async def _watch(fleet: Fleet, stop: asyncio.Event, stats_file: Path | None) -> None:
    """Keep the statistics file until ``stop``; say once that the whole fleet is there."""
    complete = False
    while not stop.is_set():
        statistics = fleet.statistics()
        _keep(statistics, stats_file)
        if not complete and statistics["ever_registered"] == statistics["devices"]:
            complete = True
            _LOG.info("%d devices registered after %.1f s", statistics["devices"], statistics["uptime_s"])
        try:
            async with asyncio.timeout(_STATISTICS_INTERVAL_S):
                await stop.wait()
        except TimeoutError:
            continue


def _keep(statistics: Mapping[str, Any], path: Path | None) -> None:
    """Write the file so that a reader sees the old one or the new one, never a part."""
    if path is None:
        return
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(json.dumps(statistics) + "\n")
        fresh.replace(path)
    except OSError as error:
        _LOG.warning("can't write statistics to %s: %s", path, error)


@contextlib.contextmanager
def _tracing(path: Path | None) -> Iterator[Trace | None]:
    """Write each random choice as a line; raises `FleetStartError`."""
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise FleetStartError(f"the trace can't be written to {path}: {error.strerror}") from error
    with file:

        def trace(device_id: str, what: str, nth: int, value: float) -> None:
            line = json.dumps({"device": device_id, "what": what, "nth": nth, "value": value})
            file.write(masked(line) + "\n")

        yield trace


if __name__ == "__main__":
    sys.exit(main())
