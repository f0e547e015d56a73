"""A fleet process: ``python -m devices``. It ends in order on SIGTERM and SIGINT.

Exit status: 0 after an orderly end, 1 when devices crashed (a bug), 2 when it could not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.connection import BrokerAddress, BrokerAddressError
from devices.arguments import FleetArguments, parse
from devices.errors import DevicesError
from devices.fleet import Fleet, FleetOptions
from devices.limits import ensure_file_descriptors
from devices.plan import plan
from devices.statistics import FleetStatistics
from devices.verify import Verifier

_LOG = logging.getLogger("devices")

_STATISTICS_INTERVAL_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a fleet until a signal; returns the exit status."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(
            level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        return asyncio.run(_run(arguments))
    except (DevicesError, BrokerAddressError) as error:
        print(f"devices: {error}", file=sys.stderr)
        return 2


async def _run(arguments: FleetArguments) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    options = FleetOptions(connects_per_s=arguments.connects_per_s)
    plans = tuple(plan(arguments.spec, arguments.shard))
    ensure_file_descriptors(len(plans) + options.max_http_connections)
    fleet = Fleet(
        arguments.spec,
        plans,
        address=BrokerAddress.parse(arguments.broker_url),
        verifier=Verifier.from_base64(arguments.trust),
        options=options,
    )
    async with fleet:
        await _watch(fleet, stop, arguments.stats_file)
    last = fleet.statistics()
    _keep(last, arguments.stats_file)
    return 1 if last.counts["crashed"] else 0


async def _watch(fleet: Fleet, stop: asyncio.Event, stats_file: Path | None) -> None:
    """Keep the statistics file until ``stop``; say once that the whole fleet is there."""
    complete = False
    while not stop.is_set():
        statistics = fleet.statistics()
        _keep(statistics, stats_file)
        if not complete and statistics.ever_registered == statistics.devices:
            complete = True
            _LOG.info("%d devices registered after %.1f s", statistics.devices, statistics.uptime_s)
        try:
            async with asyncio.timeout(_STATISTICS_INTERVAL_S):
                await stop.wait()
        except TimeoutError:
            continue


def _keep(statistics: FleetStatistics, path: Path | None) -> None:
    """Write the file so that a reader sees the old one or the new one, never a part."""
    if path is None:
        return
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(json.dumps(statistics.as_json()) + "\n")
        fresh.replace(path)
    except OSError as error:
        _LOG.warning("can't write statistics to %s: %s", path, error)


if __name__ == "__main__":
    sys.exit(main())
